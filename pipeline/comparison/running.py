"""Cells as processes of ``pipeline.train``: finished ones are kept, failed ones are reported, and the others
go on."""

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from pipeline import config as configuration
from pipeline import durable
from pipeline.comparison.grid import Cell, changed
from pipeline.config import Config
from pipeline.settings import PRESETS

FINISHED = "cell.json"
"""File in the folder of a cell whose training has ended with code 0: digests of what it read, its time, and
how many cells ran at once."""
TAIL_LINES = 15


@dataclass(frozen=True)
class Failure:
    """A cell whose training has ended with another code than 0."""

    cell: Cell
    code: int
    log: Path

    def __str__(self) -> str:
        # a progress bar ends no line
        lines = self.log.read_text(errors="replace").replace("\r", "\n").split("\n")
        tail = [f"    {line}" for line in lines if line.strip()][-TAIL_LINES:]
        return "\n".join([f"{self.cell} ended with code {self.code}; the end of {self.log}:", *tail])


def finished(cell: Cell) -> bool:
    """Whether this very cell has run to its end. Raises ValueError if its folder holds a finished one with
    other settings or data."""
    if not (cell.folder / FINISHED).is_file():
        return False
    differences = changed(cell.config, yaml.safe_load((cell.folder / "config.yaml").read_text()))
    before, now = json.loads((cell.folder / FINISHED).read_text())["contents"], contents(cell.config)
    before = {PRESETS.name_of(name): found for name, found in before.items()}
    differences += [
        f"the content of {name}" for name in {**now, **before} if now.get(name) != before.get(name)
    ]
    if differences:
        raise ValueError(
            f"{cell.folder} holds a finished cell with other settings or data ({'; '.join(differences)}): "
            "name another folder, or set overwrite to run such cells again"
        )
    return True


def run_cells(cells: list[Cell], parallel: int, ranks: int, overwrite: bool) -> list[Failure]:
    """Failures of the cells after running those that are not finished, ``parallel`` at a time.

    Raises ValueError for a finished cell that has changed (unless ``overwrite``), a folder that is no cell's,
    or too few GPUs.
    """
    devices = slots(parallel, ranks)
    waiting = deque(cell for cell in cells if overwrite_changed(cell, overwrite) or not finished(cell))
    running: dict[subprocess.Popen, tuple[Cell, list[int], float]] = {}
    failures = []
    progress = tqdm(
        total=len(cells), initial=len(cells) - len(waiting), unit="cell", desc="grid", mininterval=0
    )
    try:
        while waiting or running:
            while waiting and devices:
                cell, own = waiting.popleft(), devices.pop()
                running[start(cell, ranks, own, parallel)] = cell, own, time.perf_counter()
                progress.set_postfix_str("; ".join(str(cell) for cell, *_ in running.values()))
            for process in [process for process in running if process.poll() is not None]:
                cell, own, begin = running.pop(process)
                devices.append(own)
                if process.returncode == 0:
                    mark_finished(cell, parallel, time.perf_counter() - begin)
                else:
                    failures.append(Failure(cell, process.returncode, log_of(cell)))
                    progress.write(str(failures[-1]), file=sys.stderr)
                progress.update()
            time.sleep(0.1)
    finally:
        for (
            process
        ) in running:  # left over only where this program is being ended; their cells stay unfinished
            process.terminate()
        for process in running:
            process.wait()
        progress.close()
    return failures


def overwrite_changed(cell: Cell, overwrite: bool) -> bool:
    """Whether this is a finished cell that has changed since, and ``overwrite`` lets it run again."""
    if not overwrite:
        return False
    try:
        finished(cell)
        return False
    except ValueError as changes:
        tqdm.write(f"runs again: {changes}", file=sys.stderr)
        return True


def slots(parallel: int, ranks: int) -> list[list[int]]:
    """GPUs of each of the ``parallel`` cells that run at once; none for each on a machine without."""
    num_gpus = torch.cuda.device_count()
    if num_gpus and parallel * ranks > num_gpus:
        raise ValueError(
            f"parallel x ranks = {parallel} x {ranks} cells' ranks need a GPU each, and there are {num_gpus}"
        )
    return [list(range(i * ranks, (i + 1) * ranks)) if num_gpus else [] for i in range(parallel)]


def start(cell: Cell, ranks: int, gpus: list[int], parallel: int) -> subprocess.Popen:
    """The process of a cell, in an empty folder. Raises ValueError if the folder holds something else than a
    run."""
    if cell.folder.is_dir() and any(cell.folder.iterdir()):
        if not (cell.folder / "config.yaml").is_file():
            raise ValueError(f"{cell.folder} is not empty and holds no run; name another folder")
        shutil.rmtree(cell.folder)  # a run that was cut short, or whose settings have changed
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    settings = cell.folder.with_suffix(".yaml")
    configuration.save(cell.config, settings)
    environment = {"TOKENIZERS_PARALLELISM": "false", **os.environ}
    launcher = [sys.executable, "-m"]
    if gpus and ranks == 1:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpus[0])
    if not gpus:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment = {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": str(max(1, cores // (parallel * ranks))),
            **environment,
        }
    if ranks > 1:
        where = ["--include", "localhost:" + ",".join(map(str, gpus))] if gpus else ["--num_gpus", str(ranks)]
        launcher += [
            "deepspeed.launcher.runner",
            "--log_level",
            "error",
            *where,
            "--master_port",
            str(free_port()),
            "--module",
        ]
    return spawn([*launcher, "pipeline.train", "--config", str(settings)], log_of(cell), environment)


def spawn(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen:
    with open(log, "w") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )


def mark_finished(cell: Cell, parallel: int, seconds: float) -> None:
    record = {"contents": contents(cell.config), "parallel": parallel, "wall_seconds": round(seconds, 2)}
    durable.write_text(cell.folder / FINISHED, json.dumps(record, indent=1) + "\n")


def log_of(cell: Cell) -> Path:
    return cell.folder.with_suffix(".log")


def contents(config: Config) -> dict[str, str]:
    """Digests of the local files that a run reads: samples, and the model's weights and tokenizer."""
    model = Path(config.model.name)
    files = sorted(file for file in model.iterdir() if file.is_file()) if model.is_dir() else []
    files += [Path(name) for name in (*config.data.pool, *config.data.target, *config.data.test)]
    found = {str(file): digest(file) for file in files if file.is_file()}
    return {**found, PRESETS.name_of(config.deepspeed): digest(Path(PRESETS.find(config.deepspeed)))}


@functools.cache
def digest(file: Path) -> str:
    return durable.described(file)[1][:16]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
