# N samples of the pool, n samples, H hidden size
"""The contract of a ranking: a pool and target examples in, an order of the whole pool out.

A ranking is a function ``rank(pool, targets, context) -> Ranked`` in a file named like it, which ends with
``RANKING = Ranking(name, rank)``. It is made once, before the run, and knows nothing of its steps. One that
``needs_model`` is called on every rank at the same time, and gives all of them the same; the others need one
process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Optional, Protocol

import numpy as np

from pipeline.data.sample import Sample


class Model(Protocol):
    """What a ranking may ask of the model: each rank makes its share, and all get the same answer."""

    def pooled_states(self, samples: Sequence[Sample]) -> np.ndarray:
        """Mean of each sample's last hidden states, the t-th token with weight t, float32 (n, H).

        A sample without tokens is 0.
        """
        ...

    def losses_around_fit(
        self, samples: Sequence[Sample], targets: Sequence[Sample]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Losses of ``samples`` (n,), float32, before and after one small fit to ``targets``.

        The model is left as it was. Raises ValueError where it cannot be fitted.
        """
        ...


@dataclass(frozen=True)
class Context:
    """What a ranking may use besides pool and targets."""

    seed: int = 0
    """Seed of draws."""
    model: Optional[Model] = None
    """None where only rankings without a model are made."""


@dataclass(frozen=True)
class Ranked:
    """An order of the pool."""

    order_N: np.ndarray
    """Positions in the pool, int64 (N,), each once, best first."""
    num_good: Optional[int] = None
    """How many of the first are equally good, and better than the rest; None where a ranking has only more
    and less."""

    def __post_init__(self):
        num_samples = len(self.order_N)
        assert (
            self.order_N.dtype == np.int64 and (np.bincount(self.order_N, minlength=num_samples) == 1).all()
        ), f"no permutation of {num_samples} positions: {self.order_N}"


@dataclass(frozen=True)
class Ranking:
    """One way to rank, by its name."""

    name: str
    rank: Callable[[Sequence[Sample], Sequence[Sample], Context], Ranked] = field(repr=False)
    """``rank(pool, targets, context)``."""
    needs_model: bool = False
    """Whether ``context.model`` must be there: a forward of the whole pool at least."""


def need_targets(name: str, targets: Sequence[Sample]) -> None:
    """Raise ValueError where there is no target example."""
    if not targets:
        raise ValueError(f"the ranking {name} compares the pool with target examples, and there are none")


def best_first(score_N: np.ndarray) -> np.ndarray:
    """Positions by falling score, int64 (N,); equal ones in the order of the pool, NaN last."""
    return np.argsort(-score_N, kind="stable")
