"""The record of a version run tells what passed, failed and was skipped, and names tests that are there."""

import subprocess
import sys

import pytest

from benchmarks import versions

CASES = """
import pytest
def test_passes(): pass
def test_fails(): assert False
@pytest.mark.skip
def test_is_skipped(): pass
@pytest.fixture
def broken(): raise ValueError
def test_has_a_broken_fixture(broken): pass
"""


@pytest.mark.slow
def test_a_report_is_read_as_pytest_writes_it(tmp_path):
    (tmp_path / "test_cases.py").write_text(CASES)
    subprocess.run(
        [sys.executable, "-m", "pytest", "--junitxml=report.xml", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
    )
    failed = ["test_cases::test_fails", "test_cases::test_has_a_broken_fixture"]
    assert versions.read(tmp_path / "report.xml") == {"passed": 1, "failed": failed, "skipped": 1}


def test_the_tests_and_packages_it_names_are_there():
    files = [test.removeprefix("--deselect=").split("::")[0] for test in versions.TESTS]
    assert all((versions.ROOT / file).exists() for file in files)
    assert {"torch", "deepspeed", "transformers", "jsonargparse", "trl"} <= set(versions.required())
