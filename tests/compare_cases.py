"""Cells of test_compare.py: real runs of pipeline.train, forked from a server that has imported what takes long."""

import os

from tests.ranks import _server


class Forked:
    """As much of subprocess.Popen as the grid uses."""

    def __init__(self, command: list[str], log, environment: dict[str, str]):
        self.arguments = command[command.index("pipeline.train") + 1 :]
        self.process = _server().Process(target=train, args=(self.arguments, str(log)))
        self.process.start()

    def poll(self):
        return self.process.exitcode

    returncode = property(poll)

    def wait(self):
        self.process.join()

    def terminate(self):
        self.process.terminate()


def train(arguments: list[str], log: str) -> None:
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from pipeline.train import run

    run(arguments)
