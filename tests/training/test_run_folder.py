"""Who may write in a folder, and for how long."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import psutil
import pytest

from pipeline.training import run_folder

HOLDS_AND_FORKS = """
import os, sys, time
from pathlib import Path
from pipeline.training import run_folder

run_folder.hold(Path(sys.argv[1]), "run.folder")
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_folder_is_held_until_its_process_is_killed_even_if_a_forked_child_lives_on(tmp_path):
    command = [sys.executable, "-c", HOLDS_AND_FORKS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(ValueError, match=r"output: another process writes in .* name another folder"):
                run_folder.hold(tmp_path, "output")
        finally:
            holder.kill()
    try:
        run_folder.hold(tmp_path, "output")
        assert psutil.pid_exists(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_process_may_hold_its_folder_again(tmp_path):
    run_folder.hold(tmp_path, "output")
    run_folder.hold(tmp_path, "output")


@pytest.mark.parametrize("code", (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP), ids=errno.errorcode.get)
def test_where_files_cannot_be_locked_that_is_said_and_nothing_is_left_that_looks_held(
    tmp_path, monkeypatch, capsys, code
):
    """A marker would outlive a job that is killed, and the requeued one, on another host, could not tell."""

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        run_folder.hold(tmp_path, "output")
    assert f"cannot be locked ({os.strerror(code)}): let no other job" in capsys.readouterr().err
    assert not (tmp_path / run_folder.LOCK).read_bytes()
