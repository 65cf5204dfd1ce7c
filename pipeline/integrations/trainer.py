# B samples of a micro-batch, T tokens
"""Selection in Hugging Face's Trainer, with DeepSpeed, under DDP or in one process.

    trainer = SelectionTrainer(model, args, train_dataset=pool, selection=SelectionConfig(...),
                               target_dataset=examples)

It goes into derived trainers too, such as TRL's:

    class SelectionSFTTrainer(SelectionMixin, SFTTrainer): ...

Trainer's own loop runs; three of its methods do something else while it trains:

    get_train_dataloader   gives candidates: batches are larger than per_device_train_batch_size,
                           by candidates_per_step / keep_per_step
    get_batch_samples      once per update: takes its candidates, selects, and gives the kept ones
                           as the update's micro-batches
    compute_loss           the weighted loss of such a micro-batch

So epochs, max_steps, checkpoints, callbacks, logging and evaluation stay Trainer's. A step is an update, and
an epoch is len(train_dataset) / candidates_per_step of them, in which every row is a candidate once where all
updates score the next rows.

Where updates take proposed rows (selection.proposal, selection.score_every), the loader gives its length, its
sampler's order, its dataset and its collator, and is not read: what an update takes depends on what the one
before has observed. An epoch stays as many updates, so that num_train_epochs, warm-up and schedules mean the
same whatever is proposed; how often the order has been gone through is logged as selection_epoch.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import torch
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from pipeline.config import SelectionConfig
from pipeline.data.batch import samples_of
from pipeline.data.sample import Sample
from pipeline.data.targets import TargetSet
from pipeline.hook import SelectionHook
from pipeline.integrations import proposing
from pipeline.integrations.dataset_stream import Rows
from pipeline.integrations.fit import candidates_per_batch, refuse_unfit_arguments
from pipeline.proposal.health import health
from pipeline.proposal.proposer import Plan, Proposer
from pipeline.scoring.engines import TorchEngine
from pipeline.scoring.loss import per_sample_loss
from pipeline.selection.contract import Selection
from pipeline.step.look import Look
from pipeline.step.micro_batches import MicroBatch, weighted_loss
from pipeline.training import self_check

WEIGHTS = "selection_weights"
logger = logging.get_logger(__name__)


if TYPE_CHECKING:
    from transformers import Trainer as Base
else:  # at run time it has no Trainer among its bases: it could not go before SFTTrainer
    Base = object


class SelectionMixin(Base):
    """A mixin that stands before a ``Trainer`` among the bases of a class.

    For example: ``class SelectionSFTTrainer(SelectionMixin, SFTTrainer)``.

    Args:
        selection: how many candidates are looked at for one update and how many are kept; ``keep_per_step``
            must be per_device_train_batch_size x gradient_accumulation_steps x world size. ``proposal`` is
            uniform or learned.
        target_dataset: examples of the skill that the model should gain, in the format of ``train_dataset``;
            for methods that compare with a target. Read whole at start.
        reference_model: for ``rho_loss``.

    Other arguments are the Trainer's. The loss it logs is that of the weighted step, sum_k w_k l_k with l_k
    the mean over the supervised tokens of sample k; evaluation is Trainer's own, a mean over tokens.

    Raises:
        ValueError: arguments contradict each other or do not go with selection; the message has the way out.
    """

    _train_batch_size: int  # Trainer's

    def __init__(
        self,
        *args,
        selection: SelectionConfig,
        target_dataset=None,
        reference_model: Optional[torch.nn.Module] = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        refuse_unfit_arguments(self, selection, target_dataset is not None)
        # Trainers differ in whether they divide a loss by the number of micro-steps; False, with no count
        # of items, makes each of them divide.
        self.loss_is_scaled_for_ga = False
        self.selection, self.reference_model = selection, reference_model
        self.target_set = self._read_targets(target_dataset) if target_dataset is not None else None
        self.selection_hook: Optional[SelectionHook] = None
        self.chosen: Optional[Selection] = None
        """The selection of the update under way: all of its samples alike where it has scored none."""
        self._attached_to: tuple = ()
        self._proposer: Optional[Proposer] = None
        self._checkpoint: Optional[Path] = None
        self._with_mask = False
        self._clock = _Clock()
        self.add_callback(self._clock)
        self._selection_log: dict[str, list[float]] = {}

    # -- candidates in, kept samples out --

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Trainer's loader, with batches of candidates."""
        own, self._train_batch_size = self._train_batch_size, candidates_per_batch(self, self.selection)
        try:
            return super().get_train_dataloader()
        finally:
            self._train_batch_size = own

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, None]:
        """Micro-batches of kept samples, as many as this update has batches of candidates."""
        if proposing.proposes(self.selection, self.train_dataset):
            candidates, look, with_mask = self._proposed(num_batches)
        else:
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
            if not batches:
                return batches, None
            num_batches, with_mask = len(batches), "attention_mask" in batches[0]
            candidates = [sample for batch in batches for sample in samples_of(batch)]
            hook = self._attach(candidates)
            look = hook.select(candidates, self.state.global_step, self._num_trained(num_batches))
            self._note(look)
        assert self.selection_hook is not None  # attached by now
        self.chosen = look.selection
        kept = self.selection_hook.micro_batches(
            candidates, look.selection, num_batches, self._train_batch_size
        )
        return [_as_inputs(batch, with_mask) for batch in kept], None

    def _proposed(self, num_batches: int) -> tuple[list[Sample], Look, bool]:
        """This rank's share of what is proposed for the update, the look, and whether batches have a mask."""
        step, keep = self.state.global_step, self._num_trained(num_batches)
        proposer, hook = self._begin_proposing()
        begin = time.perf_counter()
        plan = proposer.plan(step)
        seconds = time.perf_counter() - begin
        candidates = proposer.share(plan, self.args.process_index, self.args.world_size)
        sentences = list[str]()
        if plan.is_scored:
            look = hook.select(candidates, step, keep, plan.turn)
            sentences = proposer.observe(plan, look.signals, look.halves, look.weights_2C)
        else:  # an epoch's last update may be short
            look = hook.chooser.take(keep, step)
        self._note(look, plan, seconds, sentences)
        self._clock.begin(proposer, begin, seconds + sum(look.seconds.values()))
        return candidates, look, self._with_mask

    def _num_trained(self, num_batches: int) -> int:
        """Samples of an update: fewer than ``keep_per_step`` where an epoch ends early."""
        return num_batches * self._train_batch_size * self.args.world_size

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch=None,
    ) -> Any:
        """The weighted loss of a micro-batch of kept samples; Trainer's own of anything else."""
        if WEIGHTS not in inputs:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        inputs = dict(inputs)
        weights_B, labels_BT = inputs.pop(WEIGHTS).view(torch.float32), inputs["labels"]
        own = super().compute_loss
        if own.__func__ is Trainer.compute_loss:
            del inputs["labels"]  # the model would form a loss that nobody needs
            outputs = model(**inputs, use_cache=False)
        else:  # called for its metrics
            with _first_output(model) as seen:
                own(model, inputs, num_items_in_batch=num_items_in_batch)
            outputs = seen[0]
        # accelerate and DeepSpeed take the mean over ranks; the Trainer divides by the micro-steps.
        divisor = self.args.world_size * self.current_gradient_accumulation_steps
        loss = weighted_loss(_loss_by_sample(outputs, labels_BT), weights_B, divisor)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: Optional[float] = None) -> None:
        """Log as Trainer does, with means of selection's own numbers since the last training log."""
        if "loss" in logs:
            logs.update(
                {
                    f"selection_{name}": sum(values) / len(values)
                    for name, values in self._selection_log.items()
                }
            )
            self._selection_log = {}
        super().log(logs, start_time)

    # -- proposing --

    def train(self, *args, **kwargs):
        """Train as Trainer does. What an earlier call has learned is forgotten unless a checkpoint has it."""
        self._proposer = self._checkpoint = None
        return super().train(*args, **kwargs)

    def _begin_proposing(self) -> tuple[Proposer, SelectionHook]:
        """The proposer and the hook of this training, from its first update on."""
        if self._proposer is not None:
            assert self.selection_hook is not None
            return self._proposer, self.selection_hook
        loader = self.callback_handler.train_dataloader
        if self.args.dataloader_num_workers and self.is_world_process_zero():
            logger.warning(
                f"dataloader_num_workers = {self.args.dataloader_num_workers} does nothing for training: "
                "rows are proposed when an update begins, and read then"
            )
        rows, share = Rows(loader.dataset, loader.collate_fn), self.selection.candidates_per_step
        share //= self.args.world_size
        first = self.args.process_index * share
        hook = self._attach([rows[position] for position in range(first, first + share)])
        proposer = proposing.proposer_of(
            loader,
            hook,
            self.target_set.samples if self.target_set else None,
            self.state.max_steps,
            self.args.seed,
            self.args.ddp_timeout,
        )
        if self._checkpoint is not None:
            proposing.load(self._checkpoint, proposer, hook)
        self._proposer, self._with_mask = proposer, rows.have_mask()
        return proposer, hook

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save as Trainer does, and what proposals depend on."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self._proposer is not None and self.is_world_process_zero():
            assert self.selection_hook is not None
            proposing.save(Path(output_dir), self._proposer, self.selection_hook)

    def _load_optimizer_and_scheduler(self, checkpoint: Optional[str]) -> None:
        """Load as Trainer does; proposals go on from there at the first update."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._checkpoint = Path(checkpoint)
            proposing.refuse_unfit_checkpoint(
                self._checkpoint, proposing.proposes(self.selection, self.train_dataset)
            )

    # -- attaching --

    def _attach(self, candidates: list[Sample]) -> SelectionHook:
        """The hook on the engine of this training, which is there from the first update on; checked once."""
        engine_now = (self.model_wrapped, self.optimizer)
        if self.selection_hook is None or any(
            now is not before for now, before in zip(engine_now, self._attached_to)
        ):
            if self.is_deepspeed_enabled:
                engine = self.model_wrapped
            else:
                engine = TorchEngine(
                    self.model, self.optimizer.optimizer, self.args.device, self.accelerator.autocast
                )
            arguments = (
                self.target_set,
                self.selection,
                self._pad_token_id(),
                self.args.seed,
                self.reference_model,
            )
            hook = SelectionHook.attach(engine, *arguments)
            if hook.collectives.world_size != self.args.world_size:
                raise ValueError(
                    f"the Trainer counts {self.args.world_size} ranks and the process group "
                    f"{hook.collectives.world_size}, so all ranks would see the same samples: on CPU set "
                    "use_cpu=True in TrainingArguments"
                )
            for line in self_check.run(hook, candidates):
                logger.info(
                    f"self-check: {line.check}: {'passed' if line.passed else 'FAILED'}; {line.found}"
                )
                if not line.passed:
                    raise RuntimeError(
                        f"self-check of selection failed: {line.check}: {line.found}. {line.remedy}"
                    )
            self.selection_hook, self._attached_to = hook, engine_now
        return self.selection_hook

    def _read_targets(self, dataset) -> TargetSet:
        """Target samples as the Trainer would train on them.

        TRL prepares the rows where it prepares its own, then they go through the collator.
        """
        if hasattr(self, "_prepare_dataset") and not getattr(self, "_skip_prepare_dataset", False):
            formatting = getattr(self, "_formatting_func", None)
            dataset = self._prepare_dataset(
                dataset, self.processing_class, self.args, False, formatting, "target"
            )
        collate = self._get_collator_with_removed_columns(self.data_collator, description="target")
        samples = [sample for row in dataset for sample in samples_of(collate([row]))]
        supervised = [sample for sample in samples if sample.num_supervised]
        if len(supervised) < len(samples):
            logger.warning(
                f"{len(samples) - len(supervised)} of {len(samples)} target samples have no label to learn: "
                "left out"
            )
        return TargetSet(supervised, self.selection.target_per_step, self.args.seed)

    def _pad_token_id(self) -> int:
        """The id of a pad. Pads stand on the right, where no token looks at them: any id will do."""
        return getattr(self.processing_class, "pad_token_id", None) or 0

    def _note(
        self, look: Look, plan: Optional[Plan] = None, seconds: float = 0.0, sentences: Sequence[str] = ()
    ) -> None:
        """Keep an update's numbers for the next log; ``plan`` and the rest are of a proposed one."""
        selection = look.selection
        numbers = {
            "kept": len(selection.indices),
            "cosine": selection.cosine,
            "residual": selection.residual,
            "target_loss": look.target_loss,
            "fallback": float(selection.fallback),
            "dropped": len(selection.dropped),
            "seconds": seconds + sum(look.seconds.values()),
        }
        if plan is not None:
            numbers |= {"scored": plan.is_scored, "window": plan.proposed.window}
            numbers |= health(look.signals, plan.proposed)
            self._selection_log["epoch"] = [plan.epoch]  # the latest
        for name, value in numbers.items():
            if value is not None:
                self._selection_log.setdefault(name, []).append(float(value))
        if self.is_world_process_zero():
            for warning in (*look.warnings, *sentences):
                logger.warning(warning)


