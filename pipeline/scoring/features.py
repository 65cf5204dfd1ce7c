# C candidates, R candidates of this rank, B samples, T tokens, O out_features, I in_features, k features,
# W ranks
"""Random features of every row instead of the row: the common part of `projected` and `factored`.

    every rank, layer by layer in the scoring backward      at the end of the pass
      features (B, k_out, k_in) of P phi_i Q         --->   rows (R + 1, k) go to W owners of k / W columns,
      kept in rows (R + 1, k)                               partial Gram += X X', summed over ranks

The last row is this rank's part of the target. Features are linear in the gradient, so that row takes target
micro-batches and momentum as they come, and ranks' parts add up. Nothing of a layer outlives its turn.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Optional

import torch

from pipeline.ranks.collectives import Collectives
from pipeline.scoring.factors import num_samples
from pipeline.scoring.gram import GramProblem, refuse_missing_rows
from pipeline.scoring.moments import Fragment
from pipeline.scoring.projection import Projection
from pipeline.scoring.stopwatch import Stopwatch


class FeatureGram(ABC):
    """Gram matrix of the rows {C candidates, target} of one look, from projected features."""

    def __init__(self, problem: GramProblem, collectives: Collectives, watch: Stopwatch):
        self.problem, self.collectives, self.watch = problem, collectives, watch
        self.owners = problem.owners
        self.own = {name: part for name, part in problem.own.items() if name in problem.owners.shapes}
        self.num_scaled = 0
        self.num_without_scale: int | torch.Tensor = 0
        self.projections = {
            name: Projection(shape, problem.projection_size, problem.seed, name)
            for name, shape in self.owners.shapes.items()
        }
        self._columns, width = {}, 0
        for name, projection in self.projections.items():
            self._columns[name] = slice(width, width + projection.width)
            width += projection.width
        self.features_Rk = torch.zeros(problem.num_rows + 1, width, device=collectives.device)
        for name, target_k in (problem.target or {}).items():
            self.features_Rk[-1, self._columns[name]] = target_k
        self._num_done: dict[str, int] = defaultdict(int)  # candidates whose features of a layer are there
        self._is_target = problem.target is None

    @property
    def target(self) -> dict[str, torch.Tensor]:
        """This rank's part of the target's row, (k,) for each weight."""
        return {name: self.features_Rk[-1, columns].clone() for name, columns in self._columns.items()}

    @abstractmethod
    def features(
        self,
        name: str,
        activation_BTI: torch.Tensor,
        output_grad_BTO: torch.Tensor,
        lengths: Optional[list[int]] = None,
    ) -> torch.Tensor:
        """Projected phi_i of each sample, (B, k_out, k_in); ``lengths`` as for ``per_sample_gradient``."""

    @abstractmethod
    def moment_features(self, name: str, fragment: Fragment) -> torch.Tensor:
        """This rank's part of the projected phi of exp_avg, (k_out, k_in)."""

    def add_target(self, layer: str, activation_BTI: torch.Tensor, output_grad_BTO: torch.Tensor) -> None:
        """Take a micro-batch of target samples, whose losses are weighted: gradients simply add."""
        with self.watch("target"):
            name = layer + ".weight"
            merged = self.features(
                name, activation_BTI.flatten(0, 1)[None], output_grad_BTO.flatten(0, 1)[None]
            )
            self.features_Rk[-1, self._columns[name]] += merged.flatten()

    def finish_target(self) -> None:
        self._is_target = False
        if self.problem.compensates_momentum:
            for name, fragment in self.own.items():
                part_k = self.features_Rk[-1, self._columns[name]]
                if fragment.numel:
                    part_k.sub_(self.moment_features(name, fragment).flatten(), alpha=fragment.beta1)
                part_k.div_(1 - fragment.beta1)

    def add(
        self,
        layer: str,
        activation_BTI: torch.Tensor,
        output_grad_BTO: torch.Tensor,
        lengths: Optional[list[int]] = None,
    ) -> None:
        """Take a micro-batch of candidates. Features are small: none waits for another."""
        with self.watch("gram"):
            name, first = layer + ".weight", self._num_done[layer + ".weight"]
            self._num_done[name] = first + num_samples(activation_BTI, lengths)
            features_Bk = self.features(name, activation_BTI, output_grad_BTO, lengths).flatten(1)
            self.features_Rk[first : self._num_done[name], self._columns[name]] = features_Bk

    def finish(self) -> torch.Tensor:
        """The full Gram, float64 (C + 1, C + 1), the same on every rank; the target is the last row."""
        refuse_missing_rows(self._num_done, self.problem.num_rows)
        world_size, width = self.collectives.world_size, self.features_Rk.shape[1]
        num_candidates = world_size * (len(self.features_Rk) - 1)
        gram = self.features_Rk.new_zeros((num_candidates + 1, num_candidates + 1), dtype=torch.float64)
        step = max(
            world_size,
            self.problem.exchange_bytes // (self.features_Rk.element_size() * len(self.features_Rk)),
        )
        for first in range(0, width, step):
            with self.watch("exchange"):
                pieces = torch.tensor_split(self.features_Rk[:, first : first + step], world_size, dim=1)
                received_WRk = self.collectives.rows_to_owners(list(pieces))()
            with self.watch("gram"):
                x = torch.cat([received_WRk[:, :-1].flatten(0, 1), received_WRk[:, -1].sum(0, keepdim=True)])
                gram += x @ x.T
        with self.watch("exchange"):
            return self.collectives.sum(gram)


def whole_rows(values_n: torch.Tensor, start: int, in_features: int) -> tuple[int, torch.Tensor]:
    """(first row, rows (r, I)) of the slice of a flattened weight from ``start`` on, padded with zeros."""
    first, before = divmod(start, in_features)
    after = -(before + len(values_n)) % in_features
    return first, torch.nn.functional.pad(values_n, (before, after)).view(-1, in_features)
