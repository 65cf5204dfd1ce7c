# B samples, T tokens, O out_features, I in_features
"""The `factored` Gram backend: a metric of rank one scales and projects factors, and forms no gradient.

    D^2_oi ~ u_o v_i
    phi_i   = D . (output_grad' activation) = (output_grad . u^1/2)' (activation . v^1/2)
    P phi_i Q = (output_grad . u^1/2 P')' (activation . v^1/2 Q)         2 T k (O + I) operations, not 2 T O I

u and v come from the row and column means of exp_avg_sq, as N. Shazeer, M. Stern, Adafactor (arXiv
1804.04235), section 3, keep them: the best approximation of rank one of a non-negative matrix in the
generalised Kullback-Leibler divergence. Between ranks only those sums move.

eps^2 is added under the root, as a stand-in for eps beside it: sqrt(v + eps^2) lies within a factor 2^1/2 of
sqrt(v) + eps, where a sum beside the root would not factor.
"""

from typing import Optional

import torch

from pipeline.ranks.collectives import Collectives
from pipeline.scoring.factors import per_sample_gradient
from pipeline.scoring.features import FeatureGram, whole_rows
from pipeline.scoring.gram import GramProblem
from pipeline.scoring.metric import Metric
from pipeline.scoring.moments import Fragment
from pipeline.scoring.stopwatch import Stopwatch


class FactoredGram(FeatureGram):
    """The Gram of random features, unbiased for its own metric.

    ``benchmarks.fidelity`` measures the distance of that metric from Adam's.
    """

    def __init__(self, problem: GramProblem, collectives: Collectives, watch: Stopwatch):
        super().__init__(problem, collectives, watch)
        self.metric = self._metric()
        self.target_metric = self.metric if self.problem.geometry.scales_target else self._unit_metric()

    def features(
        self,
        name: str,
        activation_BTI: torch.Tensor,
        output_grad_BTO: torch.Tensor,
        lengths: Optional[list[int]] = None,
    ) -> torch.Tensor:
        out_scale_O, in_scale_I = (self.target_metric if self._is_target else self.metric)[name]
        left_BTk = _scaled(output_grad_BTO, out_scale_O, self.projections[name].left(output_grad_BTO.device))
        right_BTk = _scaled(activation_BTI, in_scale_I, self.projections[name].right(activation_BTI.device))
        return per_sample_gradient(right_BTk, left_BTk, lengths).float()

    def moment_features(self, name: str, fragment: Fragment) -> torch.Tensor:
        out_scale_O, in_scale_I = self.target_metric[name]
        assert fragment.exp_avg is not None, name
        exp_avg = fragment.exp_avg.to(out_scale_O.device, torch.float32)
        first, exp_avg_rI = whole_rows(exp_avg, fragment.start, len(in_scale_I))
        right_rk = _scaled(exp_avg_rI, in_scale_I, self.projections[name].right(exp_avg.device))
        left_Ok = _scaled(
            torch.eye(len(out_scale_O), device=exp_avg.device),
            out_scale_O,
            self.projections[name].left(exp_avg.device),
        )
        return left_Ok[first : first + len(right_rk)].T @ right_rk

    def _metric(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """(O,) and (I,) factors of each weight, float32, from one all-reduce."""
        device = self.collectives.device
        if not self.problem.geometry.needs_moments:
            return self._unit_metric()
        sums = torch.zeros(
            sum(o + i for o, i in self.owners.shapes.values()), dtype=torch.float64, device=device
        )
        parts = dict(zip(self.owners.shapes, sums.split([o + i for o, i in self.owners.shapes.values()])))
        for name, fragment in self.own.items():
            if fragment.numel:
                assert fragment.exp_avg_sq is not None, name
                out_features, in_features = self.owners.shapes[name]
                exp_avg_sq = fragment.exp_avg_sq.to(device, torch.float32)
                first, block_rI = whole_rows(exp_avg_sq, fragment.start, in_features)
                parts[name][first : first + len(block_rI)] += block_rI.sum(1)
                parts[name][out_features:] += block_rI.sum(0)
        self.collectives.sum(sums)
        return {
            name: self._factors(part, self.own[name], self.owners.shapes[name])
            for name, part in parts.items()
        }

    def _unit_metric(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        device = self.collectives.device
        return {
            name: (torch.ones(o, device=device), torch.ones(i, device=device))
            for name, (o, i) in self.owners.shapes.items()
        }

    def _factors(
        self, sums: torch.Tensor, fragment: Fragment, shape: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out_features, in_features = shape
        metric = Metric.of(fragment)
        out_sum_O, in_sum_I = sums[:out_features] / metric.correction, sums[out_features:] / metric.correction
        eps_squared = metric.eps**2
        out_mean_O, in_mean_I = out_sum_O / in_features + eps_squared, in_sum_I / out_features + eps_squared
        power = -self.problem.geometry.power / 2  # exponent of exp_avg_sq, whose root stands in D
        # A row or column that never had a gradient has no scale yet: 0, as in metric.py.
        out_scale_O = ((out_mean_O / out_mean_O.mean()) ** power).masked_fill(out_sum_O == 0, 0)
        in_scale_I = (in_mean_I**power).masked_fill(in_sum_I == 0, 0)
        return out_scale_O.float(), in_scale_I.float()


def _scaled(rows: torch.Tensor, scale: torch.Tensor, projection) -> torch.Tensor:
    """rows (..., n) times scale (n,), projected to (..., k) where there is a projection (n, k)."""
    if projection is None:
        return rows * scale.to(rows.dtype)
    return rows @ projection.mul_(scale[:, None]).to(rows.dtype)
