"""Tokenised samples in a file that is mapped into memory: a process holds only the rows that it reads.

    NAME.json          the manifest: what the file beside it holds, its size and its hash
    NAME.HASH.arrow    batches of ROWS samples in Arrow's IPC format; HASH is the beginning of the file's hash
    NAME.*.tmp         being written, or left by a process that was killed meanwhile

The manifest comes last and names its file by content. So whoever finds a manifest finds its file, also while
others write the same.
"""

import json
import operator
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Optional

import numpy as np
import pyarrow

from pipeline import durable
from pipeline.data.sample import IGNORED, Digest, Sample

ROWS, PARTIAL = 256, ".tmp"
STALE_SECONDS = 86400.0  # nobody writes to a file for so long
SCHEMA = pyarrow.schema(
    {
        "input_ids": pyarrow.list_(pyarrow.int32()),
        "is_supervised": pyarrow.list_(pyarrow.bool_()),
        "id": pyarrow.string(),
        "source": pyarrow.string(),
        "damage": pyarrow.string(),
    }
)


@dataclass
class Part:
    """Counts of the samples that came from one file or dataset; they stand in one piece."""

    num_samples: int = 0
    by_source: dict[str, int] = field(default_factory=Counter)
    by_damage: dict[str, int] = field(default_factory=Counter)

    def passing(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples, counted as they pass."""
        for sample in samples:
            self.num_samples += 1
            self.by_source[sample.source] += 1
            self.by_damage[sample.damage] += 1
            yield sample


@dataclass(frozen=True)
class Manifest:
    """Description of a file of samples."""

    num_bytes: int
    sha256: str
    content: str
    """``digest`` of the samples (pipeline/data/sample.py)."""
    counts: dict[str, int]
    """Counts for the log: samples, truncated, dropped by reason."""
    parts: list[Part]


class TokenFile(Sequence[Sample]):
    """The samples of a manifest, read one at a time; pickled as the manifest's path."""

    def __init__(self, path: Path):
        """Map the file of the manifest ``path``. Raises ValueError or OSError where it cannot be read."""
        self.path, self.manifest = path, read_manifest(path)
        self._reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(_data_file(path, self.manifest))))
        self._num_samples = sum(self.sizes)

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # a slice would be a list of all of it
        index = operator.index(index)
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"there is no sample {index} among {len(self)}")
        return _sample(self._reader.get_batch(place // ROWS), place % ROWS)

    def __iter__(self) -> Iterator[Sample]:
        for number in range(self._reader.num_record_batches):
            batch = self._reader.get_batch(number)
            yield from (_sample(batch, row) for row in range(batch.num_rows))

    def column(self, name: str) -> Iterator[pyarrow.Array]:
        """Values of one column of ``SCHEMA``, ROWS samples at a time, without a ``Sample`` of each."""
        for number in range(self._reader.num_record_batches):
            yield self._reader.get_batch(number).column(name)

    def __reduce__(self):
        return TokenFile, (self.path,)

    @property
    def sizes(self) -> list[int]:
        """Samples of each part."""
        return [part.num_samples for part in self.manifest.parts]


def write(
    path: Path,
    parts: Iterable[Iterable[Sample]],
    counts: Callable[[], dict[str, int]],
    beat: Callable[[], None],
) -> None:
    """Write the samples of all ``parts`` in order, and their manifest ``path``; all of it, or nothing.

    ``counts`` is called after the last sample, ``beat`` while the file is hashed. Errors that these and the
    samples raise are passed on, and OSError is raised where ``path.parent`` cannot be written.
    """
    digest, found = Digest(), []

    def passing(part: Iterable[Sample]) -> Iterator[Sample]:
        found.append(Part())
        for sample in found[-1].passing(part):
            digest.update(sample)
            yield sample

    with _partial(path) as data:
        with pyarrow.OSFile(str(data), "wb") as file, pyarrow.ipc.new_file(file, SCHEMA) as writer:
            samples = chain.from_iterable(map(passing, parts))
            while rows := list(islice(samples, ROWS)):
                writer.write_batch(_batch(rows))
        manifest = Manifest(*durable.described(data, beat), digest.hexdigest(), counts(), found)
        with _partial(path) as described:
            content = {**vars(manifest), "parts": [vars(part) for part in found]}
            described.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            durable.sync(data)
            durable.sync(described)
            _put(data, _data_file(path, manifest), (manifest.num_bytes, manifest.sha256), beat)
            os.replace(described, path)
    durable.sync(path.parent)


def damage(path: Path, beat: Callable[[], None]) -> Optional[str]:
    """The fault of a manifest or its file, in a sentence; None if there is none."""
    try:
        manifest = read_manifest(path)
        num_bytes, sha256 = durable.described(_data_file(path, manifest), beat)
    except (OSError, ValueError) as error:
        return str(error)
    if num_bytes != manifest.num_bytes:
        return (
            f"{_data_file(path, manifest)} has {num_bytes:,} bytes, and {manifest.num_bytes:,} were written"
        )
    return (
        None
        if sha256 == manifest.sha256
        else f"the content of {_data_file(path, manifest)} is not what was written"
    )


def read_manifest(path: Path) -> Manifest:
    """The manifest in ``path``. Raises ValueError where it holds none, OSError where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Manifest(**{**content, "parts": [Part(**part) for part in content["parts"]]})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no manifest of tokenised samples: {error}") from error


def remove_stale(folder: Path, names: str) -> None:
    """Delete what processes killed long ago have left unfinished, of manifests with a NAME like ``names``.

    All else in the folder stays.
    """
    for left in folder.glob(f"{names}.*{PARTIAL}"):
        try:
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                left.unlink()
        except OSError:  # another process was faster, or it is another user's
            continue


def _put(partial: Path, final: Path, described: tuple[int, str], beat: Callable[[], None]) -> None:
    """Give a file its name, unless one of the same content has it: another node may have mapped that, and
    would lose it on NFS."""
    try:
        os.link(partial, final)
    except OSError:  # the name is taken, or the file system knows no links
        if not final.exists() or durable.described(final, beat) != described:
            os.replace(partial, final)


def _data_file(path: Path, manifest: Manifest) -> Path:
    return path.with_name(f"{path.stem}.{manifest.sha256[:16]}.arrow")


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """An empty file beside ``path``, readable by its owner alone, that is gone afterwards unless it was
    renamed. Its name is its own, as several nodes may write the same ``path``."""
    descriptor, name = tempfile.mkstemp(PARTIAL, f"{path.stem}.", path.parent)
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _batch(rows: list[Sample]) -> pyarrow.RecordBatch:
    offsets = pyarrow.array(np.cumsum([0, *(len(row.input_ids) for row in rows)]), pyarrow.int32())
    ids, labels = (
        np.array([*chain.from_iterable(getattr(row, name) for row in rows)], np.int32)
        for name in ("input_ids", "labels")
    )
    is_supervised = labels != IGNORED
    assert (labels == np.where(is_supervised, ids, IGNORED)).all()
    lists = [pyarrow.ListArray.from_arrays(offsets, pyarrow.array(values)) for values in (ids, is_supervised)]
    texts = [
        pyarrow.array([getattr(row, name) for row in rows], pyarrow.string()) for name in SCHEMA.names[2:]
    ]
    return pyarrow.record_batch([*lists, *texts], schema=SCHEMA)


def _sample(batch: pyarrow.RecordBatch, row: int) -> Sample:
    ids, is_supervised, *texts = (batch.column(name)[row] for name in SCHEMA.names)
    ids, is_supervised = ids.values.to_numpy(), is_supervised.values.to_numpy(zero_copy_only=False)
    return Sample(
        ids.tolist(), np.where(is_supervised, ids, IGNORED).tolist(), *(text.as_py() for text in texts)
    )
