"""Adam's metric from its state: the diagonal that turns a gradient into what the optimizer would make of it.

    D = 1 / (sqrt(exp_avg_sq / (1 - beta2^s)) + eps)          s updates done, eps outside the root

``geometry`` is the space in which updates are matched: ``update`` D g, ``curvature`` D^1/2 g, ``identity`` g.
In ``update_to_gradient`` candidates are D g and the target is g, so that products of the two are first-order
changes of the loss.
"""

import torch


def scale(
    geometry: str, exp_avg_sq: torch.Tensor, step: int, beta2: float, eps: float, bias_correction: bool
) -> torch.Tensor:
    """Factors by which a candidate's gradient elements are multiplied, float32, shape of ``exp_avg_sq``.

    An element that never had a gradient (exp_avg_sq = 0) gets 0, not 1/eps: the state holds no scale for it
    yet. This is no corner case: lora_A has exactly zero gradient in the first update, and 1/eps = 1e8 would
    drown all other elements.
    """
    if geometry == "identity":
        return torch.ones_like(exp_avg_sq, dtype=torch.float32)
    # 1 / (sqrt(v / c) + eps) = sqrt(c) / (sqrt(v) + eps sqrt(c)): a pass less over the elements
    root = (1 - beta2**step) ** 0.5 if bias_correction else 1.0
    denominator = exp_avg_sq.float().sqrt().add_(eps * root)
    is_root = geometry == "curvature"
    scaled = denominator.div_(root).rsqrt_() if is_root else torch.div(root, denominator, out=denominator)
    return scaled.masked_fill_(exp_avg_sq == 0, 0) if may_hold_zeros(exp_avg_sq) else scaled


def scales_target(geometry: str) -> bool:
    """Whether the target's row is scaled as the candidates' are."""
    return geometry != "update_to_gradient"


def may_hold_zeros(exp_avg_sq: torch.Tensor) -> bool:
    """False spares a CPU masks that cost more than all the rest; a card would have to be waited for."""
    return exp_avg_sq.device.type != "cpu" or exp_avg_sq.numel() == 0 or not exp_avg_sq.min() > 0
