"""Sentences of a run while it goes: on rank 0 alone, above the progress bar."""

import sys
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm


@dataclass(frozen=True)
class Line:
    """One check of the self-check."""

    check: str
    """Claim that was checked."""
    passed: bool
    """Whether it held on all ranks."""
    found: str
    """Measurement, with numbers."""
    remedy: str = ""
    """Way out where it failed."""


class Narrator:
    """The voice of a program: rank 0 speaks, the others are silent."""

    def __init__(self, rank: int):
        self.rank = rank

    def __call__(self, sentence: str) -> None:
        if self.rank == 0:
            try:
                # tqdm.write draws the bar again before a file has the sentence, and glues the two together.
                with tqdm.external_write_mode(file=sys.stdout):
                    print(sentence, flush=True)
            except OSError as error:
                raise RuntimeError(
                    f"standard output cannot be written ({error.strerror}), and what a run says must be "
                    "seen: make room where it goes, then resume = auto goes on from the newest checkpoint"
                ) from error

    def checks(self, lines: list[Line]) -> None:
        """Print the self-check; a failed line ends the run on every rank with exit code 2."""
        failed = [line for line in lines if not line.passed]
        if self.rank == 0:
            table = Table("self-check", "", "found", show_edge=False)
            for line in lines:
                table.add_row(line.check, "ok" if line.passed else "FAILED", escape(line.found))
            console = Console(width=max(120, Console().width))
            console.print(table)
            for line in failed:
                console.print(
                    f"self-check failed: {line.check}: {line.found}. {line.remedy}",
                    style="bold",
                    markup=False,
                )
        if failed:
            raise SystemExit(2)
