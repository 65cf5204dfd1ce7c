# B samples, T tokens, O out_features, o some of them, I in_features
"""Norms of per-sample gradients, each sample for itself: no rank sends anything and no moments are read."""

from typing import Optional

import torch

from pipeline.scoring.factors import num_samples, per_sample_gradient


def squared_norm(
    activation_BTI: torch.Tensor, output_grad_BTO: torch.Tensor, lengths: Optional[list[int]], bound: int
) -> torch.Tensor:
    """|G_i|^2 of one layer, float64 (B,).

    The gradients exist as (B, o, I), with as many rows o at a time as ``bound`` bytes hold, at least one.
    ``lengths`` as for ``per_sample_gradient``.
    """
    size, in_features = num_samples(activation_BTI, lengths), activation_BTI.shape[2]
    rows = max(1, bound // (size * in_features * activation_BTI.element_size()))
    total_B = torch.zeros(size, dtype=torch.float64, device=activation_BTI.device)
    for part_BTo in output_grad_BTO.split(rows, dim=2):
        part_BoI = per_sample_gradient(activation_BTI, part_BTo, lengths).float()
        total_B += torch.linalg.vector_norm(part_BoI, dim=(1, 2)).double() ** 2
    return total_B
