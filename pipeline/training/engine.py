"""The DeepSpeed engine: process group, configuration from file and settings, AdamW and its schedule."""

import math
import os
import re
import socket
from datetime import timedelta

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.utils import groups

from pipeline.config import Config, TrainingConfig, check_world_size, geometry, needs_moments
from pipeline.data.checks import BrokenLine, decode, shown
from pipeline.ranks import peers
from pipeline.scoring.engines import NO_FLOAT16_AT_STAGE_0
from pipeline.scoring.moments import DISK_BLOCK, misplaced_swapped_gradients, whole_shape
from pipeline.selection import registry
from pipeline.settings import PRESETS, flatten, is_secret
from pipeline.training.kernels import clear_stale_locks

QUANTIZED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")
VARIABLE = re.compile(r"\$\{?(\w+)")
OWNED = ("train_batch_size", "scheduler")  # they follow from settings; the other owned keys are merged below


def start_process_group(timeout_seconds: int) -> tuple[int, int, torch.device]:
    """Start the process group, unless it has been started. Returns (rank, world_size, device).

    A collective that waits longer than the timeout ends the process with an error.
    """
    # On CPU DeepSpeed would build a shared-memory all-reduce in C++ that only inference uses, and leave
    # 66 MiB a rank in /dev/shm.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "RANK" not in os.environ:  # started without a launcher: a world of one, on a port nobody else has
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    accelerator = get_accelerator()
    accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    timeout = timedelta(seconds=timeout_seconds)
    deepspeed.init_distributed(timeout=timeout, auto_mpi_discovery=False, verbose=False)
    # DeepSpeed works on a copy of this group, made without the timeout.
    dist.distributed_c10d._set_pg_timeout(timeout, groups._clone_world_group())
    peers.meet()
    return dist.get_rank(), dist.get_world_size(), torch.device(accelerator.current_device_name())


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def deepspeed_config(config: Config, world_size: int, dtype: torch.dtype) -> dict:
    """The file named by ``deepspeed``, completed by everything that the settings own.

    ``"auto"`` values are dropped, as written for HF's Trainer. Raises ValueError where the two contradict.
    """
    with open(PRESETS.find(config.deepspeed), "rb") as file:
        try:
            from_file = decode(file.read())
        except BrokenLine as error:
            raise ValueError(f"deepspeed: {config.deepspeed} is no JSON: {error}") from error
    _check_parts(config.deepspeed, from_file)
    _check_partitioning(config.deepspeed, from_file.get("zero_optimization", {}), world_size)
    from_file = _without_auto(from_file)
    for key in OWNED:
        if key in from_file:
            raise ValueError(
                f"deepspeed: {config.deepspeed} sets '{key}', which follows from selection.* and training.*: "
                "remove it"
            )
    writers = {
        "checkpoint.writer": from_file.get("checkpoint", {}).get("writer"),
        "datastates_ckpt": from_file.get("datastates_ckpt"),
    }
    for key, value in writers.items():
        if value:
            raise ValueError(
                f"deepspeed: {config.deepspeed} sets '{key}': DeepSpeed's own writers neither force files to "
                "the disk nor say which rank failed to write, so checkpoints are written without them: "
                "remove it"
            )
    if dtype == torch.float16 and from_file.get("zero_optimization", {}).get("stage", 0) == 0:
        raise ValueError(
            f"deepspeed: {config.deepspeed} sets no zero_optimization.stage or 0, and training.precision = "
            f"fp16: {NO_FLOAT16_AT_STAGE_0}"
        )
    training = config.training
    optimizer = _optimizer(config, from_file.get("optimizer", {}).get("type", "AdamW"))
    derived = {
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": check_world_size(config, world_size),
        "gradient_clipping": training.gradient_clipping,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "optimizer": optimizer,
    }
    merged = _merge(from_file, derived, "", config.deepspeed)
    merged.setdefault("steps_per_print", 10**9)  # the progress bar and the step records say it
    if optimizer["type"] != "AdamW":
        merged.setdefault("zero_allow_untested_optimizer", True)
    if "offload_optimizer" in merged.get("zero_optimization", {}) and training.adam == "torch":
        merged.setdefault("zero_force_ds_cpu_optimizer", False)
    return merged


