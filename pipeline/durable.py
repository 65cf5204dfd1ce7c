"""Files written for good: when a function that writes one returns, the file is on the disk itself, whole.

    NAME            the written content, or still the file before it
    .NAME.tmp       being written, or left by a process that was killed; the next writer of NAME overwrites it

A file is written under the other name, forced to the disk, and renamed; then its folder is forced, which
makes the name lasting. A machine that goes down at any moment keeps one of the two files and no half.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

BLOCK = 1 << 20


def partial(path: Path) -> Path:
    """The name for the content of ``path`` until all of it is there."""
    return path.with_name(f".{path.name}.tmp")


def write_bytes(path: Path, content) -> None:
    """Make ``content`` (anything with bytes in it) the file at ``path``. Raises OSError."""
    path = Path(path)
    with open(partial(path), "wb") as file:
        file.write(content)
    sync(partial(path))
    os.rename(partial(path), path)
    sync(path.parent)


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Make ``text``, as UTF-8, the file at ``path``; ``errors`` as in ``str.encode``. Raises OSError."""
    write_bytes(path, text.encode("utf-8", errors))


def sync(path: Path) -> None:
    """Force to the disk what was written to a file, or the names in a folder. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def described(path: Path, beat: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Size and SHA-256 of a file; ``beat`` is called for every MiB. Raises OSError."""
    found, size = hashlib.sha256(), 0
    with open(path, "rb") as content:
        while block := content.read(BLOCK):
            found.update(block)
            size += len(block)
            beat()
    return size, found.hexdigest()
