# C candidates, R candidates of this rank, W ranks, T tokens, N target tokens of a rank, O out_features,
# I in_features
"""The token-token contraction: entries of the Gram from inner products of tokens, if the metric factors.

    K_ij = sum_st (output_grad_is . output_grad_jt) (activation_is . activation_jt)

Each rank gathers the factors of all and fills the rows of its own candidates; the target is one long sample,
and every rank fills what its part of it has with the others. The sum over ranks is the whole matrix.
"""

from collections.abc import Iterable
from typing import Optional

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from pipeline.ranks.collectives import Collectives

BLOCK_ELEMENTS = 1 << 25  # products of tokens that exist at a time


class TokenProducts:
    """Products added to ``gram`` (C + 1, C + 1) by layer; the target comes first, and waits as factors."""

    def __init__(self, collectives: Collectives, gram: torch.Tensor):
        self.collectives, self.gram = collectives, gram
        self._target: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def add_target(self, layer: str, activation_BTI: torch.Tensor, output_grad_BTO: torch.Tensor) -> None:
        self._target.setdefault(layer, []).append(
            (activation_BTI.detach().flatten(0, 1), output_grad_BTO.detach().flatten(0, 1))
        )

    def add(
        self, layer: str, micro_batches: list[tuple[torch.Tensor, torch.Tensor, Optional[list[int]]]]
    ) -> None:
        """Add all candidates of this rank: [(activation_BTI, output_grad_BTO, lengths)], of unequal T."""
        *factors, lengths = zip(*micro_batches)
        activation_RTI, output_grad_RTO = (_joined(map(_rows, parts, lengths)) for parts in factors)
        target_NI, target_NO = (torch.cat(parts) for parts in zip(*self._target.pop(layer)))
        num_rows, num_tokens = activation_RTI.shape[:2]
        sizes = torch.tensor([num_tokens, len(target_NI)], device=self.gram.device)
        longest, longest_target = self.collectives.gather(sizes).amax(0).tolist()
        # [candidate 0 | ... | candidate R-1 | target part], each padded with zeros, which add nothing
        joined = []
        for tokens_RTx, target_Nx in ((activation_RTI, target_NI), (output_grad_RTO, target_NO)):
            candidates_x = F.pad(tokens_RTx, (0, 0, 0, longest - num_tokens)).flatten(0, 1)
            joined.append(
                torch.cat([candidates_x, F.pad(target_Nx, (0, 0, 0, longest_target - len(target_Nx)))])
            )
        everyone = [self.collectives.gather(own).flatten(0, 1) for own in joined]  # rank by rank

        borders = [longest] * num_rows + [longest_target]
        column_of_block = self._positions(num_rows, range(self.collectives.world_size))
        own_rows = self._positions(num_rows, [self.collectives.rank])
        first = 0
        for row, size in zip(own_rows, borders):
            self._add_row(
                row, [own[first : first + size] for own in joined], everyone, borders, column_of_block
            )
            first += size

    def _positions(self, num_rows: int, ranks) -> list[int]:
        """Row of the Gram matrix for every block of tokens; all ranks' target parts share the last."""
        return [
            position
            for rank in ranks
            for position in [*range(rank * num_rows, (rank + 1) * num_rows), len(self.gram) - 1]
        ]

    def _add_row(
        self,
        row: int,
        own: list[torch.Tensor],
        everyone: list[torch.Tensor],
        borders: list[int],
        columns: list[int],
    ):
        total_tokens = len(everyone[0])
        products = torch.zeros(
            total_tokens, device=self.gram.device, dtype=torch.promote_types(own[0].dtype, torch.float32)
        )
        step = max(1, BLOCK_ELEMENTS // total_tokens)
        for first in range(0, len(own[0]), step):
            tokens = slice(first, first + step)
            pairs = (own[0][tokens] @ everyone[0].T) * (own[1][tokens] @ everyone[1].T)
            products += pairs.sum(0, dtype=products.dtype)
        blocks = products.double().split(borders * self.collectives.world_size)
        for column, block in zip(columns, blocks):
            self.gram[row, column] += block.sum()


def _rows(part_BTx: torch.Tensor, lengths: Optional[list[int]]) -> torch.Tensor:
    """Each sample as a row (B, T, .), with zeros behind the shorter ones of a packed row."""
    return part_BTx if lengths is None else pad_sequence(part_BTx[0].split(lengths), batch_first=True)


def _joined(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    parts = list(parts)
    longest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])
