"""The engine as selection sees it: its members, a stand-in without DeepSpeed, and the refusals."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from deepspeed.runtime.pipe.engine import PipelineEngine

NO_FLOAT16_AT_STAGE_0 = (
    "at ZeRO stage 0 DeepSpeed 0.19.8 divides float16 gradients by a loss scale that it has not multiplied "
    "the loss by, so updates are wrong: take stage 1, which needs no more memory"
)


class Engine(Protocol):
    """The members that scoring reads; a DeepSpeedEngine has them all, and so has a ``TorchEngine``."""

    module: torch.nn.Module
    optimizer: Any
    """DeepSpeed's wrapper around a torch optimizer, or the optimizer itself."""
    device: torch.device
    seq_data_parallel_group: Any
    """The ranks that hold the same model; None where no process group was started."""
    sequence_parallel_size: int
    mp_world_size: int
    global_steps: int
    """Optimizer steps taken, the skipped ones among them."""
    skipped_steps: int
    """Steps without an update, where a float16 gradient overflowed."""
    micro_steps: int

    def get_lr(self) -> list[float]:
        """Learning rate of each parameter group."""

    def fp16_enabled(self) -> bool:
        """Whether the module computes in float16, with a loss scale."""

    def zero_optimization_stage(self) -> int:
        """ZeRO stage, 0 to 3."""

    def zero_optimization_partition_weights(self) -> bool:
        """Whether a rank holds a part of the weights alone, so that each forward gathers them."""


class TorchEngine:
    """A plain torch optimizer, in one process or under DistributedDataParallel, as an ``Engine``.

    It takes no step: training goes on as it is written.

    Args:
        module: the model itself, not its wrapper.
        optimizer: over parameters of ``module``; with the state of Adam, where candidates are measured by it.
        device: where ``module`` is.
        autocast: the context of training's forward (``torch.autocast``), so that scoring has the same.
    """

    sequence_parallel_size = mp_world_size = 1
    skipped_steps = micro_steps = 0

    def __init__(
        self,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.module = module
        self.optimizer = optimizer
        self.device = device
        self.autocast = autocast
        self.seq_data_parallel_group = dist.group.WORLD if dist.is_initialized() else None

    @property
    def global_steps(self) -> int:
        """Updates done, as Adam counts them; a resumed optimizer brings its count along."""
        return max(
            (int(state["step"]) for state in self.optimizer.state.values() if "step" in state), default=0
        )

    def get_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def fp16_enabled(self) -> bool:
        return False

    def zero_optimization_stage(self) -> int:
        return 0

    def zero_optimization_partition_weights(self) -> bool:
        return False


def forward_context(engine: Engine) -> AbstractContextManager:
    """The context for the forward of a scoring pass: training's autocast, or nothing under DeepSpeed."""
    return engine.autocast() if isinstance(engine, TorchEngine) else nullcontext()


def refuse_unfit(engine: Engine) -> None:
    """Raise ValueError, with the way out, for an engine that does not go with selection."""
    for degree, name in ((engine.sequence_parallel_size, "sequence"), (engine.mp_world_size, "tensor")):
        if degree > 1:
            raise ValueError(
                f"selection works with data parallelism only, and this engine has {name} parallelism of "
                f"degree {degree}"
            )
    if isinstance(engine, PipelineEngine):
        raise ValueError(
            "selection works with data parallelism only, and this engine has pipeline parallelism"
        )
    if engine.fp16_enabled() and engine.zero_optimization_stage() == 0:
        raise ValueError(NO_FLOAT16_AT_STAGE_0)
