"""A planned run from the settings of a run, for the programs that predict its cost."""

from dataclasses import replace
from pathlib import Path
from typing import Optional

import torch

from pipeline.config import Config, samples_per_step
from pipeline.planning.hardware import Hardware
from pipeline.planning.model_shapes import ModelShapes, read_shapes
from pipeline.planning.passes import Run
from pipeline.training.engine import deepspeed_config, resolve_dtype


def plan_run(config: Config, hardware: Hardware, world_size: int = 0, tokens: int = 0) -> Run:
    """The run as the planner sees it; 0 ranks are one node of the hardware, 0 tokens ``data.max_tokens``.

    Raises ValueError where the run itself would be refused, for settings that do not divide or that
    contradict the DeepSpeed file.
    """
    world_size = world_size or hardware.ranks_per_node
    for name, value in (("world_size", world_size), ("tokens", tokens or 1)):
        if value < 1:
            raise ValueError(f"{name} is {value}: the smallest value is 1")
    dtype = resolve_dtype(config.training.precision, torch.device(hardware.device_type))
    merged = deepspeed_config(config, world_size, dtype)
    zero = merged.get("zero_optimization", {})
    return Run(
        selection=config.selection,
        training=config.training,
        world_size=world_size,
        zero_stage=zero.get("stage", 0),
        tokens=tokens or config.data.max_tokens,
        element_size=dtype.itemsize,
        trained_samples=samples_per_step(config),
        offloads_optimizer=zero.get("offload_optimizer", {}).get("device", "none") != "none",
        checkpoints=config.model.gradient_checkpointing,
        is_flash=config.model.attention != "eager",
        device_type=hardware.device_type,
        is_float16=dtype == torch.float16,
    )


def reference_shapes(config: Config) -> Optional[ModelShapes]:
    """Shapes of ``selection.reference_model``; None where there is none.

    An adapter's are taken for those of ``model.name``.
    """
    name = config.selection.reference_model
    if name is None:
        return None
    is_adapter = (Path(name) / "adapter_config.json").is_file()
    return read_shapes(replace(config.model, name=config.model.name if is_adapter else name, lora_rank=0))
