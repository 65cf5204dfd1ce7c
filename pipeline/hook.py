# C candidates, R candidates of this rank, B samples, T tokens, V vocabulary
"""SelectionHook: online data selection for a DeepSpeed engine, attached from outside.

hook = SelectionHook.attach(engine, targets, settings, pad_token_id)
for candidates in loader:                                            # this rank's share
    look = hook.select(candidates)                                   # the same selection on every rank
    for batch in hook.micro_batches(candidates, look.selection):     # this rank's share of what is kept
        logits = engine(input_ids=batch.input_ids_BT, use_cache=False).logits
        engine.backward(hook.weighted_loss(logits, batch))
        engine.step()

``pipeline.train_step`` is the body of this loop, with checks of what is finite.
"""

from typing import Any, Optional

import torch

from pipeline.config import SelectionConfig
from pipeline.data.batch import Candidates, as_samples
from pipeline.data.targets import TargetSet
from pipeline.ranks.collectives import Collectives
from pipeline.scoring.engines import Engine, refuse_unfit
from pipeline.scoring.loss import per_sample_loss
from pipeline.selection import registry
from pipeline.selection.contract import Method, Selection
from pipeline.step.chooser import Chooser
from pipeline.step.deal_over_ranks import fetch_kept
from pipeline.step.look import Look, Measured, Moments, TargetRow
from pipeline.step.micro_batches import MicroBatch, micro_batches, weighted_loss
from pipeline.step.passes import Passes
from pipeline.step.scorer import Scorer


