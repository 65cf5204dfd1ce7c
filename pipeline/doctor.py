"""Check machines, cluster and settings before a run: what was found and, where a check fails, a remedy.

# this machine, and the run's settings
python -m pipeline.doctor [--config recipe.yaml] [--section.key value ...] [--json]
# every rank: also links and clocks
deepspeed --module pipeline.doctor --config recipe.yaml

``--quick`` is what the launch scripts run first: seconds, and no communication. Exit code 2 if a check fails.
"""

import importlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Optional

import deepspeed
import psutil
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.git_version_info import installed_ops
from deepspeed.ops.op_builder import AsyncIOBuilder, CPUAdamBuilder, FusedAdamBuilder
from jsonargparse import Namespace
from torch.utils.cpp_extension import CUDA_HOME, get_default_build_root

from pipeline.config import Config, build_parser, check_data, parse_with
from pipeline.data.reading import Reading
from pipeline.data.token_cache import folder_of
from pipeline.planning import forecast, price
from pipeline.planning.hardware import BUILT_IN, FEATURE_TOKENS_PER_SECOND, GIB, Hardware
from pipeline.planning.model_shapes import ModelShapes, read_shapes
from pipeline.planning.passes import Run
from pipeline.planning.planned_run import plan_run, reference_shapes
from pipeline.planning.price import Features
from pipeline.ranks.narrator import Line
from pipeline.training.engine import check_hardware, deepspeed_config, resolve_dtype, start_process_group
from pipeline.training.kernels import STALE_SECONDS
from pipeline.training.model import load_tokenizer

DEEPSPEED = "0.19.8"
"""The version whose partitions pipeline/scoring/moments.py reads (requirements.txt)."""
FLASH = {
    "flash-attn-4": "flash_attn.cute",
    "flash-attn-3": "flash_attn_interface",
    "flash-attn": "flash_attn",
}
CHECKPOINTS = 3  # two are kept, and one is written beside them
LARGEST_SKEW = 2.0  # seconds; beyond that, times in files and logs of two nodes cannot be compared
BUFFER_BYTES, REPEATS = 16 << 20, 5


