"""Adam's metric from its state: the diagonal that turns a gradient into what the optimizer would make of it.

    D = 1 / (sqrt(exp_avg_sq / (1 - beta2^s)) + eps)          s updates done, eps outside the root

A geometry takes a power of it (pipeline/geometry.py).
"""

from dataclasses import dataclass
from typing import Optional

import torch

from pipeline.geometry import Geometry
from pipeline.scoring.moments import Fragment

SCALE_BYTES = 56
"""Memory traffic of ``Metric.scale`` for one element, and of the use of what it gives.

Division, root, eps and reciprocal take 8 each, the comparison 5, the masked fill 9. Then zeros are counted
(6), and the product reads the result (4).
"""


@dataclass(frozen=True)
class Metric:
    """The numbers of one fragment's optimizer that enter D, beside ``exp_avg_sq`` itself."""

    correction: float
    """1 - beta2^s, by which ``exp_avg_sq`` is divided; 1 for an optimizer without bias correction."""
    eps: float

    @classmethod
    def of(cls, fragment: Fragment) -> "Metric":
        """The metric as the fragment's optimizer has it now."""
        return cls(
            1 - fragment.beta2**fragment.step if fragment.bias_correction else 1.0,
            fragment.eps,
        )

    def scale(
        self, exp_avg_sq: torch.Tensor, geometry: Geometry, holds_zeros: Optional[bool] = None
    ) -> torch.Tensor:
        """Factors of a candidate's gradient elements, float32, in the shape of ``exp_avg_sq``.

        ``holds_zeros`` is what ``may_hold_zeros`` says of it, if the caller has asked already.

        An element that never had a gradient (exp_avg_sq = 0) gets 0, not 1/eps: the state holds no scale for
        it yet. This is no corner case: lora_A has exactly zero gradient in the first update, and 1/eps = 1e8
        would drown all other elements.
        """
        if not geometry.needs_moments:
            return torch.ones_like(exp_avg_sq, dtype=torch.float32)
        # 1 / (sqrt(v / c) + eps) = sqrt(c) / (sqrt(v) + eps sqrt(c)): a pass less over the elements
        root = self.correction**0.5
        denominator = exp_avg_sq.float().sqrt().add_(self.eps * root)
        if geometry.power == 1:
            scaled = torch.div(root, denominator, out=denominator)
        else:
            assert geometry.power == 0.5, geometry  # no geometry has another power
            scaled = denominator.div_(root).rsqrt_()
        if holds_zeros is None:
            holds_zeros = may_hold_zeros(exp_avg_sq)
        return scaled.masked_fill_(exp_avg_sq == 0, 0) if holds_zeros else scaled


def may_hold_zeros(exp_avg_sq: torch.Tensor) -> bool:
    """Whether an element may be zero, so that a mask is needed.

    On a CPU the answer is looked up, since the masks would cost more than all the rest. On a card the look
    would cost a wait, so the answer is True unseen.
    """
    return exp_avg_sq.device.type != "cpu" or exp_avg_sq.numel() == 0 or not exp_avg_sq.min() > 0
