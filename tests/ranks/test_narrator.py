"""What a run says stands on lines of its own, whatever else goes to the same file."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
from tqdm import tqdm
from pipeline.ranks.narrator import Narrator

say = Narrator(0)
progress = tqdm(range(3), "step", mininterval=1.0)
for step in progress:
    say(f"step {step}: said")
    progress.set_postfix(loss=step)
Narrator(1)("of another rank")
"""


@pytest.mark.slow
def test_sentences_in_a_log_are_not_glued_to_the_bar(tmp_path):
    """Standard output and error in one file, each buffered in its own way, as under a batch system."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    log = tmp_path / "log.txt"
    with open(log, "w") as file:
        command = [sys.executable, "-c", PROGRAM]
        subprocess.run(command, check=True, stdout=file, stderr=file, env={**environment, "PYTHONPATH": "."})
    lines = log.read_text().splitlines()
    assert [line for line in lines if "said" in line] == [f"step {step}: said" for step in range(3)]
    assert not [line for line in lines if "another rank" in line]
