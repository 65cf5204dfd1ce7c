"""Run tests in the present environment and write down which versions of other packages they ran with, and how
they ended.

bash launch/test_versions.sh oldest    # or newest; makes the environment and starts this
python -m benchmarks.versions NAME [pytest arguments]
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.machine import describe
from pipeline.versions import installed

ROOT = Path(__file__).parents[1]
OUTPUT = Path(__file__).parent / "results" / "versions_cpu.json"
TRAINER = "tests/integrations/test_trainer.py"
TESTS = (
    TRAINER,
    f"--deselect={TRAINER}::test_the_trainer_example_runs_under_both_launchers",
    f"--deselect={TRAINER}::test_the_sft_trainer_example_runs",
    "tests/test_library.py",
    "tests/step",
    "tests/scoring/test_factors.py",
    "tests/scoring/test_packing.py",
    "tests/training/test_packing_runs.py",
    "tests/training/test_engine.py",
    "tests/training/test_attention.py",
    "tests/data/test_chat.py",
    "tests/data/test_sources.py",
)
"""Trainers and a loop of one's own, factors, packed Gram matrices against the dense reference on two ranks,
engines, data: what touches torch, DeepSpeed, transformers, peft, trl and datasets most, in minutes."""


def main(arguments: list[str]) -> int:
    name, *chosen = arguments
    chosen = chosen or list(TESTS)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *chosen, f"--junitxml={report}", "-p", "no:cacheprovider"]
        code = subprocess.run(command, cwd=ROOT).returncode
        outcome = read(report)
    found = json.loads(OUTPUT.read_text()) if OUTPUT.is_file() else {}
    found[name] = {
        **outcome,
        "tests": chosen,
        "seconds": round(time.perf_counter() - begin),
        **describe(),
        "versions": installed(required()),
    }
    OUTPUT.write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"{name}: {outcome['passed']} passed, {len(outcome['failed'])} failed, {outcome['skipped']} skipped; "
        f"in {OUTPUT}"
    )
    return code


def read(report: Path) -> dict:
    """Numbers of a JUnit report, and the names of what failed."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    return {
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in failed],
        "skipped": len(skipped),
    }


def required() -> list[str]:
    """Names of the packages that the program needs, and of TRL."""
    files = (ROOT / "requirements.txt", ROOT / "requirements-trl.txt")
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [match[0] for line in lines if (match := re.match(r"[A-Za-z][\w.-]*", line))]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
