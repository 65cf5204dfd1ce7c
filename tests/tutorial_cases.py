"""The programs of docs/tutorial.md in processes of their own, forked from a server that has imported what
takes long."""

import os
import runpy
import sys
from pathlib import Path

from tests.processes import ForkedProgram


class Program(ForkedProgram):
    """``python -m MODULE ARGUMENTS`` in a folder."""

    def __init__(self, command: list[str], log: Path, folder: Path):
        super().__init__(_run, command, str(log), str(folder))


def _run(command: list[str], log: str, folder: str) -> None:
    os.chdir(folder)
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    python, m, module, *sys.argv[1:] = command
    assert Path(python).name.startswith("python") and m == "-m", command
    runpy.run_module(module, run_name="__main__", alter_sys=True)
