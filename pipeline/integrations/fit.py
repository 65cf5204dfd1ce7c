"""Checks that a Trainer's arguments fit selection, and the number of candidates that its batches hold."""

from typing import Any

from transformers import Trainer
from transformers.utils import logging

from pipeline.config import SelectionConfig, check_proposal
from pipeline.integrations import proposing
from pipeline.selection import registry

logger = logging.get_logger(__name__)


def candidates_per_batch(trainer: Trainer, selection: SelectionConfig) -> int:
    """Candidates that a rank loads for one micro-step, so that an update sees ``candidates_per_step``.

    Raises ValueError where ``keep_per_step`` is not the number of samples in one update of the Trainer, or
    where candidates do not divide.
    """
    args = trainer.args
    micro_steps = args.gradient_accumulation_steps * args.world_size
    trained = args.per_device_train_batch_size * micro_steps
    factors = (
        "per_device_train_batch_size x gradient_accumulation_steps x world size = "
        f"{args.per_device_train_batch_size} x {args.gradient_accumulation_steps} x "
        f"{args.world_size} = {trained}"
    )
    setting = "candidates_per_step" if selection.method == "full" else "keep_per_step"
    kept = getattr(selection, setting)
    if kept != trained:
        raise ValueError(
            f"selection.{setting} = {kept}, and one update trains on {factors} samples: make them equal"
        )
    if selection.candidates_per_step < kept:
        raise ValueError(
            f"selection.keep_per_step = {kept} is more than selection.candidates_per_step = "
            f"{selection.candidates_per_step}: lower one or raise the other"
        )
    if selection.candidates_per_step % micro_steps:
        raise ValueError(
            f"selection.candidates_per_step = {selection.candidates_per_step} is no multiple of "
            f"gradient_accumulation_steps x world size = {args.gradient_accumulation_steps} x "
            f"{args.world_size}: each micro-step of each rank loads an equal share"
        )
    return selection.candidates_per_step // micro_steps


def refuse_unfit_arguments(trainer: Trainer, selection: SelectionConfig, has_targets: bool) -> None:
    """Refuse arguments that would make the Trainer train on something else than they say.

    Raises ValueError with the argument and the way out.
    """
    args, accelerator = trainer.args, trainer.accelerator
    parallelism = getattr(accelerator, "parallelism_config", None)
    degrees = (
        {name: getattr(parallelism, f"{name}_size", 1) for name in ("tp", "cp", "sp")} if parallelism else {}
    )
    config = getattr(trainer.model, "config", None)
    refused = {
        f"{args.n_gpu} GPUs in one process (DataParallel)": (
            args.n_gpu > 1,
            "start it with accelerate launch, torchrun or deepspeed",
        ),
        "FSDP": (trainer.is_fsdp_enabled, "use deepspeed=, or DDP"),
        f"parallelism_config with {degrees}": (
            any(size > 1 for size in degrees.values()),
            "use data parallelism alone",
        ),
        "fp16 without DeepSpeed": (
            accelerator.scaler is not None,
            "set bf16=True, or use deepspeed= with ZeRO 1 to 3",
        ),
        "auto_find_batch_size": (
            args.auto_find_batch_size,
            "set per_device_train_batch_size; scoring halves its own passes by itself",
        ),
        "accelerator_config.split_batches": (
            args.accelerator_config.split_batches,
            "leave it out: per_device_train_batch_size is that of a rank",
        ),
        "train_sampling_strategy = batch_rebalance": (
            args.train_sampling_strategy == "batch_rebalance",
            "leave it out: kept samples are dealt over ranks by their tokens",
        ),
        "label_smoothing_factor": (
            args.label_smoothing_factor != 0,
            "set it to 0: the weighted loss is plain cross-entropy",
        ),
        "compute_loss_func": (
            trainer.compute_loss_func is not None,
            "leave it out: the weighted loss is plain cross-entropy",
        ),
        "loss_type = dft": (getattr(args, "loss_type", "nll") == "dft", "set it to nll"),
        "packing": (getattr(args, "packing", False), "set it to False: selection keeps whole samples"),
        "padding_free": (
            getattr(args, "padding_free", False),
            "set it to False: selection keeps whole samples",
        ),
        "output_router_logits": (
            getattr(config, "output_router_logits", False),
            "set it to False in the model's config: the loss has no router term",
        ),
        f"selection.seed_scores = {selection.seed_scores}": (
            selection.seed_scores is not None,
            "leave it out: rows of train_dataset have no id to find their scores by",
        ),
    }
    for what, (is_set, remedy) in refused.items():
        if is_set:
            raise ValueError(f"selection does not go with {what}: {remedy}")
    if registry.get(selection.method).needs_target and not has_targets:
        raise ValueError(
            f"selection.method = {selection.method} needs examples to aim at: give target_dataset"
        )
    candidates_per_batch(trainer, selection)
    check_proposal(selection)
    if trainer.train_dataset is not None:
        _refuse_unfit_dataset(trainer.train_dataset, selection)


def _refuse_unfit_dataset(dataset: Any, selection: SelectionConfig) -> None:
    """Refuse proposals that a Trainer does not make, or not from this dataset. Raises ValueError."""
    proposal = proposing.proposal_of(selection, dataset)
    if proposal not in ("uniform", "learned"):
        raise ValueError(
            f"selection does not go with selection.proposal = {proposal} in a Trainer, which trains on "
            "train_dataset: give it the rows that are wanted, and set uniform or learned"
        )
    if not proposing.is_indexable(dataset):
        for name, wanted in (("proposal", "uniform"), ("score_every", 1)):
            value = getattr(selection, name)
            if value not in ("auto", wanted):
                raise ValueError(
                    f"selection.{name} = {value} asks for rows by their positions, and train_dataset is a "
                    f"stream ({type(dataset).__name__}): set it to {wanted}, or give a dataset with a length"
                )
        logger.warning(
            "train_dataset is a stream: its rows are candidates as they come, and every update scores "
            "(selection.proposal = uniform, selection.score_every = 1)"
        )
    elif proposing.proposes(selection, dataset) and len(dataset) < selection.candidates_per_step:
        raise ValueError(
            f"train_dataset has {len(dataset)} rows, fewer than selection.candidates_per_step = "
            f"{selection.candidates_per_step}: add data or lower the setting"
        )
