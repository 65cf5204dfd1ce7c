"""Real ranks on one machine: processes that meet over gloo, with a time limit, so that a hang is a failure
and not a wait.

Tests get ``run_ranks``, ``launch`` and ``run_program`` as fixtures (tests/conftest.py), which mark them
``distributed``; an unmarked test is refused its ranks.

DeepSpeed takes seconds to import, so ranks are forked from a server that has imported it once. Every process
leaves through ``os._exit`` after a barrier: through the interpreter gloo aborts now and then (its thread
drops tensors while Python ends).
"""

import importlib
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOADED = [
    "torch",
    "deepspeed",
    "transformers.models.llama.modeling_llama",
    "transformers.integrations",
    "peft",
    "datasets",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.zero.stage3",
]
ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MASTER_ADDR": "127.0.0.1",
}
ROOT = Path(__file__).parent.parent
unmarked_test = ""
"""The test that runs, where it is not marked ``distributed``."""


@dataclass(frozen=True)
class Ended:
    """How a rank ended: ``code`` is None where it hung and was killed."""

    code: int | None
    output: str
    """stdout and stderr."""
    result: Any = None


def run_ranks(target: str, world_size: int, timeout: float = 420, **kwargs) -> list:
    """``function(**kwargs)`` on every rank, for ``target = "module:function"``; what it returns, by rank.

    Raises AssertionError with what the ranks printed where one of them fails, or none has ended after
    ``timeout`` seconds.
    """
    ended = launch(target, world_size, timeout, **kwargs)
    if any(end.code != 0 for end in ended):
        raise AssertionError(
            f"{target} on {world_size} ranks: exit codes {[end.code for end in ended]}\n" + tails(ended)
        )
    return [end.result for end in ended]


def launch(target: str, world_size: int, timeout: float = 240, **kwargs) -> list[Ended]:
    """Like ``run_ranks``, but reports how the ranks ended. Once one has failed, the others have 60 seconds to
    notice."""
    context = _server()
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        processes = [
            context.Process(target=_rank, args=(target, rank, world_size, port, folder, kwargs))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + timeout
        while any(process.exitcode is None for process in processes) and time.monotonic() < deadline:
            if any(process.exitcode for process in processes):
                deadline = min(deadline, time.monotonic() + 60)
            multiprocessing.connection.wait(
                [p.sentinel for p in processes if p.exitcode is None], timeout=0.5
            )
        codes = [process.exitcode for process in processes]
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
        results = [
            pickle.loads(file.read_bytes()) if (file := folder / f"{r}.result").exists() else None
            for r in range(world_size)
        ]
        outputs = [_read(folder / f"{r}.output") for r in range(world_size)]
    return [Ended(*end) for end in zip(codes, outputs, results)]


def run_program(words: list[str], timeout: float = 420, **environment: str) -> subprocess.CompletedProcess:
    """``python -m WORDS`` in the project's folder, as a user starts it: a launcher, or one rank."""
    _require_mark()
    taken = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES")
    known = {k: v for k, v in {**os.environ, **ENVIRONMENT}.items() if k not in taken}
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env={**known, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def train(arguments: list[str], before: str = "") -> None:
    """The training program in a rank, after ``before = "module:function"``, which may break something. Does
    not return."""
    from pipeline.ranks.ending import end_together
    from pipeline.train import main

    if before:
        _find(before)()
    end_together(lambda: main(arguments))


def tails(ended: list[Ended]) -> str:
    return "\n".join(
        f"--- rank {rank}, exit code {end.code}\n{end.output[-4000:]}" for rank, end in enumerate(ended)
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ForkedProgram:
    """``target(*arguments)`` in a process forked from the server: as much of subprocess.Popen as a grid
    uses."""

    def __init__(self, target, *arguments):
        self.process = _server().Process(target=target, args=arguments)
        self.process.start()

    def poll(self):
        return self.process.exitcode

    returncode = property(poll)

    def wait(self):
        self.process.join()

    def terminate(self):
        self.process.terminate()


def _require_mark() -> None:
    assert not unmarked_test, (
        f"{unmarked_test} starts processes of its own and would be among the quick tests: let it ask for the "
        "fixture run_ranks, launch or run_program, or mark it distributed"
    )


def _server():
    _require_mark()
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _rank(target: str, rank: int, world_size: int, port: int, folder: Path, kwargs: dict) -> None:
    output = os.open(folder / f"{rank}.output", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(
        ENVIRONMENT, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_PORT=str(port)
    )
    code = 1
    try:
        result = _find(target)(**kwargs)
        (folder / f"{rank}.result").write_bytes(pickle.dumps(result))
        import torch.distributed as dist

        if dist.is_initialized():
            dist.barrier()
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _find(target: str):
    module, function = target.split(":")
    return getattr(importlib.import_module(module), function)


def _read(file: Path) -> str:
    return file.read_text(errors="replace") if file.exists() else ""
