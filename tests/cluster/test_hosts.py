"""Two hosts with a rank each, joined by a link and started by deepspeed over pdsh and ssh: they agree, and
they notice a cut."""

import sys
import time
from pathlib import Path

import pytest

from tests.cluster import hosts
from tests.cluster.conftest import demand
from tests.run_arguments import run_arguments
from tests.same_run import records

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
TIMEOUT = 90  # run.timeout_seconds; on a loaded machine one rank may start a minute after the other
LATEST = 3 * TIMEOUT  # until the last rank is gone


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    demand(hosts.missing())
    with hosts.two_hosts(tmp_path_factory.mktemp("hosts")) as both:
        yield both


def arguments(model_folder, data_folder, folder, steps: int) -> list[str]:
    changes = (
        "--training.steps",
        str(steps),
        "--training.evaluate_every",
        "0",
        "--run.timeout_seconds",
        str(TIMEOUT),
    )
    return run_arguments(model_folder, data_folder, folder, *changes)


def start(two, port: int, output: Path, line: list[str]):
    launcher = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--hostfile",
        str(two.hostfile),
        "--launcher",
        "pdsh",
    ]
    launcher += [
        "--master_addr",
        hosts.ADDRESSES[0],
        "--master_port",
        str(port),
        "--module",
        "pipeline.train",
    ]
    return two.start([*launcher, *line], ROOT, output)


def steps(folder: Path) -> list[dict]:
    return records(folder, "steps") if (folder / "steps.jsonl").exists() else []


def test_two_hosts_train_as_two_ranks_of_one(run_ranks, two, model_folder, data_folder, tmp_path):
    here = arguments(model_folder, data_folder, tmp_path / "here", 6)
    run_ranks("tests.training.train_cases:runs", 2, all_arguments=[here], timeout=900)
    launcher = start(
        two, 29571, tmp_path / "output", arguments(model_folder, data_folder, tmp_path / "run", 6)
    )
    assert launcher.wait(timeout=900) == 0, (tmp_path / "output").read_text()[-4000:]
    assert steps(tmp_path / "run") == steps(tmp_path / "here") != []
    assert all(address in (tmp_path / "output").read_text() for address in hosts.ADDRESSES)


def test_a_cut_link_ends_all_ranks_and_names_the_peer(two, model_folder, data_folder, tmp_path):
    """The last test: the link stays cut."""
    launcher = start(
        two, 29572, tmp_path / "output", arguments(model_folder, data_folder, tmp_path / "run", 100_000)
    )
    deadline = time.monotonic() + 900
    while len(steps(tmp_path / "run")) < 4:
        assert launcher.poll() is None and time.monotonic() < deadline, (tmp_path / "output").read_text()[
            -4000:
        ]
        time.sleep(0.2)
    assert len(two.ranks()) == 2, two.ranks()
    two.cut_link()
    begin = time.monotonic()
    while two.ranks() and time.monotonic() < begin + LATEST:
        time.sleep(0.5)
    output = (tmp_path / "output").read_text()
    assert not two.ranks(), f"after {LATEST} s ranks {two.ranks()} still run\n{output[-4000:]}"
    assert launcher.wait(timeout=120) != 0, output[-4000:]
    assert "no word from rank 1 in" in output and f"({hosts.ADDRESSES[1]})" in output, output[-4000:]
