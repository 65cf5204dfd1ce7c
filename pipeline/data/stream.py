# C candidates per step, n samples of a step, over all ranks
"""The plain order of a pool: a pure function of the seed, so that resuming needs one integer, the place."""

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
        self,
        pool: Sequence[Sample],
        candidates_per_step: int,
        seed: int,
        mixture: Optional[Mixture] = None,
        name: str = "data.pool",
    ):
        """Raises ValueError, with the setting ``name``, if the pool does not fill one step."""
        if len(pool) < candidates_per_step:
            raise ValueError(
                f"{name} has {len(pool)} usable samples, fewer than selection.candidates_per_step = "
                f"{candidates_per_step}: add data or lower the setting"
            )
        self.pool = pool
        self.candidates_per_step = candidates_per_step
        self.seed = seed
        self.mixture = mixture

    def positions(self, step: int) -> np.ndarray:
        """Indices into the pool, int64 (C,), of the candidates of ``step``, if every step takes C."""
        return self.order(step * self.candidates_per_step, self.candidates_per_step)

    def order(self, place: int, count: int) -> np.ndarray:
        """Indices into the pool, int64 (count,), at the places [place, place + count) of all epochs."""
        found = []
        while count:
            epoch, start = divmod(place, len(self.pool))
            found.append(self._order(epoch)[start : start + count])
            place, count = place + len(found[-1]), count - len(found[-1])
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def epochs(self, place: int) -> float:
        """Epochs before a place: one is as many places as the pool has samples."""
        return place / len(self.pool)

    def shard(self, step: int, rank: int, world_size: int) -> list[Sample]:
        """This rank's share of the candidates of ``step``, if every step takes C."""
        return self.share(self.positions(step), rank, world_size)

    def share(self, positions_n: np.ndarray, rank: int, world_size: int) -> list[Sample]:
        """This rank's samples: shares in the order of ranks are the whole step, as even as can be."""
        first, last = (len(positions_n) * end // world_size for end in (rank, rank + 1))
        return [self.pool[i] for i in positions_n[first:last].tolist()]

    def _order(self, epoch: int) -> np.ndarray:
        if self.mixture is None or self.mixture.is_plain:
            return plain_order(len(self.pool), self.seed, epoch)
        return mixed_order(self.mixture, self.seed, epoch)
