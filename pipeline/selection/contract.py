# C candidates, K kept
"""What a selection method gets and gives.

A method is a pure function ``select(signals, keep, num_candidates, rng, settings) -> Selection`` in a file
named like the method, which ends with ``METHOD = Method(name, needs, select)``. It is given, and the run pays
for, what ``needs`` says and no more. ``rng`` is a ``numpy.random.Generator`` seeded with the run's seed and
the step.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

import numpy as np

Needs = Literal["nothing", "loss", "reference_loss", "norm", "gram"]
Geometry = Literal["update", "curvature", "identity", "update_to_gradient"]
# fits every type: a method sees what it needs as numbers, and has no business with the rest
NOT_MEASURED: Any = None


@dataclass(frozen=True)
class Signals:
    """What was measured of one step's candidates, float64 on CPU; None where the method does not need it.

    The Gram problem has the rows phi_i (candidates) and phi_T (target), docs/method.md. Numbers may be
    non-finite: the methods drop such candidates, and refuse such a target.
    """

    gram_CC: np.ndarray = NOT_MEASURED
    """K_ij = <phi_i, phi_j>, (C, C)."""
    alignment_C: np.ndarray = NOT_MEASURED
    """b_i = <phi_i, phi_T>, (C,)."""
    target_norm_squared: float = NOT_MEASURED
    """c = <phi_T, phi_T>."""
    loss_C: np.ndarray = NOT_MEASURED
    """l_i under the model as it is now, nats per token, (C,)."""
    reference_loss_C: np.ndarray = NOT_MEASURED
    """l_i under the frozen reference model, (C,)."""
    squared_norm_C: np.ndarray = NOT_MEASURED
    """|g_i|^2 of the plain gradient over the scored weights, (C,)."""


@dataclass(frozen=True)
class Settings:
    """Settings, and what of the run's state a method may read."""

    ridge: float = 1.0
    """Shrinkage of weights, in units of the mean squared norm of the phi_i that are weighted; >= 0, may be
    infinite."""
    temperature: float = 0.9
    """Of a method that draws at random; > 0."""
    learning_rate: float = 1e-4
    """Of the update that is about to be made."""


@dataclass(frozen=True)
class Selection:
    """Kept candidates and their weights, the same on every rank.

    ``indices`` are positions in the step's candidates over all ranks, int64, in the order the method kept
    them, at most ``keep`` (``full`` alone keeps all) and at least one; ``weights`` are float64, positive, sum
    to 1 and stand in the same order. A sample that would weigh 0 is not kept. There are no negative weights:
    where a method's source has them, it says what becomes of them here.
    """

    indices: np.ndarray
    """int64 (K,)."""
    weights: np.ndarray
    """float64 (K,), sum 1."""
    fallback: bool = False
    """The method's own rule kept nothing, since no candidate is aligned with the target or its gradient is
    zero: uniform weights on the best aligned ones. Methods that rank keep the best of the bad instead, and
    never fall back."""
    dropped: tuple[int, ...] = ()
    """Candidates whose numbers were not finite; never kept."""
    residual: Optional[float] = None
    """|sum_i s w_i phi_i - phi_T| / |phi_T| at the best common scale s >= 0: 0 is a perfect match, 1 is
    none."""
    cosine: Optional[float] = None
    """Cosine of the combined update sum_i w_i phi_i to the target's; like ``residual`` None where it has no
    meaning (no Gram, a zero target)."""

    def __post_init__(self):
        num_kept, total = len(self.indices), float(np.sum(self.weights))
        assert num_kept == len(self.weights) == len(np.unique(self.indices)) > 0, (
            f"kept {self.indices}, weights {self.weights}"
        )
        assert np.all(self.weights > 0) and abs(total - 1) < 1e-9, (
            f"{num_kept} weights with sum {total}: {self.weights}"
        )


@dataclass(frozen=True)
class Method:
    """One selection method, under the name that the configuration knows it by."""

    name: str
    """As in ``selection.method``."""
    needs: Needs
    """nothing: no candidate is looked at, ``signals`` is None. loss: a forward of the candidates.
    reference_loss: one more, of the reference model. norm: forward and backward of the candidates. gram:
    these, the target's and the products of all."""
    select: Callable[..., Selection] = field(repr=False)
    """``select(signals, keep, num_candidates, rng, settings)``, pure and on rank 0 alone; ``keep`` is at
    least 1."""
    geometry: Optional[Geometry] = None
    """The space of phi that belongs to the method; None leaves it to ``selection.geometry``."""
    reads_learning_rate: bool = False
    """Whether ``select`` uses ``Settings.learning_rate``, which is then one for all scored weights."""

    @property
    def scores_gradients(self) -> bool:
        """Whether candidates take a backward."""
        return self.needs in ("norm", "gram")
