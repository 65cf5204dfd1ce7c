"""The linter, the formatter and the type checker have no complaint about the sources."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "command", ["ruff check", "ruff format --check", pytest.param("mypy", marks=pytest.mark.slow)]
)
def test_has_no_complaint(command):
    """mypy takes half a minute in a fresh checkout; then .mypy_cache knows what has not changed."""
    program, *arguments = command.split()
    if find_spec(program) is None:
        pytest.skip(f"{program} is not installed (requirements-test.txt)")
    result = subprocess.run(
        [sys.executable, "-m", program, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stdout + result.stderr
