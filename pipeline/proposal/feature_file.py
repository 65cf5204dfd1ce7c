"""Features of a pool in a file beside its tokens, mapped into memory; kept under a key of what makes them."""

import hashlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np

from pipeline import durable
from pipeline.data.sample import digest
from pipeline.data.token_file import TokenFile
from pipeline.proposal import features
from pipeline.proposal.features import Table


@dataclass(frozen=True)
class Made:
    """A table, and what it cost when it was made."""

    table: Table
    seconds: float
    cpu_seconds: float
    is_reused: bool
    note: str = ""
    """Why it is not kept, if it could not be."""


def obtain(
    pool: TokenFile, targets: TokenFile, folder: Optional[Path], beat: Callable[[], None] = lambda: None
) -> Made:
    """The table of ``pool`` for ``targets``, from ``folder`` if it is there, else made and put there.

    A file that cannot be read is made again; without a ``folder``, or where that cannot be written, the table
    is held in memory alone.
    """
    path = folder / f"{_key(pool, targets)}.features.json" if folder else None
    found = _read(path) if path else None
    if found:
        return found
    begin, cpu = time.perf_counter(), time.process_time()
    table = features.make(pool, targets, beat)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    note = ""
    if path:
        try:
            _write(path, table, seconds, cpu_seconds)
        except OSError as error:
            note = (
                f"features of data.pool are made anew at every start: {path.parent} cannot keep them "
                f"({error}); name a data.cache_folder that can be written to and has room"
            )
    return Made(table, seconds, cpu_seconds, is_reused=False, note=note)


def _key(pool: TokenFile, targets: TokenFile) -> str:
    code = Path(features.__file__).read_bytes()
    content = [pool.manifest.content, len(pool), digest(targets), hashlib.sha256(code).hexdigest()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _data(path: Path, name: str) -> Path:
    return path.with_suffix(f".{name}.npy")


ARRAYS = ("features_Nd", "similarity_N")


def _write(path: Path, table: Table, seconds: float, cpu_seconds: float) -> None:
    """Write the arrays, then what tells that they are whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    written = {}
    for name in ARRAYS:
        content = io.BytesIO()
        np.save(content, getattr(table, name))
        _put(_data(path, name), content.getbuffer())
        written[name] = list(durable.described(_data(path, name)))
    about = {"arrays": written, "seconds": seconds, "cpu_seconds": cpu_seconds}
    _put(path, json.dumps(about, indent=1).encode() + b"\n")


def _put(path: Path, content) -> None:
    """Make ``content`` the file at ``path``. The name until then is this process's own: another may write the
    same."""
    descriptor, name = tempfile.mkstemp(".tmp", f"{path.name}.", path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        durable.sync(Path(name))
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _read(path: Path) -> Optional[Made]:
    """What ``path`` describes; None where there is nothing, or not what was written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if any(list(durable.described(_data(path, name))) != content["arrays"][name] for name in ARRAYS):
            return None
        arrays = {name: np.load(_data(path, name), mmap_mode="r") for name in ARRAYS}
        return Made(Table(**arrays), content["seconds"], content["cpu_seconds"], is_reused=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None
