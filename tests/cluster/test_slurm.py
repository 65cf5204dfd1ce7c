"""launch/slurm/train.sbatch on a Slurm of one node: two tasks to the end, and back into the queue in the
middle, without a trace."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster import slurm
from tests.cluster.conftest import demand
from tests.processes import ENVIRONMENT
from tests.run_arguments import run_arguments
from tests.same_run import records

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
OPTIONS = ["--gpus-per-node=0", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=60"]
STEPS = 24


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    demand(slurm.missing())
    with slurm.one_node(tmp_path_factory.mktemp("slurm")) as environment:
        yield {
            **environment,
            **{k: v for k, v in ENVIRONMENT.items() if k != "MASTER_ADDR"},
            "VENV": sys.prefix,
        }


@pytest.fixture(scope="module")
def arguments(model_folder, data_folder):
    changes = (
        "--training.steps",
        str(STEPS),
        "--training.evaluate_every",
        "0",
        "--run.timeout_seconds",
        "300",
    )
    return lambda folder: run_arguments(model_folder, data_folder, folder, *changes)


@pytest.fixture(scope="module")
def undisturbed(cluster, arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    job = slurm.submit(cluster, folder / "log", OPTIONS, arguments(folder / "run"), ROOT)
    return folder, slurm.wait_for_end(cluster, job, 1500, folder / "log")


def steps(folder: Path) -> list[dict]:
    run = folder / "run"
    return records(run, "steps") if (run / "steps.jsonl").exists() else []


def final(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "run" / "final").glob("*.safetensors")}


def test_two_tasks_run_to_the_end(undisturbed):
    folder, state = undisturbed
    log = (folder / "log").read_text()
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("COMPLETED", "0:0", "0"), log[-3000:]
    assert [record["step"] for record in steps(folder)] == list(range(STEPS)), log[-3000:]
    assert "2 ranks on cpu" in log and "FAILED" not in log


def interrupt(cluster, arguments, folder: Path, *command: str) -> dict[str, str]:
    """Run ``command`` on the job when a third of its steps are done; its state in the end."""
    job = slurm.submit(cluster, folder / "log", OPTIONS, arguments(folder / "run"), ROOT)
    deadline = time.monotonic() + 900
    while len(steps(folder)) < STEPS // 3:
        assert time.monotonic() < deadline and slurm.describe(cluster, job)["JobState"] in (
            "PENDING",
            "RUNNING",
        ), (folder / "log").read_text()[-3000:]
        time.sleep(0.05)
    subprocess.run([*command, job], env=cluster, check=True)
    return slurm.wait_for_end(cluster, job, 1800, folder / "log")


@pytest.mark.parametrize(
    "command", [["scontrol", "requeue"], ["scancel", "--signal=USR1"]], ids=["preempted", "out_of_time"]
)
def test_a_job_put_back_into_the_queue_ends_as_an_undisturbed_one(
    undisturbed, cluster, arguments, tmp_path, command
):
    """SIGUSR1 to the tasks is what Slurm sends before the time limit (--signal), and the script requeues; a
    requeue sends SIGTERM."""
    state = interrupt(cluster, arguments, tmp_path, *command)
    log = (tmp_path / "log").read_text()
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("COMPLETED", "0:0", "1"), log[-3000:]
    assert "stopped after" in log and "--resume auto goes on" in log, log[-3000:]
    assert steps(tmp_path) == steps(undisturbed[0])
    assert final(tmp_path) == final(undisturbed[0]) != {}