def check_hardware(config: Config, merged: dict, device: torch.device) -> None:
    """Refuse what this machine cannot run, before the model is loaded. Raises ValueError with the needs."""
    zero, file = merged.get("zero_optimization", {}), config.deepspeed
    if merged["fp16"]["enabled"] and not get_accelerator().is_fp16_supported():
        raise ValueError(
            "training.precision = fp16 needs a CUDA card or a CPU with float16 arithmetic (AVX512-FP16), and "
            f"DeepSpeed finds neither on {socket.gethostname()}: set it to bf16 or fp32"
        )
    for key in QUANTIZED:
        if zero.get(key) and device.type != "cuda":
            raise ValueError(
                f"deepspeed: {file} sets zero_optimization.{key}, whose kernels run on CUDA cards alone, and "
                f"this run is on {device.type}: take deepspeed: zero3_hpz, which partitions in the same way "
                "and quantises nothing"
            )
    for key in ("offload_optimizer", "offload_param"):
        if zero.get(key, {}).get("device") != "nvme":
            continue
        folder = zero[key].get("nvme_path", "")
        if "$" in folder:
            raise ValueError(
                f"deepspeed: {file} sets zero_optimization.{key}.nvme_path = {folder!r}, and there is no "
                f"such environment variable on {socket.gethostname()}: export it on every node, as a folder "
                "on a local disk"
            )
        if not os.access(folder, os.W_OK):
            raise ValueError(
                f"deepspeed: zero_optimization.{key}.nvme_path of {file} is {folder!r}, where "
                f"{socket.gethostname()} cannot write: name a folder on a local disk of every node"
            )
        if not AsyncIOBuilder().is_compatible():
            raise ValueError(
                f"deepspeed: {file} offloads to NVMe through DeepSpeed's async_io, which does not build on "
                f"{socket.gethostname()}: install libaio's headers (Debian: libaio-dev) and a C++ compiler"
            )


