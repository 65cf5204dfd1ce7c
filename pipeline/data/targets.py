"""The target samples of a step: the whole set, a few in rotation, or always the same few."""

from collections.abc import Sequence

import numpy as np

from pipeline.data.sample import Sample


class TargetSet:
    """The target samples in a seeded order, taken in rotation: each is seen equally often. There is no state.

    Without ``rotate`` every step takes the first of that order.
    """

    def __init__(self, samples: Sequence[Sample], target_per_step: int, seed: int, rotate: bool = True):
        """
        Args:
            samples: all target samples.
            target_per_step: largest number of samples in one step.
            seed: seed of the order.
            rotate: false takes the same samples at every step.

        Raises:
            ValueError: there are no samples.
        """
        if not samples:
            raise ValueError(
                "data.target has no usable sample: selection needs at least one example to aim at"
            )
        self.samples = [samples[i] for i in np.random.default_rng(seed).permutation(len(samples))]
        self.num_per_step, self.rotate = min(target_per_step, len(samples)), rotate

    def batch(self, step: int) -> list[Sample]:
        """min(target_per_step, size of the set) distinct samples for ``step`` (from 0)."""
        start = step * self.num_per_step if self.rotate else 0
        return [self.samples[(start + i) % len(self.samples)] for i in range(self.num_per_step)]

    def mixed(self, step: int, number: int) -> list[Sample]:
        """``number`` samples for the update of ``step``, in turn; one comes twice only if there are fewer."""
        start = step * number
        return [self.samples[(start + i) % len(self.samples)] for i in range(number)]

    def shard(self, step: int, rank: int, world_size: int) -> list[Sample]:
        """This rank's part of the batch, dealt in turn. Parts may be unequal or empty: the caller pads."""
        return self.batch(step)[rank::world_size]
