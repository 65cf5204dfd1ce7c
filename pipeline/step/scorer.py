# C candidates, R candidates of this rank, B samples, T tokens, I in_features, O out_features, k features
"""From candidates to signals: factors meet moments in a Gram matrix, and its parts are summed over ranks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Optional

import numpy as np
import torch

from pipeline.config import SelectionConfig, geometry, needs_moments
from pipeline.data.sample import Sample
from pipeline.data.targets import TargetSet
from pipeline.geometry import IDENTITY
from pipeline.ranks.collectives import Collectives
from pipeline.scoring.backends import BACKENDS
from pipeline.scoring.engines import Engine
from pipeline.scoring.factors import factor_bytes
from pipeline.scoring.gram import GramBackend, GramProblem
from pipeline.scoring.moments import Fragment, fragments, loss_scale, whole_shape
from pipeline.scoring.norms import squared_norm
from pipeline.scoring.owners import OwnerMap
from pipeline.scoring.stopwatch import Stopwatch
from pipeline.selection.contract import Method, Signals
from pipeline.step.halves import num_riding, riders, taken_apart
from pipeline.step.look import Measured, Moments, Share, TargetRow
from pipeline.step.passes import Passes
from pipeline.step.retries import RowsPerPass, without_overflow


@dataclass(frozen=True)
class _Attempt:
    """One way to go through the samples."""

    rows_per_pass: int
    """Samples of this rank in one forward."""
    loss_scale: float
    """Factor of the losses in float16, else 1."""
    turn: int
    """Looks before this one: the target samples rotate with the looks, not with the steps."""


class Scorer:
    """Measures candidates as a method needs it. Every rank calls every method.

    Args:
        engine: its module and its Adam state measure the candidates.
        method: says what is measured.
        settings: how.
        targets: for a method that needs them.
        collectives: over the ranks that hold the same model.
        passes: forwards and backwards of the engine's module.
        reference_model: for a method that needs one.
        seed: of projections, the same on all ranks.
    """

    def __init__(
        self,
        engine: Engine,
        method: Method,
        settings: SelectionConfig,
        targets: Optional[TargetSet],
        collectives: Collectives,
        passes: Passes,
        reference_model: Optional[torch.nn.Module],
        seed: int,
    ):
        self.engine, self.collectives, self.passes = engine, collectives, passes
        self.method, self.settings, self.seed = method, settings, seed
        self.targets, self.reference_model = targets, reference_model
        self.geometry, self.needs_moments = geometry(settings), needs_moments(settings)
        self.rows_per_pass = RowsPerPass(settings.scoring_micro_batch_size)
        self.owners = self._owners()

    def _owners(self) -> OwnerMap:
        """Map of the scored weights. Raises ValueError where an element has no owner, or several."""
        shapes = dict[str, tuple[int, int]]()
        for name, layer in self.passes.layers.items():
            out_features, in_features = whole_shape(layer.weight)
            shapes[f"{name}.weight"] = (out_features, in_features)
        own = self.fragments() if shapes else {}
        owners = OwnerMap(shapes, list(own.values()), self.collectives)
        gaps = owners.gaps()
        if gaps:
            name, covered = next(iter(gaps.items()))
            raise ValueError(
                f"{len(gaps)} of {len(shapes)} scored weights are not each owned once by the ranks' "
                f"optimizers, first '{name}' with {covered:,} of {math.prod(shapes[name]):,} elements: train "
                "all scored weights with one AdamW, or report the set-up"
            )
        return owners

    # -- candidates --

    def share(self, samples: list[Sample], turn: Optional[int] = None) -> Share:
        """This rank's candidates as the beginning of a look. Every rank calls it.

        Args:
            samples: R of them.
            turn: looks that were made before, where the target is to be judged in halves too.

        Raises:
            ValueError: on all ranks, for unequal shares.
        """
        beside = self._riders(turn)
        longest = max((len(sample.input_ids) for sample in [*samples, *beside]), default=0)
        sizes = self.collectives.gather(torch.tensor([len(samples), longest], device=self.engine.device))
        counts = sizes[:, 0].tolist()
        if len(set(counts)) > 1 or not samples:
            raise ValueError(
                f"every rank must bring the same number of candidates, at least one; they bring {counts}"
            )
        watch, num_tokens = Stopwatch(self.engine.device), int(sizes[:, 1].max())
        bytes_before = self.collectives.bytes_sent
        return Share(samples, sum(counts), num_tokens, watch, bytes_before, turn, beside)

    def _riders(self, turn: Optional[int]) -> list[Sample]:
        """Target samples that this rank measures beside its candidates; none where halves have no use."""
        if turn is None or self.targets is None or not self.judges_halves:
            return []
        return riders(self.targets.batch(turn), self.collectives.rank, self.collectives.world_size)

    @property
    def judges_halves(self) -> bool:
        """Whether the target is measured in two halves: somebody asks, and its rows are of the candidates'
        kind."""
        is_alike = self.geometry.scales_target and not self.settings.compensates_momentum
        if self.targets is None or not (self.method.needs_target and is_alike):
            return False
        return self.settings.score_every == "auto" and num_riding(len(self.targets.batch(0))) > 0

    # -- moments --

    def moments(self, step: int) -> Moments:
        """This rank's part of the Adam state, read in place; addresses alone in the warm-up steps and for a
        method without moments.

        Raises RuntimeError, on all ranks, if there has been an update and moments are still missing.
        """
        if not self.method.needs_target:
            return Moments({})
        own = self.fragments()
        if not self.needs_moments or self._has_state(own, step):
            return Moments(own)
        return Moments(self.fragments(with_moments=False), is_warmup=True)

    def fragments(self, with_moments: bool = True) -> dict[str, Fragment]:
        """This rank's fragments of the scored weights by name, with live moments where the method needs them,
        else the addresses alone."""
        scored = {name + ".weight" for name in self.passes.layers}
        found = fragments(self.engine, with_moments and self.needs_moments)
        return {fragment.name: fragment for fragment in found if fragment.name in scored}

    def _has_state(self, own: dict[str, Fragment], step: int) -> bool:
        """Whether moments measure candidates; the first steps, and any before the first update, match the
        plain gradient instead."""
        missing = sum(f.numel for f in own.values() if f.exp_avg_sq is None or f.step == 0)
        num_missing = self.collectives.sum(torch.tensor(missing, device=self.engine.device)).item()
        # DeepSpeed's 16-bit wrappers at stage 0 take an empty step when they are made: state is there, and
        # holds nothing.
        has_updated = self.engine.global_steps > self.engine.skipped_steps
        if has_updated and num_missing:
            raise RuntimeError(
                f"after {self.engine.global_steps} updates {num_missing:,} scored elements have no Adam "
                "state: is the optimizer AdamW, and was its state loaded with the checkpoint? "
                "selection.geometry = identity needs none"
            )
        return step - self.engine.skipped_steps >= self.settings.warmup_steps and has_updated

    # -- factors, Gram, all-reduce --

    def measure(
        self,
        share: Share,
        moments: Moments,
        step: int,
        target: Optional[TargetRow] = None,
        keeps_target: bool = False,
    ) -> Measured:
        """Signals of the candidates of all ranks, in their order.

        Begins again with smaller forwards where memory runs out, and with a smaller loss scale where float16
        overflows, on all ranks together.

        Args:
            share: this rank's candidates.
            moments: what ``moments`` has read for this step.
            step: seeds projections.
            target: the target's row of an earlier pass under the same state, which spares this one the
                target.
            keeps_target: whether the row is wanted for later passes.

        Raises:
            RuntimeError: memory ran out for good.
        """
        if not self.method.looks_at_candidates:
            return Measured()
        warnings = list[str]()

        def attempt(scale: float) -> Measured:
            nonlocal target

            def of_size(rows_per_pass: int) -> Measured:
                how = _Attempt(rows_per_pass, scale, step if share.turn is None else share.turn)
                return self._measure(share, moments, step, target, keeps_target, how)

            num_rows, num_tokens = len(share.samples) + len(share.riders), share.num_tokens
            measured, said = self.rows_per_pass.that_fit(of_size, num_rows, num_tokens, step)
            warnings.extend(said)
            # A target that is finite stays as it is when a candidate's overflow asks for another attempt.
            if keeps_target:
                is_finite = math.isfinite(measured.gram.target_norm_squared)
                target = measured.target if is_finite else None
            return measured

        measured = without_overflow(attempt, self.scoring_loss_scale())
        return replace(measured, warnings=tuple(warnings), out_of_memory=len(warnings))

    def scoring_loss_scale(self) -> float:
        """In float16 a power of two near what a kept sample's loss is multiplied by in the training step,
        else 1."""
        if not self.engine.fp16_enabled():
            return 1.0
        per_sample = loss_scale(self.engine) * self.collectives.world_size / self.settings.keep_per_step
        return 2.0 ** max(0, math.floor(math.log2(per_sample)))

    def gram(
        self,
        num_rows: int,
        num_tokens: int,
        moments: Moments,
        step: int,
        watch: Stopwatch,
        target: Optional[TargetRow] = None,
        keeps_target: bool = False,
    ) -> GramBackend:
        """The backend that turns factors of ``num_rows`` candidates a rank, of at most ``num_tokens`` tokens,
        into the Gram matrix."""
        settings, is_warmup = self.settings, moments.is_warmup
        problem = GramProblem(
            owners=self.owners,
            own=moments.own,
            geometry=IDENTITY if is_warmup else self.geometry,
            compensates_momentum=settings.compensates_momentum and not is_warmup,
            num_rows=num_rows,
            num_tokens=num_tokens,
            element_size=factor_bytes(self.passes.layers),
            exchange_bytes=settings.exchange_mib << 20,
            contraction=settings.contraction,
            projection_size=settings.projection_size,
            seed=f"{self.seed} {step}",
            keeps_target=keeps_target,
            target=target.parts if target else None,
        )
        return BACKENDS[settings.backend](problem, self.collectives, watch)

    def _measure(
        self,
        share: Share,
        moments: Moments,
        step: int,
        target: Optional[TargetRow],
        keeps_target: bool,
        attempt: _Attempt,
    ) -> Measured:
        samples, watch, gram, own_target_loss = [*share.samples, *share.riders], share.watch, None, 0.0
        self.passes.examine(self.engine.module)
        if self.reference_model is not None:
            self.passes.examine(self.reference_model)
        if self.method.needs_target:
            with watch("gram"):
                gram = self.gram(len(samples), share.num_tokens, moments, step, watch, target, keeps_target)
            with watch("target"):
                own_target_loss = (
                    target.loss if target else self._target_loss(gram, attempt, bool(share.riders))
                )
        # Short with short: padding is work. Rows come out in this order and are put back at the end.
        order_R = np.argsort([len(sample.input_ids) for sample in samples], kind="stable")
        with watch("factors"):
            in_order = [samples[i] for i in order_R]
            passes = [
                self._own_signals(micro_batch, share.num_tokens, gram, attempt.loss_scale)
                for micro_batch in _micro_batches(in_order, attempt.rows_per_pass)
            ]
        gram_CC = gram.finish() if gram else None
        with watch("exchange"):
            order = torch.as_tensor(order_R, device=self.engine.device) + self.collectives.rank * len(samples)
            position_C = self.collectives.gather(order).flatten()
            found = {
                name: self.collectives.gather(torch.cat([part[name] for part in passes])).flatten()
                for name in passes[0]
            }
            scaled = (gram.num_scaled, float(gram.num_without_scale)) if gram else (0, 0)
            shares = [own_target_loss, *scaled, sum(len(s.input_ids) for s in share.samples)]
            totals = self.collectives.sum(
                torch.tensor(shares, dtype=torch.float64, device=self.engine.device)
            ).tolist()
        with watch("solve"):
            back_C = torch.argsort(position_C)
            measured: dict[str, Any] = {
                name: values_C[back_C].double().cpu().numpy() for name, values_C in found.items()
            }
            if gram is None or gram_CC is None:
                return Measured(Signals(**measured), candidate_tokens=int(totals[3]))
            rows = torch.cat([back_C, back_C.new_tensor([len(back_C)])])
            full = gram_CC[rows][:, rows].cpu().numpy()
        features_Rk = gram.features_Rk
        if features_Rk is not None and keeps_target:
            features_Rk = features_Rk[[*np.argsort(order_R), len(order_R)]]
        found_all = Measured(
            Signals(full[:-1, :-1], full[:-1, -1], float(full[-1, -1]), **measured),
            target_loss=totals[0],
            zero_moment_share=totals[2] / totals[1] if totals[1] else None,
            candidate_tokens=int(totals[3]),
            target=TargetRow(gram.target, own_target_loss) if keeps_target else None,
            features_Rk=features_Rk if keeps_target else None,
        )
        if not share.riders or self.targets is None:
            return found_all
        num_targets = len(self.targets.batch(attempt.turn))
        return taken_apart(found_all, len(share.samples), len(share.riders), num_targets)

    def _target_loss(self, gram: GramBackend, attempt: _Attempt, some_ride: bool = False) -> float:
        """This rank's part of the target's loss; the factors of its target samples go to ``gram``."""
        assert self.targets is not None  # SelectionHook.attach has refused a method without its target
        collectives = self.collectives
        batch = self.targets.batch(attempt.turn)
        batch = batch[: len(batch) - num_riding(len(batch))] if some_ride else batch
        own = batch[collectives.rank :: collectives.world_size]
        longest = max(len(sample.input_ids) for sample in batch)
        num_own = -(-len(batch) // collectives.world_size)
        target_loss = 0.0

        def add(layer: str, activation_BTI: torch.Tensor, output_grad_BTO: torch.Tensor, _) -> None:
            gram.add_target(layer, activation_BTI, output_grad_BTO)

        for first in range(0, num_own, attempt.rows_per_pass):
            micro_batch = own[first : first + attempt.rows_per_pass]
            num_rows = min(attempt.rows_per_pass, num_own - first)
            losses_B = self.passes.backward(
                micro_batch, num_rows, longest, 1 / len(batch), add, attempt.loss_scale
            )
            target_loss += losses_B.sum().item() / len(batch)
        gram.finish_target()
        return target_loss

    def _own_signals(
        self, samples: list[Sample], num_tokens: int, gram: Optional[GramBackend], scale: float
    ) -> dict[str, torch.Tensor]:
        """Signals (B,) that each sample of a micro-batch has by itself; its factors go to ``gram``."""
        passes, num_rows = self.passes, len(samples)
        if gram is not None:
            return {"loss_C": passes.backward(samples, num_rows, num_tokens, 1.0, gram.add, scale)}
        if self.method.needs_norms:
            total_B = torch.zeros(num_rows, dtype=torch.float64, device=self.engine.device)

            def add(_, activation_BTI: torch.Tensor, output_grad_BTO: torch.Tensor, lengths) -> None:
                bound = self.settings.exchange_mib << 20
                total_B.add_(squared_norm(activation_BTI, output_grad_BTO, lengths, bound))

            loss_B = passes.backward(samples, num_rows, num_tokens, 1.0, add, scale)
            return {"loss_C": loss_B, "squared_norm_C": total_B}
        found = {"loss_C": passes.forward(self.engine.module, samples, num_tokens)}
        if self.reference_model is not None:
            found["reference_loss_C"] = passes.forward(self.reference_model, samples, num_tokens)
        return found


def _micro_batches(samples: list[Sample], size: int) -> Iterator[list[Sample]]:
    for first in range(0, len(samples), size):
        yield samples[first : first + size]
