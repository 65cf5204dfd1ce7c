"""Run the commands of docs/tutorial.md and renew the numbers of what they print.

    python -m benchmarks.tutorial

A ``bash`` block of the page is a command, a ``text`` block behind it has some of the lines that it prints.
The commands run one after the other in an empty folder; a line of a ``text`` block is replaced by the printed
one that differs from it in numbers alone. The grid's result file goes to benchmarks/results/tutorial/, from
which ``benchmarks.pages`` makes the page's table.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
RESULT = ROOT / "benchmarks" / "results" / "tutorial" / "comparison.json"
BLOCK = re.compile(r"^```(bash|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?%?")
ELSEWHERE = ("bash launch/", "sbatch ")
"""Commands that install, or want a cluster: they are only read."""


def is_run(command: str) -> bool:
    return not command.startswith(ELSEWHERE)


def form(line: str) -> str:
    """A line without what changes from run to run: its numbers, and the widths of columns."""
    return " ".join(NUMBER.sub("#", line).split())


def renewed(page: str, run: Callable[[str], str]) -> str:
    """The page with its ``text`` blocks as ``run(command)`` has printed them.

    Raises ValueError for a line that the command before it has not printed, or not in this order.
    """
    printed = ""

    def block(match: re.Match) -> str:
        nonlocal printed
        kind, body = match.groups()
        if kind == "bash":
            printed = run(body) if is_run(body) else ""
            return match.group()
        rest, lines = iter(printed.splitlines()), []
        for line in body.splitlines():
            found = next((own for own in rest if form(own) == form(line)), None)
            if found is None:
                raise ValueError(
                    f"no such line was printed, or not in this order: {line!r}; printed was:\n{printed}"
                )
            lines.append(found.rstrip() + "\n")
        return f"```text\n{''.join(lines)}```"

    return BLOCK.sub(block, page)


def prepare(folder: Path) -> None:
    """Link into ``folder`` what the commands find in the folder of the project."""
    for name in ("ds_configs", "launch"):
        (folder / name).symlink_to(ROOT / name)


def main() -> int:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "DS_ACCELERATOR": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        (ROOT / ".cache").mkdir(exist_ok=True)
        (folder / ".cache").symlink_to(ROOT / ".cache")  # the demo model is made once

        def run(command: str) -> str:
            print(command, end="", flush=True)
            done = subprocess.run(
                ["bash", "-euc", command],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise SystemExit(f"exit code {done.returncode}\n{done.stdout}{done.stderr[-4000:]}")
            return done.stdout

        PAGE.write_text(renewed(PAGE.read_text(), run))
        shutil.copyfile(folder / "runs/compare/comparison.json", RESULT)
    print(
        f"written: {PAGE.relative_to(ROOT)}, {RESULT.relative_to(ROOT)}; python -m benchmarks.pages renews "
        "the table"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
