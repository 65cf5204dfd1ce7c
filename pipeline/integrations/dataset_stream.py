# N rows of the dataset
"""A Trainer's dataset as a pool, in the order of the Trainer's own sampler."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.data.batch import samples_of
from pipeline.data.sample import Sample
from pipeline.data.stream import CandidateStream


class Rows(Sequence[Sample]):
    """Rows of a dataset as the Trainer trains on them: each goes through its collator, and loses the padding.

    Args:
        dataset: gives a row for each position.
        collate: makes a batch of rows.
    """

    def __init__(self, dataset: Any, collate: Callable[[list], dict[str, torch.Tensor]]):
        self.dataset, self.collate = dataset, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position) -> Any:
        return samples_of(self.collate([self.dataset[position]]))[0]

    def __iter__(self) -> Iterator[Sample]:
        return (self[position] for position in range(len(self)))

    def have_mask(self) -> bool:
        """Whether the collator gives an attention mask."""
        return "attention_mask" in self.collate([self.dataset[0]])


class SamplerStream(CandidateStream):
    """Epoch after epoch of a Trainer's sampler.

    An epoch's order follows from the seed and the epoch alone, so that a resumed run finds it again: a
    sampler that knows epochs is told the epoch, any other is given random numbers that are seeded with it.

    Args:
        pool: the rows.
        candidates_per_step: C.
        loader: of the rows, as accelerate has prepared it; its sampler is asked and nothing is read from it.
        seed: of samplers that do not know epochs.
    """

    def __init__(self, pool: Rows, candidates_per_step: int, loader: Any, seed: int):
        super().__init__(pool, candidates_per_step, seed)
        self.sampler = _sampler_of(loader)
        self._orders: dict[int, np.ndarray] = {}

    def digest(self, place: int) -> str:
        """Hash of the epoch in which a place lies."""
        return hashlib.sha256(self._order(place // len(self.pool)).tobytes()).hexdigest()

    def _order(self, epoch: int) -> np.ndarray:
        """Positions of one epoch, int64 (N,). Raises ValueError where the sampler gives more or fewer."""
        if epoch not in self._orders:
            order_N = self._drawn(epoch)
            if len(order_N) != len(self.pool):
                raise ValueError(
                    f"{type(self.sampler).__name__} gives {len(order_N)} positions of train_dataset, which "
                    f"has {len(self.pool)} rows: proposals need an order of all of them. Set "
                    "selection.proposal to uniform and selection.score_every to 1 to train on what it gives"
                )
            # A window may reach into the next epoch.
            self._orders = {known: order for known, order in self._orders.items() if known >= epoch - 1}
            self._orders[epoch] = order_N
        return self._orders[epoch]

    def _drawn(self, epoch: int) -> np.ndarray:
        seed, generator = self.seed + epoch, getattr(self.sampler, "generator", None)
        with torch.random.fork_rng(devices=[]):  # training's own draws must not move
            torch.default_generator.manual_seed(seed)
            if hasattr(self.sampler, "set_epoch"):
                self.sampler.set_epoch(epoch)
            elif generator is not None:
                generator.manual_seed(seed)
            return np.fromiter(self.sampler, dtype=np.int64)


def _sampler_of(loader: Any) -> Any:
    """The sampler inside the batch samplers that accelerate wraps around each other."""
    batch_sampler = loader.batch_sampler
    while hasattr(batch_sampler, "batch_sampler"):
        batch_sampler = batch_sampler.batch_sampler
    return batch_sampler.sampler
