"""The start of programs of several ranks, in two steps.

``prepare`` comes before data and model are read, ``load`` makes model and engine.
"""

from dataclasses import dataclass, replace
from typing import Any, Optional

import torch
import transformers

from pipeline.config import Config
from pipeline.ranks.narrator import Narrator
from pipeline.ranks.together import together
from pipeline.training import checkpoint
from pipeline.training.attention import Attention, packs
from pipeline.training.checkpoint import Found
from pipeline.training.engine import (
    build_engine,
    check_hardware,
    deepspeed_config,
    resolve_dtype,
    start_process_group,
)
from pipeline.training.model import load_model, partition_while_loading
from pipeline.training.small_model import located


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """This rank among the others, and the settings as this machine can run them."""

    rank: int
    world_size: int
    device: torch.device
    dtype: torch.dtype
    """Dtype of the model's weights."""
    merged: dict[str, Any]
    """DeepSpeed's configuration: its file, completed by the settings."""
    say: Narrator


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in its engine."""

    engine: Any
    """DeepSpeedEngine."""
    attention: Attention
    is_packed: bool
    """Whether the samples of a micro-batch stand in one row."""
    partitioning: Any
    """A handle that tells transformers, while kept, that ZeRO-3 splits models; None at other stages."""


def prepare(config: Config, *, takes_steps: bool = True) -> Prepared:
    """Start the process group and check the settings against it and the machine. Every rank calls it.

    Args:
        config: parsed and checked by itself.
        takes_steps: False for an engine that is to score alone, so that sizes of steps need not divide.

    Raises:
        ValueError: settings, DeepSpeed's file, ranks and machine do not go together.
    """
    rank, world_size, device = start_process_group(config.run.timeout_seconds)
    dtype = resolve_dtype(config.training.precision, device)
    merged = deepspeed_config(
        config if takes_steps else _without_steps(config, world_size), world_size, dtype
    )
    check_hardware(config, merged, device)
    together(lambda: located(config.model.name))
    return Prepared(
        rank=rank, world_size=world_size, device=device, dtype=dtype, merged=merged, say=Narrator(rank)
    )


def load(config: Config, prepared: Prepared, *, found: Optional[Found] = None) -> Loaded:
    """Model and engine of ``config``, into which ``found`` can be loaded afterwards. Every rank calls it.

    All random generators begin at ``run.seed``. Raises ValueError where the model cannot be had, or runs
    otherwise than the settings say.
    """
    merged = checkpoint.for_other_ranks(prepared.merged, found, prepared.world_size)
    partitioning = partition_while_loading(merged)
    transformers.set_seed(config.run.seed)  # seeds Python's and numpy's generators too
    model, attention = load_model(config.model, prepared.dtype, prepared.device, config.run.seed)
    return Loaded(
        engine=build_engine(model, merged, config.training),
        attention=attention,
        is_packed=packs(config.model.packing, attention, prepared.device),
        partitioning=partitioning,
    )


def _without_steps(config: Config, world_size: int) -> Config:
    selection = replace(config.selection, candidates_per_step=world_size, keep_per_step=world_size)
    return replace(config, selection=selection, training=replace(config.training, micro_batch_size=1))
