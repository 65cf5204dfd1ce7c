"""The programs of docs/tutorial.md in processes of their own, forked from a server that has imported what takes long."""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

from tests.ranks import _server


class Program:
    """``python -m MODULE ARGUMENTS`` in a folder, as much of subprocess.Popen as a grid uses."""

    def __init__(self, command: list[str], log: Path, folder: Path):
        self.process: multiprocessing.Process = _server().Process(target=_run, args=(command, str(log), str(folder)))
        self.process.start()

    def poll(self):
        return self.process.exitcode

    returncode = property(poll)

    def wait(self):
        self.process.join()

    def terminate(self):
        self.process.terminate()


def _run(command: list[str], log: str, folder: str) -> None:
    os.chdir(folder)
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    python, m, module, *sys.argv[1:] = command
    assert Path(python).name.startswith("python") and m == "-m", command
    runpy.run_module(module, run_name="__main__", alter_sys=True)
