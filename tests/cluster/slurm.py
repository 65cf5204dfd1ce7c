"""A Slurm of one node, with its own munge, folder and ports; of Debian's packages slurm-wlm and munge, by
root."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from tests.processes import free_port

COMMANDS = ("slurmctld", "slurmd", "sbatch", "scontrol", "munged")
# A requeued job may start again once its old credential has expired, hence cred_expire: 2 minutes by default.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=1
ReturnToService=2
JobRequeue=1
KillWait=120
InactiveLimit=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=2000 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=60 State=UP
"""


@contextmanager
def one_node(folder: Path):
    """The environment in which sbatch and scontrol meet this Slurm."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(host=host, folder=folder, controller=free_port(), daemon=free_port())
    )
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    munge = [
        "munged",
        "--foreground",
        "--force",
        f"--key-file={key}",
        f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munge.pid",
        f"--seed-file={folder}/munge.seed",
        f"--log-file={folder}/munged.log",
    ]
    processes = []
    with open(folder / "daemons.log", "w") as log:
        start = lambda *command: processes.append(
            subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        )
        try:
            start(*munge)
            _wait_for(lambda: (folder / "munge.socket").exists(), 30, folder)
            start("slurmctld", "-D")
            start("slurmd", "-D", "-N", host)
            ready = lambda: (
                "idle"
                in subprocess.run(["sinfo", "-h"], env=environment, capture_output=True, text=True).stdout
            )
            _wait_for(ready, 120, folder)
            yield environment
        finally:
            subprocess.run(
                ["scancel", "--user=root", "--signal=KILL", "--full"], env=environment, capture_output=True
            )
            for process in reversed(processes):
                process.terminate()
            for process in reversed(processes):
                process.wait(timeout=60)


def missing() -> list[str]:
    return [name for name in COMMANDS if shutil.which(name) is None]


def submit(environment: dict, output: Path, options: list[str], arguments: list[str], root: Path) -> str:
    """Number of the job."""
    sbatch = ["sbatch", "--parsable", f"--output={output}", *options, "launch/slurm/train.sbatch", *arguments]
    ended = subprocess.run(sbatch, env=environment, cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def describe(environment: dict, job: str) -> dict[str, str]:
    """What ``scontrol show job`` says, by name."""
    shown = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", job], env=environment, capture_output=True, text=True
    ).stdout
    return dict(part.split("=", 1) for part in shown.split() if "=" in part)


def wait_for_end(environment: dict, job: str, seconds: float, output: Path) -> dict[str, str]:
    deadline = time.monotonic() + seconds
    while (state := describe(environment, job)).get("JobState") in (
        "PENDING",
        "CONFIGURING",
        "RUNNING",
        "COMPLETING",
        "REQUEUED",
    ):
        assert time.monotonic() < deadline, (
            f"after {seconds} s the job is {state}\n{output.read_text()[-3000:]}"
        )
        time.sleep(1)
    return state


def _wait_for(condition, seconds: float, folder: Path) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(
                f"--- {log.name}\n{log.read_text()[-2000:]}" for log in sorted(folder.glob("*.log"))
            )
            raise AssertionError(f"Slurm did not come up in {seconds} s\n{logs}")
        time.sleep(0.5)
