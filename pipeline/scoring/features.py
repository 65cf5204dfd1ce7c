# C candidates, R candidates of this rank, B samples, T tokens, O out_features, I in_features, k features, W ranks
"""What the `projected` and `factored` backends share: few random features of every row instead of the row.

    every rank, layer by layer in the scoring backward      at the end of the pass
      features (B, k_out, k_in) of P phi_i Q         --->   rows (R + 1, k) go to W owners of k / W columns each,
      kept in rows (R + 1, k)                               partial Gram += X X', summed over ranks

The last row is this rank's part of the target.  Features are linear in the gradient, so that row takes target
micro-batches and momentum as they come, and ranks' parts add up.  Nothing of a layer outlives its turn in the
backward.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Optional

import torch

from pipeline.ranks.collectives import Collectives
from pipeline.scoring.factors import num_samples
from pipeline.scoring.moments import Fragment
from pipeline.scoring.owners import OwnerMap
from pipeline.scoring.projection import Projection
from pipeline.scoring.stopwatch import Stopwatch


class FeatureGram(ABC):
    """Gram matrix of the rows {C candidates, target} of one step, from projected features.

    Args:
        owners, own, geometry, momentum, num_rows, exchange_bytes: as for ``ExactGram``.
        projection_size: largest k_out and k_in of a layer.
        seed: of the projections, equal on all ranks, another at every pass.
        target: as for ``ExactGram``, and of the same seed.
    """

    def __init__(
        self,
        owners: OwnerMap,
        own: list[Fragment],
        collectives: Collectives,
        watch: Stopwatch,
        geometry: str,
        momentum: str,
        num_rows: int,
        exchange_bytes: int,
        projection_size: int,
        seed: str,
        target: Optional[dict[str, torch.Tensor]] = None,
    ):
        self.owners, self.collectives, self.watch = owners, collectives, watch
        self.own = {fragment.name: fragment for fragment in own if fragment.name in owners.shapes}
        self.geometry, self.momentum, self.exchange_bytes = geometry, momentum, exchange_bytes
        self.num_scaled = 0
        self.num_without_scale: int | torch.Tensor = 0
        self.projections = {
            name: Projection(shape, projection_size, seed, name) for name, shape in owners.shapes.items()
        }
        self._columns, width = {}, 0
        for name, projection in self.projections.items():
            self._columns[name] = slice(width, width + projection.width)
            width += projection.width
        # Of this rank's candidates, in the order in which they are added, and of its part of the target.
        self.rows = torch.zeros(num_rows + 1, width, device=collectives.device)
        for name, target_k in (target or {}).items():
            self.rows[-1, self._columns[name]] = target_k
        self._num_done: dict[str, int] = defaultdict(int)  # candidates whose features of a layer are there
        self._is_target = not target

    @property
    def target(self) -> dict[str, torch.Tensor]:
        """This rank's part of the target's row, (k,) for each weight."""
        return {name: self.rows[-1, columns].clone() for name, columns in self._columns.items()}

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
        """Add a micro-batch of target samples; their losses are already weighted, so that gradients simply
        add."""
        with self.watch("target"):
            name = layer + ".weight"
            merged = self.features(
                name, activation_BTI.flatten(0, 1)[None], output_grad_BTO.flatten(0, 1)[None]
            )
            self.rows[-1, self._columns[name]] += merged.flatten()

    def finish_target(self) -> None:
        self._is_target = False
        if self.momentum == "compensate":
            for name, fragment in self.own.items():
                part_k = self.rows[-1, self._columns[name]]
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
        """Take a micro-batch of candidates; ``lengths`` as for ``per_sample_gradient``."""
        with self.watch("gram"):
            name, first = layer + ".weight", self._num_done[layer + ".weight"]
            self._num_done[name] = first + num_samples(activation_BTI, lengths)
            features_Bk = self.features(name, activation_BTI, output_grad_BTO, lengths).flatten(1)
            self.rows[first : self._num_done[name], self._columns[name]] = features_Bk

    hold = add  # features are small: no micro-batch waits for the last one

    def finish(self) -> torch.Tensor:
        """The full Gram, float64 (C + 1, C + 1), the same on every rank; the target is the last row."""
        world_size, width = self.collectives.world_size, self.rows.shape[1]
        num_candidates = world_size * (len(self.rows) - 1)
        gram = self.rows.new_zeros((num_candidates + 1, num_candidates + 1), dtype=torch.float64)
        step = max(world_size, self.exchange_bytes // (self.rows.element_size() * len(self.rows)))
        for first in range(0, width, step):
            with self.watch("exchange"):
                pieces = torch.tensor_split(self.rows[:, first : first + step], world_size, dim=1)
                received_WRk = self.collectives.rows_to_owners(list(pieces))()
            with self.watch("gram"):
                x = torch.cat([received_WRk[:, :-1].flatten(0, 1), received_WRk[:, -1].sum(0, keepdim=True)])
                gram += x @ x.T
        with self.watch("exchange"):
            return self.collectives.sum(gram)


def whole_rows(values_n: torch.Tensor, start: int, in_features: int) -> tuple[int, torch.Tensor]:
    """(first row, rows (r, I)) of a slice of a flattened weight that begins at element ``start``, with zeros
    around it."""
    first, before = divmod(start, in_features)
    after = -(before + len(values_n)) % in_features
    return first, torch.nn.functional.pad(values_n, (before, after)).view(-1, in_features)
