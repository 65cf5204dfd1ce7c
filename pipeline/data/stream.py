# C candidates per step, over all ranks
"""The candidates of a step: a pure function of the seed and the step, so that resuming needs one integer."""

from collections.abc import Sequence
from typing import Optional

import numpy as np

from pipeline.data.mixture import Mixture, mixed_order, plain_order
from pipeline.data.sample import Sample


class CandidateStream:
    """Epoch after epoch of the pool, each in its own seeded order, cut into steps of C candidates.

    A step that straddles two epochs may hold a sample twice; with a mixture so may any step in which a name's
    share is more than its samples. There is no state, and nothing depends on the number of ranks.
    """

    def __init__(
        self, pool: Sequence[Sample], candidates_per_step: int, seed: int, mixture: Optional[Mixture] = None
    ):
        """Raises ValueError if the pool does not fill one step."""
        if len(pool) < candidates_per_step:
            raise ValueError(
                f"data.pool has {len(pool)} usable samples, fewer than selection.candidates_per_step = "
                f"{candidates_per_step}: add data or lower the setting"
            )
        self.pool = pool
        self.candidates_per_step = candidates_per_step
        self.seed = seed
        self.mixture = mixture

    def positions(self, step: int) -> np.ndarray:
        """Indices into the pool, int64 (C,), of the candidates of ``step`` (from 0)."""
        epoch_C, place_C = np.divmod(
            step * self.candidates_per_step + np.arange(self.candidates_per_step), len(self.pool)
        )
        orders = {epoch: self._order(epoch) for epoch in {int(epoch_C[0]), int(epoch_C[-1])}}
        return np.array([orders[epoch][place] for epoch, place in zip(epoch_C.tolist(), place_C.tolist())])

    def epoch(self, step: int) -> float:
        """Epochs before ``step``: one is as many candidates as the pool has samples."""
        return step * self.candidates_per_step / len(self.pool)

    def shard(self, step: int, rank: int, world_size: int) -> list[Sample]:
        """This rank's C / world_size candidates: shards in the order of ranks are the whole step in order."""
        # config.check_world_size has refused all else with a sentence.
        assert self.candidates_per_step % world_size == 0
        share = self.candidates_per_step // world_size
        return [self.pool[i] for i in self.positions(step)[rank * share : (rank + 1) * share]]

    def _order(self, epoch: int) -> np.ndarray:
        if self.mixture is None or self.mixture.is_plain:
            return plain_order(len(self.pool), self.seed, epoch)
        return mixed_order(self.mixture, self.seed, epoch)
