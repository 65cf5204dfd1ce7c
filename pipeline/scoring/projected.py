# B samples, T tokens, O out_features, o some of them, I in_features
"""The `projected` Gram backend: Adam's exact metric, and random features of the scaled per-sample gradients.

    for each layer in the scoring backward:  D (O, I) from its owners, in bfloat16
      for chunks o of output rows:           features += P_o (D_o . output_grad_o' activation) Q

Moments stay with their owners; of each layer one D at a time is whole, and is forgotten at once. Two bytes
per parameter travel to every rank and scoring micro-batch, however many candidates there are, where the exact
backend sends four or two for each of them.
"""

from typing import Optional

import torch

from pipeline.scoring.contraction import CACHE_BYTES
from pipeline.scoring.factors import num_samples, per_sample_gradient
from pipeline.scoring.features import FeatureGram, whole_rows
from pipeline.scoring.metric import Metric
from pipeline.scoring.moments import Fragment


class ProjectedGram(FeatureGram):
    """The Gram of random features; in expectation the exact one, with D in bfloat16 between ranks."""

    def features(
        self,
        name: str,
        activation_BTI: torch.Tensor,
        output_grad_BTO: torch.Tensor,
        lengths: Optional[list[int]] = None,
    ) -> torch.Tensor:
        device, projection = activation_BTI.device, self.projections[name]
        size, (out_features, in_features) = num_samples(activation_BTI, lengths), self.owners.shapes[name]
        is_scaled = self.problem.geometry.scales_target or not self._is_target
        scale_OI = self._whole_scale(name) if is_scaled else None
        left_Ok, right_Ik = projection.left(device), projection.right(device)
        found = torch.zeros(size, *projection.sizes, device=device)
        bound = CACHE_BYTES if device.type == "cpu" else self.problem.exchange_bytes
        step = max(1, bound // (size * in_features * 4))
        for first in range(0, out_features, step):
            rows = slice(first, min(first + step, out_features))
            phi_BoI = per_sample_gradient(activation_BTI, output_grad_BTO[:, :, rows], lengths).float()
            if scale_OI is not None:
                phi_BoI *= scale_OI[rows]
            _add_projected(found, phi_BoI, rows, left_Ok, right_Ik)
        return found

    def moment_features(self, name: str, fragment: Fragment) -> torch.Tensor:
        device, projection = self.collectives.device, self.projections[name]
        in_features = self.owners.shapes[name][1]
        assert fragment.exp_avg is not None, name
        exp_avg = fragment.exp_avg.to(device, torch.float32)
        geometry = self.problem.geometry
        if geometry.needs_moments and geometry.scales_target:
            exp_avg = exp_avg * self._own_scale(fragment)
        first, phi_rI = whole_rows(exp_avg, fragment.start, in_features)
        found = torch.zeros(1, *projection.sizes, device=device)
        _add_projected(
            found,
            phi_rI[None],
            slice(first, first + len(phi_rI)),
            projection.left(device),
            projection.right(device),
        )
        return found[0]

    def _whole_scale(self, name: str):
        """D of a weight, (O, I); None in identity geometry. A collective."""
        if not self.problem.geometry.needs_moments:
            return None
        fragment = self.own.get(name)
        device = self.collectives.device
        own_n = (
            self._own_scale(fragment)
            if fragment is not None and fragment.numel
            else torch.empty(0, device=device)
        )
        if not self._is_target and fragment is not None:
            self.num_scaled += fragment.numel
            self.num_without_scale = self.num_without_scale + (own_n == 0).sum()
        if self.collectives.world_size > 1:
            with self.watch("exchange"):
                own_n = self.collectives.gather_slices(own_n.to(torch.bfloat16), self.owners.slices[name])
        return own_n.view(self.owners.shapes[name])

    def _own_scale(self, fragment: Fragment) -> torch.Tensor:
        assert fragment.exp_avg_sq is not None, fragment.name
        exp_avg_sq = fragment.exp_avg_sq.to(self.collectives.device, non_blocking=True)
        return Metric.of(fragment).scale(exp_avg_sq, self.problem.geometry)


def _add_projected(found_Bkk: torch.Tensor, phi_BoI: torch.Tensor, rows: slice, left_Ok, right_Ik) -> None:
    """Add P_o phi_o Q, for output rows o, to ``found_Bkk``; None stands for the unit matrix."""
    if right_Ik is not None:
        phi_BoI = phi_BoI @ right_Ik
    if left_Ok is None:
        found_Bkk[:, rows] += phi_BoI
    else:
        found_Bkk += left_Ok[rows].T @ phi_BoI