class SelectionHook:
    """Scores candidates under the engine's present Adam state and selects among them."""

    @classmethod
    def attach(
        cls,
        engine: Engine,
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
            targets: examples of the task that the model is to learn, for methods that need a Gram.
            settings: how to select; the fields that name a model or a data file are not read.
            pad_token_id: fills up short rows on the right; no token looks at it.
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

    def __init__(
        self,
        engine: Engine,
        targets: Optional[TargetSet],
        settings: SelectionConfig,
        pad_token_id: int,
        seed: int,
        reference_model: Optional[torch.nn.Module] = None,
        is_packed: bool = False,
    ):
        refuse_unfit(engine)
        method = registry.get(settings.method)
        _refuse_contradictions(engine, targets, settings, method, reference_model)
        self.engine, self.settings, self.method = engine, settings, method
        self.pad_token_id, self.is_packed = pad_token_id, is_packed
        self.targets, self.reference_model = targets, reference_model
        self.collectives = Collectives(engine.seq_data_parallel_group, engine.device)
        self.passes = Passes.of(engine, self.collectives, method, settings, pad_token_id, is_packed)
        self.scorer = Scorer(
            engine, method, settings, targets, self.collectives, self.passes, reference_model, seed
        )
        self.chooser = Chooser(engine, method, settings, self.collectives, seed)
        self.layers, self.owners = self.passes.layers, self.scorer.owners
        self.needs_moments = self.scorer.needs_moments

    # -- what a step is made of --

    def select(
        self,
        candidates: Candidates,
        step: Optional[int] = None,
        keep: Optional[int] = None,
        turn: Optional[int] = None,
    ) -> Look:
        """A look at the candidates of all ranks, under the optimizer's present state. Every rank calls it.

        Args:
            candidates: this rank's R = C / W, as many as every other rank's.
            step: seeds random draws; by default the engine's count of optimizer steps.
            keep: most that are kept; by default ``keep_per_step`` of the settings.
            turn: rotates the target, looks that were made before, and has it judged in halves too; by default
                the step, and as a whole.

        Returns:
            Positions and weights of the kept among the C candidates in rank order (``selection``), the same
            on every rank, with everything that was seen and spent on the way.

        Raises:
            ValueError: on all ranks together: unequal numbers of candidates, or a target without a finite
                gradient several times in a row.
            RuntimeError: on all ranks together: ranks that disagree, moments that are missing, or memory that
                ran out for good.
        """
        step = self.engine.global_steps if step is None else step
        share = self.scorer.share(as_samples(candidates), turn)
        moments = self.scorer.moments(step)
        measured = self.scorer.measure(share, moments, step)
        return self.chooser.choose(share, moments, measured, step, keep)

    def score(self, candidates: Candidates, target: Optional[TargetRow] = None) -> Measured:
        """Measurements of the candidates of all ranks under the optimizer's present state, without a
        selection. Every rank calls it.

        For a method that needs a Gram. Adam's moments must be there where the geometry needs them: there is
        no warm-up.

        Args:
            candidates: this rank's R = C / W, as many as every other rank's.
            target: what an earlier call has returned as ``target``, from this hook and this state of the
                engine; without it the whole target set is measured.

        Returns:
            The Gram problem in rank order, the same on every rank, as ``signals``, whose numbers may be
            non-finite; and the target's row.

        Raises:
            ValueError: unequal numbers of candidates, or a method that needs no Gram.
        """
        if not self.method.needs_target:
            raise ValueError(
                f"selection.method = {self.method.name} forms no Gram matrix, and scores come from one: take "
                "filter_then_weight"
            )
        share = self.scorer.share(as_samples(candidates))
        moments = Moments(self.scorer.fragments())
        return self.scorer.measure(share, moments, step=0, target=target, keeps_target=True)

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
            selection: what it has chosen.
            micro_steps: how many micro-batches each rank gets, blank ones where samples are few; by default
                the engine's gradient accumulation steps.
            micro_batch_size: most samples of one; by default the engine's.

        Returns:
            As many as ``micro_steps``, the same number on every rank.

        Raises:
            ValueError: there are more kept samples than fit.
        """
        engine: Any = self.engine  # DeepSpeed's, or both are given
        micro_steps = engine.gradient_accumulation_steps() if micro_steps is None else micro_steps
        if micro_batch_size is None:
            micro_batch_size = engine.train_micro_batch_size_per_gpu()
        kept = fetch_kept(as_samples(candidates), selection, self.collectives)
        return micro_batches(
            kept,
            selection.weights,
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
        engine: Any = self.engine
        divisor = self.collectives.world_size * engine.gradient_accumulation_steps()
        loss_B = per_sample_loss(logits_BTV, batch.labels_BT, batch.lengths)
        return weighted_loss(loss_B, batch.weights_B, divisor)

    def agree(self, selection: Selection, step: int) -> str:
        """Hash of a step's selection. Raises RuntimeError, on all ranks, where they do not hold the same."""
        return self.chooser.agree(selection, step)

    # -- what a checkpoint keeps --

    def state_dict(self) -> dict[str, int]:
        """State of later looks that neither the engine nor the step tells."""
        return {
            "rows_per_pass": self.scorer.rows_per_pass.limit,
            "num_targets_lost": self.chooser.num_targets_lost,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Put the hook back to where ``state_dict`` was taken."""
        self.scorer.rows_per_pass.limit = state["rows_per_pass"]
        self.chooser.num_targets_lost = state["num_targets_lost"]


def _refuse_contradictions(
    engine: Engine,
    targets: Optional[TargetSet],
    settings: SelectionConfig,
    method: Method,
    reference_model: Optional[torch.nn.Module],
) -> None:
    """Raises ValueError where the method lacks what it needs, or was given something that it cannot use."""
    if method.needs_reference != (reference_model is not None):
        need = "has no use for a" if reference_model is not None else "needs a"
        raise ValueError(f"selection.method = {settings.method} {need} reference model")
    rates = set(engine.get_lr()) if method.reads_learning_rate else set()
    if len(rates) > 1:
        raise ValueError(
            f"selection.method = {settings.method} reckons with one learning rate, and the optimizer's "
            f"groups have {len(rates)} ({', '.join(f'{rate:g}' for rate in sorted(rates))}): give them one, "
            "or take another method"
        )
    if targets is None and method.needs_target:
        raise ValueError(f"selection.method = {settings.method} needs target samples")
