# C candidates, K kept
"""The contract of a selection method: its input and its output.

A method is a pure function ``select(signals, keep, num_candidates, rng, settings) -> Selection``
in a file named like the method, which ends with ``METHOD = Method(name, needs, select)``. It
gets what ``needs`` says, and the run pays for no more. ``rng`` is a ``numpy.random.Generator``,
seeded with the run's seed and the step.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Optional

import numpy as np

Needs = Literal["nothing", "loss", "reference_loss", "norm", "gram"]


@dataclass(frozen=True)
class Signals:
    """Measurements of one look's candidates, float64 on CPU; None where the method does not need them.

    The Gram problem has the rows phi_i (candidates) and phi_T (target), docs/method.md. Numbers may be
    non-finite: the methods drop such candidates, and refuse such a target.
    """

    gram_CC: Optional[np.ndarray] = None
    """K_ij = <phi_i, phi_j>, (C, C)."""
    alignment_C: Optional[np.ndarray] = None
    """b_i = <phi_i, phi_T>, (C,)."""
    target_norm_squared: Optional[float] = None
    """c = <phi_T, phi_T>."""
    loss_C: Optional[np.ndarray] = None
    """l_i under the model as it is now, nats per token, (C,)."""
    reference_loss_C: Optional[np.ndarray] = None
    """l_i under the frozen reference model, (C,)."""
    squared_norm_C: Optional[np.ndarray] = None
    """|g_i|^2 of the plain gradient over the scored weights, (C,)."""

    @property
    def gram(self) -> "GramSignals":
        """The Gram problem of a look that has formed it."""
        assert self.gram_CC is not None and self.alignment_C is not None, (
            "the method declares no need of a Gram"
        )
        assert self.target_norm_squared is not None
        return GramSignals(self.gram_CC, self.alignment_C, self.target_norm_squared)


@dataclass(frozen=True)
class GramSignals:
    """The Gram problem alone, for the solvers."""

    gram_CC: np.ndarray
    alignment_C: np.ndarray
    target_norm_squared: float


@dataclass(frozen=True)
class Settings:
    """Settings, and the part of the run's state that a method may read."""

    ridge: float = 1.0
    """Shrinkage of weights, in units of the mean squared norm of the phi_i that are weighted.

    It is at least 0 and may be infinite.
    """
    temperature: float = 0.9
    """Temperature of a method that draws at random; > 0."""
    learning_rate: float = 1e-4
    """Learning rate of the next update."""


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
    """Whether the method's own rule kept nothing.

    No candidate is aligned with the target, or its gradient is zero, and the best aligned ones have uniform
    weights. Methods that rank keep the best of the bad instead, and never fall back.
    """
    dropped: tuple[int, ...] = ()
    """Candidates whose numbers were not finite; never kept."""
    residual: Optional[float] = None
    """|sum_i s w_i phi_i - phi_T| / |phi_T| at the best common scale s >= 0: 0 if it matches, 1 at worst."""
    cosine: Optional[float] = None
    """Cosine of the combined update sum_i w_i phi_i to the target's.

    Like ``residual`` it is None where it has no meaning (no Gram, a zero target).
    """

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
    """One selection method, by its name in the configuration."""

    name: str
    """Value of ``selection.method``."""
    needs: Needs
    """Kind of the signals that the method needs, and with it the cost of a look.

    nothing: no candidate is looked at, ``signals`` is None. loss: a forward of the candidates.
    reference_loss: one more, of the reference model. norm: forward and backward of the candidates. gram:
    these, the target's and the products of all.
    """
    select: Callable[..., Selection] = field(repr=False)
    """``select(signals, keep, num_candidates, rng, settings)``, pure.

    It runs on rank 0 alone; ``keep`` is at least 1.
    """
    geometry: Optional[str] = None
    """Name of the space of phi (pipeline/geometry.py) that belongs to the method.

    None leaves it to ``selection.geometry``.
    """
    reads_learning_rate: bool = False
    """Whether ``select`` uses ``Settings.learning_rate``, which is then one for all scored weights."""

    @property
    def looks_at_candidates(self) -> bool:
        """Whether candidates take a forward at least."""
        return self.needs != "nothing"

    @property
    def takes_backward(self) -> bool:
        """Whether candidates take a backward, so that the scored layers hand over factors."""
        return self.needs in ("norm", "gram")

    @property
    def needs_norms(self) -> bool:
        """Whether each sample's own gradient is enough, without products with others."""
        return self.needs == "norm"

    @property
    def needs_target(self) -> bool:
        """Whether target samples are measured too, and the products of all: the Gram problem."""
        return self.needs == "gram"

    @property
    def needs_reference(self) -> bool:
        """Whether candidates take a forward of the reference model."""
        return self.needs == "reference_loss"
