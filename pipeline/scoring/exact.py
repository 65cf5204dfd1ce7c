# C candidates, R rows of this rank, W ranks, B samples, T tokens, I in_features, O out_features,
# n elements of a fragment
"""The `exact` Gram backend: per-sample gradients travel to the Adam moments, never the other way.

    every rank, layer by layer in the scoring backward         owner of a slice of the moments
      G_i = output_grad_i' activation_i  (R, O, I)     --->    rows (C, n) and target (n), times its own D
      in bounded chunks of whole weight rows (O)               partial Gram += X X',   X = [rows; target]

Products fill the upper triangle; the lower one is its mirror. A rank alone takes its rows where they are
formed. Partial Grams are summed over ranks. One exchange travels while the next rows are computed. The target
pass comes first and leaves its mean gradient with the owners (n floats per rank, as much as a gradient
partition); then come the candidates. With several scoring micro-batches a layer's rows wait for the last one,
as gradients or as factors, whichever is smaller.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Optional

import torch

from pipeline.ranks.collectives import Collectives
from pipeline.scoring.contraction import CACHE_BYTES, Contraction, choose
from pipeline.scoring.factors import num_samples, per_sample_gradient
from pipeline.scoring.gram import GramProblem, refuse_missing_rows
from pipeline.scoring.metric import Metric, may_hold_zeros
from pipeline.scoring.moments import Fragment
from pipeline.scoring.stopwatch import Stopwatch
from pipeline.scoring.token_products import TokenProducts

PIECE_BYTES = 1 << 20
"""On CPU: elements of all candidates that are scaled and multiplied while in a core's own cache."""
MOST_COLUMNS = 1 << 15
"""On CPU: terms of a sum in float32; such sums are added in float64."""
BLOCK_ROWS = 8


def held_bytes(shapes: dict[str, tuple[int, int]], num_held: int, num_tokens: int, element_size: int) -> int:
    """Bytes on a rank of ``num_held`` candidates that ``ExactGram.add`` keeps until the last micro-batch."""
    return num_held * element_size * sum(min(o * i, num_tokens * (o + i)) for o, i in shapes.values())


