# C candidates, R candidates of this rank, B samples, T tokens, O out_features, I in_features, k features
"""The contract of the Gram backends: a problem with the rows {candidates, target}, and their products.

    factors of the target,     layer by layer  -->  add_target ... finish_target
    factors of the candidates, layer by layer  -->  add ...        finish  -->  Gram (C + 1, C + 1)

The Gram is summed over ranks.
"""

from dataclasses import dataclass
from typing import Optional, Protocol

import torch

from pipeline.geometry import Geometry
from pipeline.scoring.moments import Fragment
from pipeline.scoring.owners import OwnerMap


@dataclass(frozen=True)
class GramProblem:
    """The rows whose products are wanted, as one rank knows them, and the limits of the work."""

    owners: OwnerMap
    """Map of the scored parameters."""
    own: dict[str, Fragment]
    """This rank's fragments of them by name, with live moments where ``needs_moments``."""
    geometry: Geometry
    compensates_momentum: bool
    """Whether g_T is replaced by (g_T - beta1 exp_avg) / (1 - beta1)."""
    num_rows: int
    """Candidates that each rank scores (R)."""
    num_tokens: int
    """Tokens of the longest candidate of all ranks (T)."""
    element_size: int
    """Bytes of an element of a factor."""
    exchange_bytes: int
    """Limit of one exchange to a rank (two exist at a time); one weight row of all candidates at least."""
    contraction: str = "auto"
    """``auto`` or one of the ways of contraction.py; for the ``exact`` backend."""
    projection_size: int = 32
    """Largest k_out and k_in of a layer; for the backends that project."""
    seed: str = ""
    """Seed of the projections, equal on all ranks, another at every look."""
    keeps_target: bool = False
    """Whether later problems take the target's row from this one, so that it must not wait as factors."""
    target: Optional[dict[str, torch.Tensor]] = None
    """The target's row of an earlier problem with the same state and seed (``GramBackend.target``).

    It spares this problem the target's pass; None where the row is still to be measured.
    """

    @property
    def needs_moments(self) -> bool:
        """Whether the fragments' moments are read."""
        return self.geometry.needs_moments or self.compensates_momentum


class GramBackend(Protocol):
    """One problem's Gram matrix in the making. Every rank calls every method, in the same order.

    ``add_target`` and ``add`` run inside the scoring backward and may exchange rows there.
    """

    num_scaled: int
    """Elements of this rank's fragments by whose moments candidates were scaled."""
    num_without_scale: int | torch.Tensor
    """Number of these that never had a gradient."""

    @property
    def target(self) -> dict[str, torch.Tensor]:
        """This rank's part of the target's row for each weight, once ``finish_target`` was called."""

    @property
    def features_Rk(self) -> Optional[torch.Tensor]:
        """Features (R + 1, k) of this rank's candidates, in the order of ``add``, and of its target part.

        None where rows are never formed at one place.
        """

    def add_target(self, layer: str, activation_BTI: torch.Tensor, output_grad_BTO: torch.Tensor) -> None:
        """Take a micro-batch of target samples, whose losses are weighted: gradients simply add."""

    def finish_target(self) -> None:
        """Close the target's row."""

    def add(
        self,
        layer: str,
        activation_BTI: torch.Tensor,
        output_grad_BTO: torch.Tensor,
        lengths: Optional[list[int]] = None,
    ) -> None:
        """Take a micro-batch of candidates, R of them in all; ``lengths`` as for ``per_sample_gradient``."""

    def finish(self) -> torch.Tensor:
        """The full Gram, float64 (C + 1, C + 1), the same on every rank; the target is the last row."""


def refuse_missing_rows(num_rows: dict[str, int], wanted: int) -> None:
    """Raises RuntimeError where a layer has handed over another number of candidates than ``wanted``: its
    rows would silently be missing in the Gram."""
    wrong = {layer: number for layer, number in num_rows.items() if number != wanted}
    if wrong:
        layer, number = next(iter(wrong.items()))
        raise RuntimeError(
            f"{len(wrong)} scored layers have not handed over each candidate once; '{layer}' has {number} of "
            f"{wanted}: its input is not (samples, tokens, features). Freeze it or leave it out of "
            "model.lora_targets"
        )