class _Clock(TrainerCallback):
    """Lets the proposer know what an update has taken, before a checkpoint or an evaluation takes more."""

    def __init__(self):
        self.proposer: Optional[Proposer] = None
        self.began = self.selection_seconds = 0.0

    def begin(self, proposer: Proposer, began: float, selection_seconds: float) -> None:
        """An update is under way since ``began``; selection has taken its part of it."""
        self.proposer, self.began, self.selection_seconds = proposer, began, selection_seconds

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.proposer is not None:
            self.proposer.spend(self.selection_seconds, time.perf_counter() - self.began)
            self.proposer = None


class SelectionTrainer(SelectionMixin, Trainer):
    """``transformers.Trainer`` that trains on a weighted selection; see ``SelectionMixin``."""


def _as_inputs(batch: MicroBatch, with_mask: bool) -> dict[str, torch.Tensor]:
    """A micro-batch as a collator would give it.

    Weights travel as integers of the same bits: under DeepSpeed the Trainer casts floats to its own dtype.
    """
    inputs = {
        "input_ids": batch.input_ids_BT,
        "labels": batch.labels_BT,
        WEIGHTS: batch.weights_B.view(torch.int32),
    }
    if with_mask:
        position_T = torch.arange(batch.input_ids_BT.shape[1], device=batch.input_ids_BT.device)
        # A row without any token that may be looked at would be NaN, so a blank row has one.
        inputs["attention_mask"] = (position_T < batch.num_tokens_B.clamp(min=1)[:, None]).long()
    return inputs


def _loss_by_sample(outputs: Mapping, labels_BT: torch.Tensor) -> torch.Tensor:
    """Mean loss (B,) over each sample's supervised tokens, from logits or from TRL's log-probabilities.

    TRL's fused output layer gives the latter.
    """
    if outputs.get("logits") is not None:
        return per_sample_loss(outputs["logits"], labels_BT)
    if outputs.get("log_probs") is not None:
        is_supervised_BT = labels_BT[:, 1:] != -100
        return -(outputs["log_probs"] * is_supervised_BT).sum(1) / is_supervised_BT.sum(1).clamp(min=1)
    raise ValueError(
        f"the model gives {', '.join(outputs)} and no logits, which the weighted loss is formed from: turn a "
        "fused loss off"
    )


@contextmanager
def _first_output(model: torch.nn.Module) -> Iterator[list]:
    """A list, for the output of the first forward of ``model`` inside."""
    seen: list = []
    handle = model.register_forward_hook(lambda _, __, output: seen.append(output) if not seen else None)
    try:
        yield seen
    finally:
        handle.remove()
