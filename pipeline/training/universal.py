"""DeepSpeed's universal checkpoint, in which parameters stand whole: for another number of ranks."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.ranks.together import together
from pipeline.training import checkpoint_files as files

SUFFIX, LATEST = ".universal", f"{files.LATEST}_universal"


def convert(checkpoint: Path, folder: Path, stage: int, say: Callable[[str], None]) -> Path:
    """The universal form of ``checkpoint``, for every rank to read, in ``folder``.

    Rank 0 makes it while the others ask for news. Raises RuntimeError, with what DeepSpeed's program said.
    """
    target = folder / (checkpoint.name + SUFFIX)
    command = [
        sys.executable,
        "-m",
        "deepspeed.checkpoint.ds_to_universal",
        "--input_folder",
        str(checkpoint),
        "--output_folder",
        str(target),
    ]
    if stage < 3:
        # Stages 1 and 2 do not mark their files as fit for conversion, which they are.
        command.append("--inject_missing_state")
    say(f"{checkpoint.name} is converted for another number of ranks")
    process, log = [], target.with_suffix(".log")

    def start() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        with open(log, "w") as output:
            process.append(
                subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
            )

    together(start)
    # A question a second, so that no collective lasts as long as a conversion, which may take an hour.
    while (code := together(lambda: process[0].poll())) is None:
        time.sleep(1)
    if code:
        said = together(lambda: log.read_text(errors="replace")[-2000:])
        raise RuntimeError(
            f"{checkpoint} could not be converted for another number of ranks; DeepSpeed said: {said}"
        )
    return target


def is_left(name: str) -> bool:
    """Whether a failed or killed conversion leaves something of this name in its folder."""
    log = Path(name)
    return (
        name.endswith(SUFFIX)
        or name == LATEST
        or (log.suffix == ".log" and files.step_of(log.with_suffix("")) >= 0)
    )


def remove(target: Path) -> None:
    """Delete the universal form, as large as the checkpoint and of no use once all ranks have read it."""
    shutil.rmtree(target, ignore_errors=True)
    for left in (target.with_suffix(".log"), target.parent / LATEST):
        left.unlink(missing_ok=True)


def groups(engine) -> list[dict[str, Any]]:
    """Hyper-parameters of the optimizer's parameter groups."""
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in _optimizer(engine).param_groups
    ]


def repair(engine, saved: list[dict[str, Any]]) -> None:
    """Put right what DeepSpeed 0.19.8 has loaded wrongly at stage 3.

    It gives all groups the hyper-parameters of the first, and all sub-groups one step counter between them,
    which one update would then advance several times.
    """
    optimizer = _optimizer(engine)
    for group, values in zip(optimizer.param_groups, saved, strict=True):
        group.update(values)
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def _optimizer(engine) -> torch.optim.Optimizer:
    """The optimizer that holds the Adam state, inside ZeRO's."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)
