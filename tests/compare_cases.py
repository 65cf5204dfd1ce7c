"""Cells of test_compare.py: real runs of pipeline.train, forked from a server that has imported what takes
long."""

import os

from tests.processes import ForkedProgram


class Forked(ForkedProgram):
    def __init__(self, command: list[str], log, environment: dict[str, str]):
        self.arguments = command[command.index("pipeline.train") + 1 :]
        super().__init__(train, self.arguments, str(log))


def train(arguments: list[str], log: str) -> None:
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from pipeline.train import run

    run(arguments)