def build_engine(model: torch.nn.Module, merged: dict, training: TrainingConfig):
    """DeepSpeedEngine with AdamW; weight decay spares norms and biases."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    dimensions = {id(p): len(whole_shape(p)) for p in trained}
    groups = [
        {"params": [p for p in trained if dimensions[id(p)] >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if dimensions[id(p)] < 2], "weight_decay": 0.0},
    ]
    if training.adam == "deepspeed":
        clear_stale_locks()
    engine, *_ = deepspeed.initialize(
        model=model,
        config=merged,
        model_parameters=[group for group in groups if group["params"]],
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(training, step)
        ),
    )
    _check_swapped_gradients(engine)
    return engine


def _check_swapped_gradients(engine) -> None:
    for name, offset, num_bytes in misplaced_swapped_gradients(engine):
        raise ValueError(
            f"under optimizer offload to NVMe DeepSpeed 0.19.8 would lose gradients of {name}: a rank's part "
            f"lies {offset:,} bytes into its group, no multiple of {DISK_BLOCK}. Take deepspeed: "
            f"zero3_offload, another number of ranks, or aio.block_size above {num_bytes:,} (gradients then "
            "stay in host memory)"
        )


def learning_rate_factor(training: TrainingConfig, step: int) -> float:
    """Learning rate of update ``step`` (from 0) as a share of the peak.

    It warms up linearly, then follows the schedule down to 0.
    """
    warmup, steps = training.learning_rate_warmup_steps, training.steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[
        training.schedule
    ]


def ranks_per_node(world_size: int) -> int:
    """Ranks on this node: deepspeed's LOCAL_SIZE, torchrun's LOCAL_WORLD_SIZE, else all of them."""
    return int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or world_size)


def _optimizer(config: Config, named: str) -> dict:
    """The optimizer's part of the configuration; ``named`` is the type that the file gives.

    Raises ValueError for one without moments where selection measures with these.
    """
    training, selection = config.training, config.selection
    if named.lower() in ("adam", "adamw"):
        parameters = {
            "lr": training.learning_rate,
            "betas": list(training.betas),
            "eps": training.eps,
            "weight_decay": training.weight_decay,
        }
        if training.adam == "torch":
            parameters["torch_adam"] = True
        return {"type": "AdamW", "params": parameters}
    if needs_moments(selection):
        own = registry.get(selection.method).geometry is not None
        offer = (
            "selection.method = filter_then_weight with selection.geometry = identity"
            if own
            else "selection.geometry = identity"
        )
        raise ValueError(
            f"deepspeed: {config.deepspeed} sets optimizer.type = {named!r}, which keeps no second moments, "
            f"and selection.method = {selection.method} with selection.geometry = {geometry(selection)} "
            f"measures with Adam's: remove it from the file, or set {offer}"
        )
    return {"type": named, "params": {"lr": training.learning_rate, "weight_decay": training.weight_decay}}


def _check_parts(file: str, from_file) -> None:
    """Refuse what is no configuration, and what a run must not save."""
    parts = (
        "optimizer",
        "zero_optimization",
        "zero_optimization.offload_param",
        "zero_optimization.offload_optimizer",
    )
    for name in ("", *parts):
        value = from_file
        for key in filter(None, name.split(".")):
            value = value.get(key, {})
        if not isinstance(value, dict):
            raise ValueError(
                f"deepspeed: {file} holds {shown(value)} {f'as {name} ' if name else ''}where an object "
                "belongs"
            )
    for name, value in flatten(from_file):
        if is_secret(name) and isinstance(value, str):
            raise ValueError(
                f"deepspeed: {file} sets {name}, a secret that would be saved with the run: remove it, and "
                "set it in the environment"
            )


def _check_partitioning(file: str, zero: dict, world_size: int) -> None:
    """Fill in what depends on the nodes; refuse what selection or ZeRO cannot do."""
    stage = zero.get("stage", 0)
    for key in ("offload_param", "offload_optimizer"):
        offload = zero.get(key, {})
        device = offload.get("device", "none")
        needed = 3 if key == "offload_param" or device == "nvme" else 1
        if device != "none" and stage < needed:
            raise ValueError(
                f"deepspeed: {file} sets zero_optimization.{key}.device = {device!r}, which needs at least "
                f"stage {needed}, and zero_optimization.stage = {stage}: change one of them"
            )
        if "nvme_path" in offload:
            if secret := next(filter(is_secret, VARIABLE.findall(str(offload["nvme_path"]))), None):
                raise ValueError(
                    f"deepspeed: {file} names ${secret} in {key}.nvme_path, a secret that would be saved "
                    "with the run"
                )
            offload["nvme_path"] = os.path.expandvars(str(offload["nvme_path"]))
    if zero.get("mics_shard_size", -1) > 0:
        raise ValueError(
            f"deepspeed: {file} sets zero_optimization.mics_shard_size = {zero['mics_shard_size']}: MiCS "
            "keeps the Adam state once for every shard group, which selection has no map of; take "
            "zero_hpz_partition_size (deepspeed: zero3_hpz)"
        )
    if zero.get("zero_hpz_partition_size") == "auto":
        zero["zero_hpz_partition_size"] = ranks_per_node(world_size)
    group = zero.get("zero_hpz_partition_size", 1)
    if group > 1 and world_size % group:
        raise ValueError(
            f"deepspeed: {file} sets zero_optimization.zero_hpz_partition_size = {group}, which does not "
            f"divide the number of ranks, {world_size}: set it to the number of ranks of a node"
        )


def _without_auto(value):
    if isinstance(value, dict):
        return {key: _without_auto(item) for key, item in value.items() if item != "auto"}
    return value


def _merge(from_file: dict, derived: dict, path: str, file: str) -> dict:
    merged = dict(from_file)
    for key, value in derived.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value, f"{path}{key}.", file)
        elif key in merged and merged[key] != value:
            raise ValueError(
                f"deepspeed: {file} sets {path}{key} = {merged[key]!r}, and the settings say {value!r}: "
                "remove it from the file and use training.* or selection.*"
            )
        else:
            merged[key] = value
    return merged