class ExactGram:
    """Gram matrix of the rows {C candidates, target} of one look, from every per-sample gradient."""

    features_Rk: Optional[torch.Tensor] = None
    """None: rows go to the owners piece by piece and are whole nowhere."""

    def __init__(self, problem: GramProblem, collectives: Collectives, watch: Stopwatch):
        self.problem, self.collectives, self.watch = problem, collectives, watch
        self.owners, self.own = problem.owners, problem.own
        num_candidates = problem.num_rows * collectives.world_size
        self.gram = torch.zeros(
            num_candidates + 1, num_candidates + 1, dtype=torch.float64, device=collectives.device
        )
        self._dtype = torch.float64 if problem.element_size == 8 else torch.float32  # of sums
        self.target = self._zeros() if problem.target is None else problem.target
        self.num_scaled = 0
        self.num_without_scale: int | torch.Tensor = 0
        # The rows or factors of earlier micro-batches, by layer, and the number of their candidates.
        self._waiting: dict[str, list] = defaultdict(list)
        self._num_waiting: dict[str, int] = defaultdict(int)
        self._workspace: Optional[torch.Tensor] = None  # of _rows
        self._chunks: list[tuple[str, int, torch.Tensor]] = []  # (name, first element, rows_Rn) not sent yet
        # Bytes that each owner will receive with the next exchange.
        self._landing = [0] * collectives.world_size
        # The exchange under way: (pieces that will arrive here, a function that waits for them).
        self._travelling: Optional[tuple[list, Callable]] = None
        self._is_target = problem.target is None
        # Alone nothing is sent, and on a CPU chunks that stay in cache are faster.
        stays_here = collectives.world_size == 1 and collectives.device.type == "cpu"
        self._bound = min(CACHE_BYTES, problem.exchange_bytes) if stays_here else problem.exchange_bytes
        is_kept = problem.keeps_target or problem.target is not None
        may_go_by_tokens = not (problem.needs_moments or is_kept)
        self.plan = {
            name: self._choose(name, problem.num_rows, may_go_by_tokens, problem.contraction)
            for name in self.owners.shapes
        }
        # The target is one row, so its chunks are longer.
        self._target_plan = {name: self._choose(name, 1, False, "auto") for name in self.owners.shapes}
        self._token_products = TokenProducts(collectives, self.gram)

    def _zeros(self) -> dict[str, torch.Tensor]:
        """The target's row before anything was added to it."""
        return {
            name: torch.zeros(self.own[name].numel, dtype=self._dtype, device=self.collectives.device)
            for name in self.owners.shapes
            if name in self.own
        }

    def _choose(self, name: str, num_rows: int, may_go_by_tokens: bool, forced: str) -> Contraction:
        return choose(
            self.owners.shapes[name],
            num_rows,
            self.collectives.world_size,
            self.problem.num_tokens,
            self.collectives.world_size * num_rows * self.problem.element_size,
            max(end - start for start, end in self.owners.slices[name]),
            self._bound,
            may_go_by_tokens,
            forced,
        )

    # -- the two passes; each method runs inside the scoring backward --

    def add_target(self, layer: str, activation_BTI: torch.Tensor, output_grad_BTO: torch.Tensor) -> None:
        """Take a micro-batch of target samples, whose losses are weighted: gradients simply add."""
        with self._charged_to("gram"):
            if self._by_tokens(layer):
                self._token_products.add_target(layer, activation_BTI, output_grad_BTO)
                return
            activation_NI, output_grad_NO = activation_BTI.flatten(0, 1), output_grad_BTO.flatten(0, 1)
            for first, last in self._chunk_rows(layer, self._target_plan):
                grad_oI = output_grad_NO[:, first:last].T @ activation_NI
                self._send(layer + ".weight", first * activation_NI.shape[1], grad_oI.reshape(1, -1))

    def finish_target(self) -> None:
        self._drain()
        self._is_target = False
        if self.problem.compensates_momentum:
            for name, target_n in self.target.items():
                fragment = self.own[name]
                assert fragment.exp_avg is not None, name
                exp_avg = fragment.exp_avg.to(target_n.device, torch.float32)
                target_n.sub_(exp_avg, alpha=fragment.beta1).div_(1 - fragment.beta1)

    def add(
        self,
        layer: str,
        activation_BTI: torch.Tensor,
        output_grad_BTO: torch.Tensor,
        lengths: Optional[list[int]] = None,
    ) -> None:
        """Take a micro-batch of candidates, which waits until all R of the layer are there."""
        with self._charged_to("gram"):
            num_there = self._num_waiting.pop(layer, 0) + num_samples(activation_BTI, lengths)
            if num_there < self.problem.num_rows:
                self._num_waiting[layer] = num_there
                self._waiting[layer].append(self._smaller(layer, activation_BTI, output_grad_BTO, lengths))
                return
            waited = [*self._waiting.pop(layer, []), (activation_BTI, output_grad_BTO, lengths)]
            if self._by_tokens(layer):
                self._token_products.add(layer, waited)
                return
            for first, last in self._chunk_rows(layer, self.plan):
                rows_RoI = self._rows(waited, first, last)
                self._send(layer + ".weight", first * activation_BTI.shape[2], rows_RoI.flatten(1))

    def _rows(self, waited: list[tuple], first: int, last: int) -> torch.Tensor:
        """Weight rows [first, last) of the gradients of all R candidates, from gradients or factors.

        A rank alone uses them at once, so that the next ones are written over them: on CPU new memory for
        each chunk would cost as much as the products that fill it.
        """
        some = waited[-1][0]  # an activation, or gradients: both end with I
        shape = (self.problem.num_rows, last - first, some.shape[-1])
        if self.collectives.world_size > 1:
            rows_RoI = some.new_empty(shape)
        else:
            if self._workspace is None or self._workspace.numel() < math.prod(shape):
                self._workspace = some.new_empty(math.prod(shape))
            rows_RoI = self._workspace[: math.prod(shape)].view(shape)
        parts = rows_RoI.split([_size(item) for item in waited])
        for item, part_BoI in zip(waited, parts):
            if len(item) == 1:
                part_BoI.copy_(item[0][:, first:last])
            else:
                activation_BTI, output_grad_BTO, lengths = item
                per_sample_gradient(activation_BTI, output_grad_BTO[:, :, first:last], lengths, part_BoI)
        return rows_RoI

    def _smaller(
        self, layer: str, activation_BTI: torch.Tensor, output_grad_BTO: torch.Tensor, lengths
    ) -> tuple:
        """The gradients ``(gradient_BOI,)`` or the factors of a waiting micro-batch, whichever take less."""
        factors = (activation_BTI.detach(), output_grad_BTO.detach(), lengths)
        out_features, in_features = self.owners.shapes[layer + ".weight"]
        gradients = num_samples(activation_BTI, lengths) * out_features * in_features
        is_smaller = gradients <= activation_BTI.numel() + output_grad_BTO.numel()
        return (per_sample_gradient(*factors),) if is_smaller and not self._by_tokens(layer) else factors

    def finish(self) -> torch.Tensor:
        """The full Gram, float64 (C + 1, C + 1), the same on every rank; the target is the last row."""
        refuse_missing_rows(self._num_waiting, self.problem.num_rows)
        self._drain()
        with self._charged_to("exchange"):
            return self.collectives.sum(self.gram.triu() + self.gram.triu(1).T)

    def _charged_to(self, stage: str):
        """The time of a stage, all of the target pass as one: the price of C candidates stays visible."""
        return self.watch("target" if self._is_target else stage)

    # -- to the owners --

    def _by_tokens(self, layer: str) -> bool:
        return self.plan[layer + ".weight"].way == "token_token"

    def _chunk_rows(self, layer: str, plan: dict[str, Contraction]):
        """(first, last) weight rows of each chunk."""
        out_features, step = self.owners.shapes[layer + ".weight"][0], plan[layer + ".weight"].rows
        for first in range(0, out_features, step):
            yield first, min(first + step, out_features)

    def _send(self, name: str, first: int, rows_Rn: torch.Tensor) -> None:
        if self.collectives.world_size == 1:
            self._arrive(name, first, rows_Rn)
            return
        chunk = (name, first, rows_Rn)
        column_bytes = self.collectives.world_size * rows_Rn.shape[0] * rows_Rn.element_size()
        owned = [
            sum(end - begin for *_, begin, end in self._overlaps([chunk], r))
            for r in range(self.collectives.world_size)
        ]
        landing = [before + column_bytes * numel for before, numel in zip(self._landing, owned)]
        if self._chunks and max(landing) > self._bound:
            self._flush()
            landing = [column_bytes * numel for numel in owned]
        self._chunks.append(chunk)
        self._landing = landing

    def _flush(self) -> None:
        """Send what waits, then take the exchange before, which has travelled while factors were computed.

        All ranks come here at the same points: chunk sizes follow from shapes, which are the same everywhere.
        """
        chunks, self._chunks, self._landing = self._chunks, [], [0] * self.collectives.world_size
        with self._charged_to("exchange"):
            pieces = []
            for rank in range(self.collectives.world_size):
                parts = [rows_Rn[:, begin:end] for _, rows_Rn, begin, end in self._overlaps(chunks, rank)]
                pieces.append(
                    parts[0] if len(parts) == 1 else torch.cat(parts or [chunks[0][2][:, :0]], dim=1)
                )
            wait = self.collectives.rows_to_owners(pieces)
        arriving = [
            (name, first + begin, end - begin)
            for (name, first), _, begin, end in self._overlaps(chunks, self.collectives.rank)
        ]
        before, self._travelling = self._travelling, (arriving, wait)
        del chunks, pieces, parts
        self._take(before)

    def _drain(self) -> None:
        """Wait until everything sent has been taken, on all ranks."""
        if self._chunks:
            self._flush()
        self._take(self._travelling)

    def _take(self, exchange) -> None:
        """Add the rows of an exchange to the target or to the Gram."""
        if exchange is None:
            return
        if exchange is self._travelling:
            self._travelling = None
        arriving, wait = exchange
        with self._charged_to("exchange"):
            received_WRn = wait()
        with self._charged_to("gram"):
            position = 0
            for name, first, numel in arriving:
                self._arrive(name, first, received_WRn[:, :, position : position + numel].flatten(0, 1))
                position += numel

    def _arrive(self, name: str, first: int, rows_Cn: torch.Tensor) -> None:
        """Add rows to the target or to the Gram, from their element ``first`` of the weight on."""
        start = first - self.own[name].start  # in this rank's fragment
        if self._is_target:
            self.target[name][start : start + rows_Cn.shape[1]] += rows_Cn.to(self._dtype).sum(0)
        else:
            self._accumulate(name, start, rows_Cn)

    def _overlaps(self, chunks, rank: int):
        """((name, first element), rows_Rn, begin, end): the elements of each chunk that ``rank`` owns."""
        for name, first, rows_Rn in chunks:
            low, high = self.owners.slices[name][rank]
            begin, end = max(low - first, 0), min(high - first, rows_Rn.shape[1])
            if begin < end:
                yield (name, first), rows_Rn, begin, end

    def _accumulate(self, name: str, start: int, rows_Cn: torch.Tensor) -> None:
        """Add X X' to the Gram, in pieces that fit the cache; ``rows_Cn`` is scaled in place.

        X = [rows; target] * D; in update_to_gradient X = [rows * D; target].
        """
        num_candidates, numel = rows_Cn.shape
        target_n = self.target[name][start : start + numel]
        scale_n = self._scale(self.own[name], start, start + numel, rows_Cn.device)
        piece = numel
        if rows_Cn.device.type == "cpu":
            piece = max(8, min(PIECE_BYTES // (self._dtype.itemsize * num_candidates), MOST_COLUMNS) // 8 * 8)
        for low in range(0, numel, piece):
            columns = slice(low, low + piece)
            x_Cn, y_n = rows_Cn[:, columns], target_n[columns]
            if scale_n is None:
                x_Cn = x_Cn.to(self._dtype)
            else:
                # 16-bit rows become float32 in the same pass.
                is_wide = x_Cn.dtype == self._dtype
                x_Cn = x_Cn.mul_(scale_n[columns]) if is_wide else x_Cn * scale_n[columns]
                y_n = y_n * scale_n[columns] if self.problem.geometry.scales_target else y_n
            products = x_Cn.new_zeros(self.gram.shape)
            _write_upper_products(x_Cn, products[:-1, :-1])
            torch.mv(x_Cn, y_n, out=products[:-1, -1])
            products[-1, -1] = y_n @ y_n
            self.gram += products

    def _scale(
        self, fragment: Fragment, start: int, end: int, device: torch.device
    ) -> Optional[torch.Tensor]:
        """D of some elements; None where gradients stay as they are."""
        if not self.problem.geometry.needs_moments:
            return None
        assert fragment.exp_avg_sq is not None, fragment.name
        exp_avg_sq = fragment.exp_avg_sq[start:end].to(device, non_blocking=True)
        self.num_scaled += end - start
        # One look at the moments serves the mask and the count, which stays on the device, so that nothing
        # waits for it.
        holds_zeros = may_hold_zeros(exp_avg_sq)
        if holds_zeros:
            self.num_without_scale = self.num_without_scale + (exp_avg_sq == 0).sum()
        return Metric.of(fragment).scale(exp_avg_sq, self.problem.geometry, holds_zeros)


def _size(waiting: tuple) -> int:
    """Number of samples of a waiting micro-batch, which is gradients or factors."""
    return len(waiting[0]) if len(waiting) == 1 else num_samples(waiting[0], waiting[2])


def _write_upper_products(x_Cn: torch.Tensor, out_CC: torch.Tensor) -> None:
    """The upper triangle of X X', (C, C); what is below it stays or is a product too.

    X X' is symmetric, so on CPU each 8 rows are multiplied with themselves and the rows after them alone:
    little more than half of the operations, and 8 rows are what BLAS is fastest with in so thin a product. A
    card takes one product.
    """
    block = BLOCK_ROWS if x_Cn.device.type == "cpu" else len(x_Cn)
    for first in range(0, len(x_Cn), block):
        rows = slice(first, first + block)
        torch.mm(x_Cn[rows], x_Cn[first:].T, out=out_CC[rows, first:])
