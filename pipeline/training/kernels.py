"""DeepSpeed's C++ and CUDA kernels, and the lock files that outlive a killed build of them.

PyTorch builds such a kernel at first use, and whoever finds a lock waits for it, silently and for ever
(https://github.com/pytorch/pytorch/issues/189245, mended after PyTorch 2.13).
"""

import logging
import os
import time
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

log = logging.getLogger(__name__)

STALE_SECONDS = 600.0  # Adam's kernels take 80 s on two cores


def clear_stale_locks(stale_seconds: float = STALE_SECONDS) -> None:
    """Wait for builds under way on this machine, and delete locks of dead ones.

    A lock older than ``stale_seconds`` is taken for a dead one.
    """
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in root.glob("**/lock"):
        said, begin = False, time.monotonic()
        while (age := _age(lock)) is not None:
            waited = time.monotonic() - begin
            if max(age, waited) > stale_seconds:  # by the clock alone a lock may be from the future
                log.warning(
                    "the lock %s is %.0f s old, %.0f s of them waited for: its process must have died while "
                    "building; deleting it",
                    lock,
                    age,
                    waited,
                )
                lock.unlink(missing_ok=True)
                break
            if not said:
                log.warning(
                    "waiting for %s, %.0f s old: another process builds this kernel, or died doing so. At an "
                    "age of %.0f s it is deleted; if you know that nobody builds, delete it now",
                    lock,
                    age,
                    stale_seconds,
                )
                said = True
            time.sleep(0.5)


def _age(lock: Path) -> float | None:
    """Age in seconds; None where there is no lock (any more)."""
    try:
        return time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return None
