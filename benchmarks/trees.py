"""Source trees of this repository, each with a process of its own that trains, so that no two meet in one.

Of a tree nothing is used but its training program, the names of its settings, and what a run leaves behind.
"""

import importlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Optional

from benchmarks.ranks import PRELOADED, address, free_port

ROOT = Path(__file__).parents[1]
RANKS = 2
TIMEOUT = 900  # seconds of one run; the first one makes the demo model


@dataclass(frozen=True)
class Ended:
    """The end of a run."""

    problem: str = ""
    """Exit codes, and the last line of a rank that failed; empty where none did."""
    is_refusal: bool = False
    """The program has ended the run with a sentence of its own, which is no crash."""


class Tree:
    """A tree, and the folder of its runs."""

    def __init__(self, root: Path, folder: Path, process: ProcessPoolExecutor):
        self.root, self.folder, self.process = root, folder, process
        self.known = process.submit(known_settings).result()

    def run(self, name: str, settings: dict[str, Any]) -> Ended:
        """Train into the folder of this name, with those of the settings that the tree knows."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        known = {key: value for key, value in settings.items() if key in self.known}
        arguments = [
            f"--{key}={written(value)}" for key, value in {**known, "run.folder": str(folder)}.items()
        ]
        logs = [folder.with_name(f"{name}.rank{rank}.log") for rank in range(RANKS)]
        codes = self.process.submit(run_ranks, arguments, logs).result()
        failed = [log.read_text(errors="replace") for log, code in zip(logs, codes) if code != 0]
        if not failed:
            return Ended()
        said = [
            line.strip() for line in failed[0].replace(str(folder), "run.folder").splitlines() if line.strip()
        ]
        is_refusal = all("Traceback" not in text for text in failed)
        return Ended(f"exit codes {codes}: {said[-1] if said else 'it said nothing'}", is_refusal)


def written(value: Any) -> str:
    """A value in the notation of the command line."""
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def tree_of(root: Path, folder: Path) -> Iterator[Tree]:
    """The tree at ``root``, whose runs go to ``folder`` and work in the one above it."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, enter, (root, folder.parent)) as process:
        yield Tree(root, folder, process)


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A checkout of the commit, as long as it is needed."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name).resolve() / "tree"
        try:
            git("worktree", "add", "--detach", "--quiet", str(tree), commit)
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def git(*arguments: str) -> str:
    """The output of git. Raises subprocess.CalledProcessError where it fails."""
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


# What follows runs in the process of a tree, and imports inside functions: the tree is known only there.


def enter(root: Path, folder: Path) -> None:
    """Import from this tree from now on, and work in a folder where all trees find the same demo model."""
    sys.path.insert(0, str(root))
    os.chdir(folder)
    for name in PRELOADED:
        importlib.import_module(name)
    found = Path(sys.modules["pipeline"].__path__[0])
    assert found == root / "pipeline", f"pipeline comes from {found}, not from {root}"


def known_settings() -> set[str]:
    """Dotted names of the settings of the tree."""
    from pipeline.config import Config

    parts = {field.name: getattr(Config(), field.name) for field in fields(Config)}
    nested = {
        f"{name}.{field.name}" for name, part in parts.items() if is_dataclass(part) for field in fields(part)
    }
    return nested | {name for name, part in parts.items() if not is_dataclass(part)}


def run_ranks(arguments: list[str], logs: list[Path]) -> list[Optional[int]]:
    """Exit codes of the ranks of one run, forked from this process; negative where one had to be killed."""
    context, port = multiprocessing.get_context("fork"), free_port()
    ranks = [
        context.Process(target=rank_process, args=(rank, port, log, arguments))
        for rank, log in enumerate(logs)
    ]
    deadline = time.monotonic() + TIMEOUT
    try:
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in ranks:
            if process.is_alive():
                process.kill()
                process.join()
    return [process.exitcode for process in ranks]


def rank_process(rank: int, port: int, log: Path, arguments: list[str]) -> None:
    """One rank: the training program."""
    output = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= address(rank, RANKS, port)
    from pipeline.train import run

    run(arguments)
