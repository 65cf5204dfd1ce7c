"""Locks of kernel builds: a dead one is deleted, a live one waited for."""

import os
import threading
import time

import pytest

from pipeline.training.kernels import clear_stale_locks


@pytest.fixture
def lock(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    file = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    file.parent.mkdir(parents=True)
    file.touch()
    return file


def test_the_lock_of_a_dead_build_is_deleted_and_that_is_said(lock, caplog):
    os.utime(lock, (time.time() - 700, time.time() - 700))
    clear_stale_locks(stale_seconds=600)
    assert not lock.exists()
    assert str(lock) in caplog.text and "700 s old" in caplog.text


@pytest.mark.slow
def test_a_lock_from_the_future_is_waited_for_no_longer_than_another(lock, caplog):
    """The clock was set back since."""
    os.utime(lock, (time.time() + 86400, time.time() + 86400))
    clear_stale_locks(stale_seconds=1)
    assert not lock.exists() and "s of them waited for" in caplog.text


@pytest.mark.slow
def test_a_young_lock_is_waited_for_and_that_is_said(lock, caplog):
    threading.Timer(1.0, lock.unlink).start()
    clear_stale_locks(stale_seconds=600)
    assert not lock.exists(), "it came back while the build went on"
    assert "waiting for" in caplog.text and "deleting" not in caplog.text
