# C candidates, R candidates of this rank, B samples, T tokens
"""SelectionHook: attaches online data selection to a DeepSpeed engine from outside; nothing of DeepSpeed is
patched.

hook = SelectionHook.attach(engine, targets, settings, pad_token_id)
for candidates in loader:                                       # this rank's share
    selection = hook.select(candidates)                         # the same on every rank
    for batch in hook.micro_batches(candidates, selection):     # this rank's share of what is kept
        logits = engine(input_ids=batch.input_ids_BT, use_cache=False).logits
        engine.backward(hook.weighted_loss(logits, batch))
        engine.step()

``pipeline.step.weighted_step`` is the inner loop, with checks of what is finite.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator

from pipeline.config import SelectionConfig, geometry, needs_moments
from pipeline.data.batch import Candidates, as_samples
from pipeline.data.sample import Sample
from pipeline.data.targets import TargetSet
from pipeline.ranks.collectives import Collectives
from pipeline.scoring.engines import refuse_unfit
from pipeline.scoring.exact import ExactGram
from pipeline.scoring.factored import FactoredGram
from pipeline.scoring.factors import factor_bytes, leaf_module, scored_layers
from pipeline.scoring.loss import per_sample_loss
from pipeline.scoring.moments import Fragment, fragments, loss_scale, whole_shape
from pipeline.scoring.norms import squared_norm
from pipeline.scoring.owners import OwnerMap
from pipeline.scoring.projected import ProjectedGram
from pipeline.scoring.stopwatch import Stopwatch
from pipeline.selection import registry
from pipeline.selection.contract import Selection, Settings, Signals
from pipeline.selection.without_target import draw, usable_candidates
from pipeline.step.deal_over_ranks import fetch_kept
from pipeline.step.micro_batches import MicroBatch, micro_batches, weighted_loss
from pipeline.step.passes import OutOfMemory, Passes

# a scoring pass whose gradients overflow in float16 is taken again with the loss scale divided by this
OVERFLOW_STEP = 16.0


@dataclass
class Scores:
    """What one selection saw and cost; the step record is made of it."""

    is_warmup: bool = False
    """The plain gradient was matched: there are no moments yet, or of too few updates."""
    loss_C: Optional[np.ndarray] = None
    """Loss of every candidate, float64 (C,), nats per token; None where none was measured."""
    target_loss: Optional[float] = None
    """Mean loss of the target samples of this step; None where the method has no target, or it was lost."""
    signals: Optional[Signals] = None
    """What the method was given; None where it needs nothing."""
    zero_moment_share: Optional[float] = None
    """Share of scored elements that never had a gradient, and so no scale yet."""
    candidate_tokens: int = 0
    """Tokens of all candidates, over all ranks, without padding."""
    bytes_sent: int = 0
    """By this rank to others."""
    selection_hash: str = ""
    """Of what the step trains on, 16 hexadecimal digits, the same on every rank."""
    target_lost: bool = False
    """The target's gradient was not finite, and the selection is a uniform draw."""
    out_of_memory: int = 0
    """How often this scoring pass began again with half the samples in a forward."""
    warnings: list[str] = field(default_factory=list)
    """Sentences about this pass."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage on this rank."""
    peak_bytes: dict[str, int] = field(default_factory=dict)
    """Memory by stage on this rank (``Stopwatch.peak_bytes``)."""


@dataclass
class WholeTarget:
    """All target samples, measured once for many passes under one Adam state, with one set of projections
    (``SelectionHook.score``)."""

    gradient: dict[str, torch.Tensor] = field(default_factory=dict)
    """This rank's part of the target's row, as the Gram backend has it; empty before the first pass."""
    loss: float = 0.0
    """This rank's part of the target's loss."""
    features_Rk: Optional[torch.Tensor] = None
    """What the latest pass left besides its signals: features (R + 1, k) of this rank's candidates and of its
    part of the target. None with the exact backend, which has none."""


MOST_TARGETS_LOST = 3  # in a row; more are no accident of a few target samples


