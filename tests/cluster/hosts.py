"""Hosts on one machine: network namespaces with an sshd in each, joined by a link that can be cut. Debian's
openssh-server, iproute2 and pdsh, by root.

    host 0 (namespace ftw0-PID, 10.77.0.1)  ---veth---  host 1 (ftw1-PID, 10.77.0.2)
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

COMMANDS = ("ip", "sshd", "ssh", "ssh-keygen", "pdsh")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
LINK = "link0"
# ServerAlive*: a launcher whose peer is gone learns of it in seconds; without, ssh waits for ever.
CLIENT = """
Host *
  IdentityFile {folder}/key
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  ServerAliveInterval 5
  ServerAliveCountMax 2
"""
DAEMON = """
ListenAddress {address}
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile {folder}/{address}.pid
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
"""


@dataclass(frozen=True)
class Hosts:
    folder: Path
    namespaces: tuple[str, ...]
    environment: dict[str, str]

    @property
    def hostfile(self) -> Path:
        return self.folder / "hosts"

    def start(self, command: list[str], root: Path, output: Path) -> subprocess.Popen:
        """A command on host 0, in a process group of its own."""
        inside = ["ip", "netns", "exec", self.namespaces[0], *command]
        with open(output, "w") as file:
            return subprocess.Popen(
                inside,
                cwd=root,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def cut_link(self) -> None:
        subprocess.run(["ip", "-n", self.namespaces[0], "link", "set", LINK, "down"], check=True)

    def processes(self) -> list[int]:
        """Of all hosts."""
        listed = [
            subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
            for name in self.namespaces
        ]
        return [int(number) for text in listed for number in text.split()]

    def ranks(self) -> list[int]:
        """Processes that run the training program itself, not a launcher of it."""
        return [number for number in self.processes() if _is_rank(number)]


def missing() -> list[str]:
    return [
        name for name in COMMANDS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None
    ]


@contextmanager
def two_hosts(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    namespaces = tuple(f"ftw{number}-{os.getpid()}" for number in range(2))
    hosts = Hosts(folder, namespaces, _environment(folder))
    daemons = []
    try:
        for name in namespaces:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip(
            "link",
            "add",
            LINK,
            "netns",
            namespaces[0],
            "type",
            "veth",
            "peer",
            "name",
            LINK,
            "netns",
            namespaces[1],
        )
        for name, address in zip(namespaces, ADDRESSES):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", LINK)
            _ip("-n", name, "link", "set", LINK, "up")
        for key in ("key", "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd's privilege separation insists on it
        (folder / "hosts").write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
        for name, address in zip(namespaces, ADDRESSES):
            configuration = folder / f"sshd_{address}"
            configuration.write_text(DAEMON.format(folder=folder, address=address))
            command = [
                "ip",
                "netns",
                "exec",
                name,
                shutil.which("sshd", path="/usr/sbin:/sbin"),
                "-D",
                "-e",
                "-f",
                configuration,
            ]
            with open(folder / f"{address}.log", "w") as log:
                daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
        time.sleep(1)
        yield hosts
    finally:
        for number in hosts.processes():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        for daemon in daemons:
            daemon.wait(timeout=30)
        for name in namespaces:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _environment(folder: Path) -> dict[str, str]:
    """With an ``ssh`` that knows the key, and what deepspeed hands to every host in its environment file."""
    binaries = folder / "bin"
    binaries.mkdir()
    (folder / "ssh_config").write_text(CLIENT.format(folder=folder))
    (binaries / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {folder}/ssh_config "$@"\n')
    (binaries / "ssh").chmod(0o755)
    passed_on = {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GLOO_SOCKET_IFNAME": LINK,  # both hosts have one name here, which gloo would look up
    }
    (folder / "deepspeed_env").write_text("".join(f"{name}={value}\n" for name, value in passed_on.items()))
    launchers = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES")
    own = {name: value for name, value in os.environ.items() if name not in launchers}
    path = f"{binaries}:{Path(sys.prefix) / 'bin'}:{own['PATH']}:/usr/sbin:/sbin"
    return {
        **own,
        **passed_on,
        "PATH": path,
        "DS_ENV_FILE": str(folder / "deepspeed_env"),
        "VENV": sys.prefix,
    }


def _ip(*arguments: str) -> None:
    ended = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if ended.returncode != 0:
        raise AssertionError(f"ip {' '.join(arguments)}: {ended.stderr.strip()}")


def _is_rank(number: int) -> bool:
    try:
        words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return (
        b"pipeline.train" in words
        and any(word.startswith(b"--local_rank") for word in words)
        and not any(b"launcher" in w for w in words)
    )