def main(arguments: Optional[list[str]] = None) -> int:
    """The exit code: 0, or 2 if a check has failed."""
    parser = build_parser(__doc__.split("\n\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="this machine alone, in seconds; data are only looked for"
    )
    parser.add_argument(
        "--world_size",
        type=int,
        default=0,
        help="ranks of the run; 0 is the ranks that were started, or the GPUs here",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON in the last line")
    config, options = parse_with(parser, arguments, needs_data=False)
    quiet = open(os.devnull, "w") if options.json else sys.stdout  # noqa: SIM115  closed with the process
    with redirect_stdout(quiet):
        lines = examine(config, options)
    if int(os.environ.get("RANK", "0")) == 0:
        report(lines, options.json)
    return 0 if all(line.passed for line in lines) else 2


def examine(config: Config, options: Namespace) -> list[Line]:
    """Lines of all checks. Without ``quick`` every rank calls it, and gets what all ranks have found."""
    rank, world_size = 0, options.world_size or max(1, torch.cuda.device_count())
    device = torch.device(get_accelerator().current_device_name())
    if not options.quick:
        rank, started, device = start_process_group(config.run.timeout_seconds)
        world_size = options.world_size or started
    lines = [*machine(device), *run_checks(config, options, world_size, device)]
    if options.quick:
        return lines
    return [*agreed(lines), *links(rank, device)]


# -- the machine --


def machine(device: torch.device) -> Iterator[Line]:
    """Checks of what is installed on this machine."""
    yield Line(
        "versions",
        deepspeed.__version__.split("+")[0] == DEEPSPEED,
        f"Python {platform.python_version()}, torch {torch.__version__}, DeepSpeed {deepspeed.__version__}, "
        f"transformers {version('transformers')}, peft {version('peft')}",
        f"selection reads DeepSpeed's partitions as {DEEPSPEED} makes them: pip install "
        f"deepspeed=={DEEPSPEED}",
    )
    yield _cuda(device)
    yield _flash(device)
    yield Line("kernels that are built", True, _kernels())


def _cuda(device: torch.device) -> Line:
    has_card = (
        shutil.which("nvidia-smi") is not None
        and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0
    )
    abi = f"C++11 ABI {'on' if torch.compiled_with_cxx11_abi() else 'off'}"
    if device.type != "cuda":
        found = f"torch for CUDA {torch.version.cuda or 'none'}, {abi}; running on {device.type}"
        wrong = has_card and os.environ.get("DS_ACCELERATOR") != "cpu"
        return Line(
            "CUDA",
            not wrong,
            found + (", though there is a card" if wrong else ""),
            "install a torch built for the card's driver",
        )
    cards = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    toolkit = _toolkit()
    found = f"{cards}, torch for CUDA {torch.version.cuda}, toolkit {toolkit or 'none'}, {abi}"
    built_for = torch.version.cuda  # None on AMD cards
    matches = toolkit is None or built_for is None or toolkit.split(".")[0] == built_for.split(".")[0]
    return Line(
        "CUDA",
        matches,
        found,
        f"kernels cannot be built: point CUDA_HOME to a toolkit of CUDA {torch.version.cuda}",
    )


def _toolkit() -> Optional[str]:
    compiler = Path(CUDA_HOME or "") / "bin/nvcc"
    if CUDA_HOME is None or not compiler.is_file():
        return None
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    return said.partition("release ")[2].partition(",")[0] or None


def _flash(device: torch.device) -> Line:
    """The check of flash-attn's packages."""
    found, broken = [], []
    for package, module in FLASH.items():
        try:
            number = version(package)
        except PackageNotFoundError:
            continue
        try:
            # A package built against another torch fails when it is imported, not when it is installed.
            importlib.import_module(module)
            found.append(f"{package} {number}")
        except Exception as error:  # foreign extensions raise anything, and all of it is to be told
            broken.append(f"{package} {number}: {type(error).__name__}: {error}")
    if broken:
        return Line(
            "flash-attn", False, "; ".join(broken), "install it again, built against this torch, or remove it"
        )
    none = "none installed; PyTorch's own flash kernel runs" + (", slower" if device.type == "cuda" else "")
    return Line("flash-attn", True, ", ".join(found) or none)


def _built() -> set[str]:
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    return {name for name, installed in installed_ops.items() if installed} | {
        path.stem for path in root.glob("**/*.so")
    }


def _kernels() -> str:
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    stale = [str(lock) for lock in root.glob("**/lock") if time.time() - lock.stat().st_mtime > STALE_SECONDS]
    built = ", ".join(sorted(_built())) or "none"
    return built + (
        f"; locks of builds that died, which a run deletes when it starts: {', '.join(stale)}"
        if stale
        else ""
    )


# -- the run --


def run_checks(config: Config, options: Namespace, world_size: int, device: torch.device) -> Iterator[Line]:
    """Checks of the run that the settings describe; none where they name no data."""
    if not config.data.pool:
        return
    try:
        dtype = resolve_dtype(config.training.precision, device)
        merged = deepspeed_config(config, world_size, dtype)
        check_data(config)
        check_hardware(config, merged, device)
    except ValueError as error:
        yield Line("settings", False, str(error), "see the sentence itself")
        return
    zero = merged.get("zero_optimization", {})
    yield Line(
        "settings", True, f"{config.deepspeed}, ZeRO-{zero.get('stage', 0)}, {dtype}, {world_size} ranks"
    )
    yield _needed_kernels(config, zero)
    tokenizer, line = _attempt(
        "tokenizer and chat template", lambda: load_tokenizer(config.model), _say_template, "see model.name"
    )
    yield line
    shapes, line = _attempt(
        "model", lambda: read_shapes(config.model), lambda s: f"{s.parameters:,} parameters", "see model.name"
    )
    yield line
    samples = None
    if tokenizer is not None and not options.quick:
        for name in ("pool", "target", "test"):
            if getattr(config.data, name):
                found, line = _data(config, name, tokenizer)
                yield line
                samples = found if name == "pool" else samples
    if shapes is not None:
        hardware = replace(BUILT_IN["h100"], device_type=device.type)
        run = plan_run(config, hardware, world_size)
        features = None
        if samples and price.learns(run):
            features = Features(FEATURE_TOKENS_PER_SECOND, samples.num_tokens, samples.num)
            yield _features(config, features)
        yield _memory(config, shapes, run, hardware, device, world_size)
        if run.method.looks_at_candidates:
            yield _price(config, shapes, run, hardware.computing_in(run.element_size), features)
        yield _disk(config, shapes, run)


def _attempt(check: str, action: Callable, say: Callable, remedy: str):
    try:
        value = action()
    except (ValueError, OSError) as error:
        return None, Line(check, False, str(error), remedy)
    return value, Line(check, True, say(value))


def _say_template(tokenizer) -> str:
    template = (
        "has a chat template"
        if tokenizer.chat_template
        else "has no chat template: chats would be refused (model.chat_template)"
    )
    return f"{len(tokenizer):,} tokens, {template}"


def _needed_kernels(config: Config, zero: dict) -> Line:
    builders = []
    if config.training.adam == "deepspeed":
        offloads = zero.get("offload_optimizer", {}).get("device", "none") != "none"
        builders.append(CPUAdamBuilder() if offloads else FusedAdamBuilder())
    if any(zero.get(key, {}).get("device") == "nvme" for key in ("offload_optimizer", "offload_param")):
        builders.append(AsyncIOBuilder())
    to_build = [builder for builder in builders if builder.NAME not in _built()]
    tools = [tool for tool in ("c++", "ninja") if shutil.which(tool) is None] if to_build else []
    named = (
        ", ".join(
            f"{b.NAME} ({'built at first use, minutes' if b in to_build else 'built'})" for b in builders
        )
        or "none"
    )
    cannot = [b.NAME for b in to_build if not b.is_compatible()]
    problem = (f"; missing: {', '.join(tools)}" if tools else "") + (
        f"; cannot be built: {', '.join(cannot)}" if cannot else ""
    )
    return Line(
        "kernels the run needs",
        not problem,
        named + problem,
        "install a C++ compiler, ninja and, for NVMe, libaio's headers",
    )


@dataclass(frozen=True)
class _Read:
    """Samples that were read and forgotten."""

    num: int
    num_tokens: int
    counts: dict[str, int]


def _data(config: Config, name: str, tokenizer) -> tuple[Optional[_Read], Line]:
    def read() -> _Read:
        reading = Reading(getattr(config.data, name), tokenizer, config.data, f"data.{name}")
        num = num_tokens = 0
        for part in reading.parts():
            for sample in part:
                num, num_tokens = num + 1, num_tokens + len(sample.input_ids)
        return _Read(num, num_tokens, reading.counts())

    def say(found: _Read) -> str:
        return ", ".join(f"{key} {value}" for key, value in found.counts.items())

    return _attempt(f"data.{name}", read, say, "the sentence names the file and line")


def _features(config: Config, features: Features) -> Line:
    """The check of room for the features of the pool, which are made once."""
    folder, is_writable = folder_of(config.data), True
    if folder is None:
        where, free = "memory", psutil.virtual_memory().available
    else:
        where, free = f"{folder}, mapped into memory", shutil.disk_usage(_nearest(folder)).free
        is_writable = os.access(_nearest(folder), os.W_OK)
    return Line(
        "features of data.pool",
        features.num_bytes < free and is_writable,
        f"{features.num_samples:,} samples, {features.num_tokens:,} tokens: about {features.seconds:.1f} s "
        f"of one core, once (at an Intel Xeon's rate), and {features.num_bytes / GIB:.3f} GiB in {where} on "
        f"rank 0's node, where {free / GIB:.1f} GiB are free{'' if is_writable else ', NOT writable'}",
        "name another data.cache_folder",
    )


def _memory(
    config: Config, shapes: ModelShapes, run: Run, hardware, device: torch.device, world_size: int
) -> Line:
    step = forecast.weighted_step(shapes, run, hardware).memory_bytes
    selection = forecast.selection(shapes, run, hardware, reference_shapes(config)).memory_bytes
    here = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or world_size)
    free = (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else psutil.virtual_memory().available / here
    )
    return Line(
        "memory of a rank",
        max(step, selection) < free,
        f"{free / GIB:.1f} GiB free; predicted {selection / GIB:.1f} for selection, "
        f"{step / GIB:.1f} for the step",
        "python -m pipeline.plan shows what takes it: lower selection.scoring_micro_batch_size or "
        "training.micro_batch_size, or offload",
    )


def _price(
    config: Config, shapes: ModelShapes, run: Run, hardware: Hardware, features: Optional[Features]
) -> Line:
    selection = forecast.selection(shapes, run, hardware, reference_shapes(config))
    priced = price.price(selection, forecast.weighted_step(shapes, run, hardware), run, hardware, features)
    fewest, most = priced.num_scored
    return Line(
        "price of selection",
        True,
        f"a step that scores costs {priced.scored:.2f} plain ones, another {priced.unscored:.2f}; with "
        f"{fewest:,} to {most:,} of {priced.num_steps:,} steps scored the run costs {priced.run[0]:.2f} to "
        f"{priced.run[1]:.2f} times as much as a plain one (predicted with an H100's rates; python -m "
        "pipeline.plan --hardware here takes this machine's)",
    )


def _nearest(folder: Path) -> Path:
    """The folder, or the innermost one around it that is there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _disk(config: Config, shapes: ModelShapes, run: Run) -> Line:
    """The check of room for checkpoints."""
    folder = _nearest(Path(config.run.folder))
    # A checkpoint holds the weights, and for trained ones the float32 master copy and two moments.
    needed = CHECKPOINTS * (run.element_size * shapes.parameters + 12 * shapes.trained_parameters)
    free = shutil.disk_usage(folder).free
    return Line(
        "disk for checkpoints",
        free > needed and os.access(folder, os.W_OK),
        f"{free / GIB:.1f} GiB free in {folder}, "
        f"{'writable' if os.access(folder, os.W_OK) else 'NOT writable'}; {CHECKPOINTS} checkpoints take "
        f"{needed / GIB:.1f} GiB",
        "name another run.folder",
    )


# -- all ranks --


def agreed(lines: list[Line]) -> list[Line]:
    """One line a check for all ranks together; where it fails on one, or versions differ, with rank and
    host."""
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, (socket.gethostname(), lines))
    merged = []
    for own in lines:
        theirs: list[tuple[int, str, Line]] = [
            (rank, host, line)
            for rank, (host, found) in enumerate(everywhere)
            for line in found
            if line.check == own.check
        ]
        failed = [(rank, host, line) for rank, host, line in theirs if not line.passed]
        if failed:
            rank, host, line = failed[0]
            where = f"on {len(failed)} of {len(everywhere)} ranks, first rank {rank} ({host})"
            own = replace(line, found=f"{where}: {line.found}")
        elif own.check == "versions" and len({line.found for *_, line in theirs}) > 1:
            rank, host, line = next(item for item in theirs if item[2].found != theirs[0][2].found)
            found = f"rank 0 has {theirs[0][2].found}, rank {rank} ({host}) {line.found}"
            own = Line(own.check, False, found, "install the same packages on every node")
        merged.append(own)
    return merged


def links(rank: int, device: torch.device) -> Iterator[Line]:
    """Checks of the links between ranks (bandwidth of a large all-reduce, latency of a small one), and of how
    far their clocks are apart."""
    world_size = dist.get_world_size()
    hosts = [None] * world_size
    dist.all_gather_object(hosts, socket.gethostname())
    where = f"{world_size} ranks on {len(set(hosts))} host{'s' * (len(set(hosts)) > 1)}"
    small, _ = _all_reduce_seconds(1, device)
    large, right = _all_reduce_seconds(BUFFER_BYTES // 4, device)
    rate = 2 * (world_size - 1) / world_size * BUFFER_BYTES / large
    found = (
        f"{where}: {rate / 1e9:.2f} GB/s sent by a rank in an all-reduce of {BUFFER_BYTES >> 20} MiB, "
        f"{small * 1e6:.0f} us for 4 bytes"
    )
    yield Line(
        "communication",
        right,
        found if right else f"{where}: a sum over ranks is wrong",
        "the network damages data: look at its logs",
    )
    dist.barrier()
    times: list = [None] * world_size
    dist.all_gather_object(times, time.time())
    skew = max(times) - min(times)
    late = (
        f"; rank {times.index(min(times))} ({hosts[times.index(min(times))]}) is behind"
        if skew >= LARGEST_SKEW
        else ""
    )
    yield Line(
        "clocks", skew < LARGEST_SKEW, f"{skew:.3f} s apart{late}", "start chrony or ntpd on every node"
    )


def _all_reduce_seconds(numel: int, device: torch.device) -> tuple[float, bool]:
    tensor, right = torch.ones(numel, device=device), True
    for repeat in range(REPEATS + 1):
        if repeat == 1:  # repeat 0 is not timed: it opens the connections
            begin = time.perf_counter()
        tensor.fill_(1.0)
        dist.all_reduce(tensor)
        right = right and bool((tensor == dist.get_world_size()).all())  # waits for the card as well
    return (time.perf_counter() - begin) / REPEATS, right


def report(lines: list[Line], as_json: bool) -> None:
    """Print the checks, and the remedies of those that have failed."""
    if as_json:
        print(
            json.dumps(
                {"passed": all(line.passed for line in lines), "checks": [asdict(line) for line in lines]}
            )
        )
        return
    width = max(len(line.check) for line in lines)
    for line in lines:
        print(f"{'ok    ' if line.passed else 'FAILED'} {line.check:{width}}  {line.found}")
        if not line.passed:
            print(f"       {'':{width}}  remedy: {line.remedy}")


def run() -> None:
    """Run ``main`` as a program."""
    code = main()
    sys.stdout.flush()
    os._exit(code)  # as ranks/ending.py: through the interpreter gloo aborts now and then


if __name__ == "__main__":
    run()