class SelectionHook:
    """Scores candidates under the engine's present Adam state and selects among them."""

    @classmethod
    def attach(
        cls,
        engine,
        targets: Optional[TargetSet],
        settings: SelectionConfig,
        pad_token_id: int,
        seed: int = 0,
        reference_model: Optional[torch.nn.Module] = None,
        is_packed: bool = False,
    ) -> "SelectionHook":
        """Find the scored layers and the Adam fragments of ``engine``.

        Args:
            engine: what ``deepspeed.initialize`` returns, at ZeRO stage 0 to 3; or a ``TorchEngine``.
            targets: examples of what the model should become good at, for methods that need a Gram.
            settings: how to select; the fields that name a model or a data file are not read.
            pad_token_id: what rows are filled up with on the right; no token looks at it.
            seed: of random draws; the same on all ranks.
            reference_model: for ``rho_loss``, whole on this rank's device.
            is_packed: samples stand one behind the other in one row instead of being padded;
                ``training.attention.packs`` says where. A loop of one's own must then take its logits from
                ``scoring.loss.causal_logits(engine, input_ids_BT, lengths)``, which keeps the samples of a
                row apart.

        Returns:
            The hook, which holds on to ``engine``. Nothing of the engine is changed.

        Raises:
            ValueError: a model without a trainable linear layer, an optimizer without Adam moments, or
                parallelism other than data parallelism.
        """
        return cls(engine, targets, settings, pad_token_id, seed, reference_model, is_packed)

    def __init__(self, engine, targets, settings, pad_token_id, seed, reference_model=None, is_packed=False):
        refuse_unfit(engine)
        self.engine, self.targets, self.settings, self.pad_token_id, self.seed = (
            engine,
            targets,
            settings,
            pad_token_id,
            seed,
        )
        self.method, self.reference_model, self.is_packed = (
            registry.get(settings.method),
            reference_model,
            is_packed,
        )
        self.geometry, self.needs_moments = geometry(settings), needs_moments(settings)
        self.scores, self.num_targets_lost = Scores(), 0
        self.whole_target: Optional[WholeTarget] = None
        # halved where memory runs out; 0 is all of the rank's
        self.rows_per_pass = settings.scoring_micro_batch_size
        self.collectives = Collectives(engine.seq_data_parallel_group, engine.device)
        if (self.method.needs == "reference_loss") != (reference_model is not None):
            need = "has no use for a" if reference_model is not None else "needs a"
            raise ValueError(f"selection.method = {settings.method} {need} reference model")
        rates = set(engine.get_lr()) if self.method.reads_learning_rate else ()
        if len(rates) > 1:
            raise ValueError(
                f"selection.method = {settings.method} reckons with one learning rate, and the optimizer's "
                f"groups have {len(rates)} ({', '.join(f'{rate:g}' for rate in sorted(rates))}): give them "
                "one, or take another method"
            )
        if targets is None and self.method.needs == "gram":
            raise ValueError(f"selection.method = {settings.method} needs target samples")
        scores_gradients = self.method.scores_gradients
        self.layers = scored_layers(engine.module, settings.last_blocks) if scores_gradients else {}
        leaf = leaf_module(engine.module, settings.last_blocks) if scores_gradients else None
        self.passes = Passes(
            engine, self.collectives, self.layers, leaf, pad_token_id, is_packed, settings.logits_mib
        )
        if not scores_gradients:
            return
        if not self.layers:
            raise ValueError(
                "the model has no trainable linear layer to score: raise model.lora_rank or check "
                "model.lora_targets"
            )
        shapes = {name + ".weight": whole_shape(layer.weight) for name, layer in self.layers.items()}
        self.owners = OwnerMap(shapes, self.fragments(), self.collectives)
        gaps = self.owners.gaps()
        if gaps:
            name, covered = next(iter(gaps.items()))
            raise ValueError(
                f"{len(gaps)} of {len(shapes)} scored weights are not each owned once by the ranks' "
                f"optimizers, first '{name}' with {covered:,} of {math.prod(shapes[name]):,} elements: train "
                "all scored weights with one AdamW, or report the set-up"
            )

    def fragments(self, with_moments: bool = True) -> list[Fragment]:
        """This rank's fragments of the scored weights, with live moments where the method needs them, else
        the addresses alone."""
        scored = {name + ".weight" for name in self.layers}
        return [f for f in fragments(self.engine, with_moments and self.needs_moments) if f.name in scored]

    def select(
        self, candidates: Candidates, step: Optional[int] = None, keep: Optional[int] = None
    ) -> Selection:
        """Selection among the candidates of all ranks, under the optimizer's present state. Every rank calls
        it.

        Args:
            candidates: this rank's R = C / W, as many as every other rank's.
            step: seeds random draws and rotates the target; by default the engine's count of optimizer steps.
            keep: most that are kept; by default ``keep_per_step`` x ``score_every`` of the settings.

        Returns:
            Positions and weights of the kept among the C candidates in rank order, the same on every rank.
            What was seen on the way (losses, Gram, seconds, warnings) is in ``scores`` until the next call.

        Raises:
            ValueError: on all ranks together: unequal numbers of candidates, or a target without a finite
                gradient several times in a row.
            RuntimeError: on all ranks together: ranks that disagree, moments that are missing, or memory that
                ran out for good.
        """
        candidates = as_samples(candidates)
        step = self.engine.global_steps if step is None else step
        settings, collectives, self.whole_target = self.settings, self.collectives, None
        num_candidates, num_tokens = self._sizes(candidates)
        watch, collectives.bytes_sent = Stopwatch(self.engine.device), 0
        keep = min(num_candidates, settings.keep_per_step * settings.score_every if keep is None else keep)
        self.scores = Scores(is_warmup=self.needs_moments and not self._has_state(step))
        scores, method = self.scores, self.method
        if method.needs != "nothing":
            scores.signals = self._score_without_overflow(candidates, num_tokens, step, watch)
        with watch("solve"):
            selection: Any = None
            drawn_from_U = self._without_target(step)
            if collectives.rank == 0:
                # a stream of its own, apart from the order of epochs
                rng = np.random.default_rng((self.seed, step, 1))
                try:
                    known = Settings(settings.ridge, settings.temperature, self.engine.get_lr()[0])
                    if drawn_from_U is None:
                        selection = method.select(scores.signals, keep, num_candidates, rng, known)
                    else:
                        selection = draw(drawn_from_U, keep, num_candidates, rng, known)
                # raised again below: every rank must end, not only the one that solves
                except Exception as error:
                    selection = error
            selection = collectives.broadcast_object(selection)
            if isinstance(selection, Exception):
                raise selection
            scores.selection_hash = self.agree(selection, step)
        scores.bytes_sent, scores.seconds, scores.peak_bytes = (
            collectives.bytes_sent,
            watch.read(),
            watch.peak_bytes(),
        )
        return selection

    def score(self, candidates: Candidates, target: WholeTarget) -> Signals:
        """Signals of the candidates of all ranks, of which nothing is selected, under the optimizer's present
        state. Every rank calls it.

        For a method that needs a Gram. Adam's moments must be there where the geometry needs them: there is
        no warm-up.

        Args:
            candidates: this rank's R = C / W, as many as every other rank's.
            target: measured in the first pass, from all samples of the hook's target set; later passes take
                it as it is. It belongs to this hook and to this state of the engine.
        Returns:
            The Gram problem in rank order, the same on every rank; numbers may be non-finite. The target's
            loss is in ``scores``, features of the rows are in ``target``.
        Raises:
            ValueError: unequal numbers of candidates.
        """
        candidates = as_samples(candidates)
        _, num_tokens = self._sizes(candidates)
        self.scores, self.whole_target = Scores(), target
        return self._score_without_overflow(candidates, num_tokens, 0, Stopwatch(self.engine.device))

    def _sizes(self, candidates: list[Sample]) -> tuple[int, int]:
        """(C, tokens of the longest), over all ranks. Raises ValueError, on all of them, for unequal
        shares."""
        longest = max((len(sample.input_ids) for sample in candidates), default=0)
        sizes = self.collectives.gather(torch.tensor([len(candidates), longest], device=self.engine.device))
        counts = sizes[:, 0].tolist()
        if len(set(counts)) > 1 or not candidates:
            raise ValueError(
                f"every rank must bring the same number of candidates, at least one; they bring {counts}"
            )
        return sum(counts), int(sizes[:, 1].max())

    def agree(self, selection: Selection, step: int) -> str:
        """Hash of what a step trains on. Raises RuntimeError, on all ranks, where they do not hold the
        same."""
        # What each rank knows by itself goes in too: a rank at another step, or set differently, is found out
        # here.
        what = (
            selection.indices.tobytes()
            + selection.weights.tobytes()
            + repr((step, self.seed, self.settings)).encode()
        )
        return self.collectives.assert_same(what, f"the selection of step {step}")

    def micro_batches(
        self,
        candidates: Candidates,
        selection: Selection,
        micro_steps: Optional[int] = None,
        micro_batch_size: Optional[int] = None,
    ) -> list[MicroBatch]:
        """This rank's micro-batches of the kept samples, which are dealt over ranks by their tokens. Every
        rank calls it.

        Args:
            candidates: as given to ``select``.
            selection: what it returned.
            micro_steps: how many micro-batches each rank gets, blank ones where samples are few; by default
                the engine's gradient accumulation steps.
            micro_batch_size: most samples of one; by default the engine's.

        Returns:
            As many as ``micro_steps``, the same number on every rank.

        Raises:
            ValueError: there are more kept samples than fit.
        """
        micro_steps = self.engine.gradient_accumulation_steps() if micro_steps is None else micro_steps
        micro_batch_size = (
            self.engine.train_micro_batch_size_per_gpu() if micro_batch_size is None else micro_batch_size
        )
        kept = fetch_kept(as_samples(candidates), selection, self.collectives)
        return micro_batches(
            kept,
            selection,
            self.collectives,
            micro_steps,
            micro_batch_size,
            self.pad_token_id,
            self.is_packed,
        )

    def weighted_loss(self, logits_BTV: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """The loss to hand to ``engine.backward`` for one micro-batch, so that the engine's step is that of
        sum_k w_k l_k.

        l_k is the mean cross-entropy over the supervised tokens of sample k. DeepSpeed takes a mean over
        micro-steps and ranks, which is undone here: with all candidates kept at weights 1/C this is its plain
        step on the mean loss.

        Args:
            logits_BTV: of ``engine(input_ids=batch.input_ids_BT)`` (packed: see ``attach``), any float dtype.
            batch: one that ``micro_batches`` gave.

        Returns:
            float32 scalar.
        """
        divisor = self.collectives.world_size * self.engine.gradient_accumulation_steps()
        return weighted_loss(
            per_sample_loss(logits_BTV, batch.labels_BT, batch.lengths), batch.weights_B, divisor
        )

    def _has_state(self, step: int) -> bool:
        """Are there moments to measure with? The first steps, and any before the first update, match the
        plain gradient.

        Raises RuntimeError, on all ranks, if there has been an update and moments are still missing.
        """
        missing = sum(f.numel for f in self.fragments() if f.exp_avg_sq is None or f.step == 0)
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

    def scoring_loss_scale(self) -> float:
        """In float16 a power of two near what a kept sample's loss is multiplied by in the training step,
        else 1."""
        if not self.engine.fp16_enabled():
            return 1.0
        per_sample = loss_scale(self.engine) * self.collectives.world_size / self.settings.keep_per_step
        return 2.0 ** max(0, math.floor(math.log2(per_sample)))

    def _without_target(self, step: int) -> Optional[np.ndarray]:
        """The usable candidates (U,), where the target's gradient is not finite and the step must do without
        it; else None.

        A method that is given such a target refuses it with a sentence: so it is after MOST_TARGETS_LOST
        steps in a row.
        """
        scores = self.scores
        if scores.signals is None or scores.signals.target_norm_squared is None:
            return None
        if math.isfinite(scores.signals.target_norm_squared):
            self.num_targets_lost = 0
            return None
        self.num_targets_lost += 1
        usable_U = usable_candidates(scores.signals)
        if self.num_targets_lost > MOST_TARGETS_LOST or len(usable_U) == 0:
            return None
        scores.target_lost, scores.target_loss, scores.signals = True, None, None
        scores.warnings.append(
            f"WARNING at step {step}: the gradient of its target samples is not finite, "
            f"{self.num_targets_lost} in a row; it trains on a uniform draw of {len(usable_U)} usable "
            "candidates"
        )
        return usable_U

    # -- scoring --

    def _score_without_overflow(
        self, candidates: list[Sample], num_tokens: int, step: int, watch: Stopwatch
    ) -> Signals:
        """In float16: again with less of a loss scale, as long as a sample with a finite loss has a gradient
        that overflows. All ranks see the same signals, so all go again."""
        self.passes.loss_scale = self.scoring_loss_scale()
        signals = self._score(candidates, num_tokens, step, watch)
        while self.passes.loss_scale > 1 and _has_overflowed(signals, self.scores.target_loss):
            self.passes.loss_scale = max(1.0, self.passes.loss_scale / OVERFLOW_STEP)
            if self.whole_target and not math.isfinite(signals.target_norm_squared):
                self.whole_target.gradient = {}
            signals = self._score(candidates, num_tokens, step, watch)
        return signals

    def _score(self, candidates: list[Sample], num_tokens: int, step: int, watch: Stopwatch) -> Signals:
        """What the method needs, of the candidates of all ranks and in their order.

        Where memory runs out in a forward, all ranks begin again with half the samples in it, and stay with
        that.
        """
        while True:
            rows_per_pass = min(self.rows_per_pass or len(candidates), len(candidates))
            try:
                return self._score_by(rows_per_pass, candidates, num_tokens, step, watch)
            except OutOfMemory as error:
                if rows_per_pass == 1:
                    raise RuntimeError(
                        f"step {step}: a scoring pass of one sample a rank does not fit into memory at "
                        f"{num_tokens} tokens: lower data.max_tokens, selection.logits_mib or "
                        "selection.last_blocks, or take ZeRO-3"
                    ) from error
            self.rows_per_pass = -(-rows_per_pass // 2)
            self.scores.out_of_memory += 1
            self.scores.warnings.append(
                f"WARNING at step {step}: scoring {rows_per_pass} samples a rank at once ran out of memory; "
                f"from now on it takes {self.rows_per_pass}. selection.scoring_micro_batch_size = "
                f"{self.rows_per_pass} saves the attempt"
            )
            get_accelerator().empty_cache()

    def _score_by(
        self, rows_per_pass: int, candidates: list[Sample], num_tokens: int, step: int, watch: Stopwatch
    ) -> Signals:
        self.passes.examine(self.engine.module)
        if self.reference_model is not None:
            self.passes.examine(self.reference_model)
        collectives, scores = self.collectives, self.scores
        gram, target_loss = None, 0.0
        if self.method.needs == "gram":
            with watch("gram"):
                gram = self.backend(len(candidates), num_tokens, step, watch)
            with watch("target"):
                target_loss = self._score_target(gram, step, rows_per_pass)

        # Short with short: padding is work. Rows come out in this order and are put back at the end.
        order_R = np.argsort([len(sample.input_ids) for sample in candidates], kind="stable")
        with watch("factors"):
            passes = []
            for first in range(0, len(candidates), rows_per_pass):
                micro_batch = [candidates[i] for i in order_R[first : first + rows_per_pass]]
                passes.append(
                    self._measure(
                        micro_batch, num_tokens, gram, is_last=first + rows_per_pass >= len(candidates)
                    )
                )
        gram_CC = gram.finish() if gram else None
        if gram and self.whole_target and self.settings.backend != "exact":
            back_R = [*np.argsort(order_R), len(order_R)]
            self.whole_target.features_Rk = gram.rows[back_R]
        with watch("exchange"):
            order = torch.as_tensor(order_R, device=self.engine.device) + collectives.rank * len(candidates)
            position_C = collectives.gather(order).flatten()
            found = {
                name: collectives.gather(torch.cat([part[name] for part in passes])).flatten()
                for name in passes[0]
            }
            scaled = (gram.num_scaled, float(gram.num_without_scale)) if gram else (0, 0)
            shares = [target_loss, *scaled, sum(len(s.input_ids) for s in candidates)]
            totals = collectives.sum(
                torch.tensor(shares, dtype=torch.float64, device=self.engine.device)
            ).tolist()
        with watch("solve"):
            back_C = torch.argsort(position_C)
            measured: dict[str, Any] = {
                name: values_C[back_C].double().cpu().numpy() for name, values_C in found.items()
            }
            scores.loss_C, scores.candidate_tokens = measured["loss_C"], int(totals[3])
            if gram_CC is None:
                return Signals(**measured)
            scores.target_loss = totals[0]
            scores.zero_moment_share = totals[2] / totals[1] if totals[1] else None
            rows = torch.cat([back_C, back_C.new_tensor([len(back_C)])])
            full = gram_CC[rows][:, rows].cpu().numpy()
            return Signals(full[:-1, :-1], full[:-1, -1], float(full[-1, -1]), **measured)

    def _score_target(self, gram, step: int, rows_per_pass: int) -> float:
        """This rank's part of the target, into ``gram`` unless it is there; its part of the target's loss."""
        collectives, whole = self.collectives, self.whole_target
        if whole and whole.gradient:
            return whole.loss
        look = step // self.settings.score_every  # the target rotates with the scoring passes, not past them
        batch, targets = (
            self.targets.batch(look),
            self.targets.shard(look, collectives.rank, collectives.world_size),
        )
        longest, num_own = (
            max(len(sample.input_ids) for sample in batch),
            -(-len(batch) // collectives.world_size),
        )
        target_loss = 0.0
        for first in range(0, num_own, rows_per_pass):
            micro_batch = targets[first : first + rows_per_pass]
            num_rows = min(rows_per_pass, num_own - first)
            take = lambda layer, activation_BTI, output_grad_BTO, _: gram.add_target(
                layer, activation_BTI, output_grad_BTO
            )
            losses_B = self.passes.backward(micro_batch, num_rows, longest, 1 / len(batch), take)
            target_loss += losses_B.sum().item() / len(batch)
        gram.finish_target()
        if whole:
            whole.gradient, whole.loss = gram.target, target_loss
        return target_loss

    def _measure(
        self, samples: list[Sample], num_tokens: int, gram, is_last: bool
    ) -> dict[str, torch.Tensor]:
        """Signals (B,) that each sample of a micro-batch has by itself; its factors go to ``gram``."""
        needs, num_rows = self.method.needs, len(samples)
        if needs == "gram":
            take = gram.add if is_last else gram.hold
            return {"loss_C": self.passes.backward(samples, num_rows, num_tokens, 1.0, take)}
        if needs == "norm":
            total_B = torch.zeros(num_rows, dtype=torch.float64, device=self.engine.device)
            take = lambda _, activation_BTI, output_grad_BTO, lengths: total_B.add_(
                squared_norm(activation_BTI, output_grad_BTO, lengths, self.settings.exchange_mib << 20)
            )
            return {
                "loss_C": self.passes.backward(samples, num_rows, num_tokens, 1.0, take),
                "squared_norm_C": total_B,
            }
        found = {"loss_C": self.passes.forward(self.engine.module, samples, num_tokens)}
        if needs == "reference_loss":
            found["reference_loss_C"] = self.passes.forward(self.reference_model, samples, num_tokens)
        return found

    def backend(self, num_rows: int, num_tokens: int, step: int, watch: Stopwatch):
        """What turns factors into the Gram matrix; all three have the methods of ``ExactGram``."""
        settings, is_warmup = self.settings, self.scores.is_warmup
        geometry, momentum = ("identity", "cancel") if is_warmup else (self.geometry, settings.momentum)
        own = self.fragments(with_moments=not is_warmup)
        target = self.whole_target.gradient if self.whole_target else None
        arguments = (
            self.owners,
            own,
            self.collectives,
            watch,
            geometry,
            momentum,
            num_rows,
            settings.exchange_mib << 20,
        )
        if settings.backend == "exact":
            return ExactGram(*arguments, num_tokens, factor_bytes(self.layers), settings.contraction, target)
        backend = {"projected": ProjectedGram, "factored": FactoredGram}[settings.backend]
        return backend(*arguments, settings.projection_size, seed=f"{self.seed} {step}", target=target)


def _has_overflowed(signals: Signals, target_loss: Optional[float]) -> bool:
    """Is a gradient not finite whose loss is?"""
    norm_C = signals.squared_norm_C if signals.gram_CC is None else np.diagonal(signals.gram_CC)
    if norm_C is None:
        return False
    lost_target = (
        target_loss is not None
        and math.isfinite(target_loss)
        and not math.isfinite(signals.target_norm_squared)
    )
    return lost_target or bool((np.isfinite(signals.loss_C) & ~np.isfinite(norm_C)).any())
