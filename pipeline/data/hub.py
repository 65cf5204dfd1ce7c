"""Rows of Hugging Face datasets: from the hub, or from a folder, also one that ``save_to_disk`` made.

    NAME                        the split train
    NAME:SPLIT                  a split, a part of one, train[:1000], train[10%:20%], or several, train+test
    NAME:CONFIGURATION:SPLIT    the same of a dataset that has several configurations
    stream:NAME...              row by row, without downloading the dataset first: a split, or the beginning
                                of one, train[:1000]

NAME is a hub name or a folder. Code that comes with a dataset never runs: the library knows no such code from
version 4 on.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from pipeline import durable
from pipeline.config import DATA_SUFFIXES
from pipeline.data.tables import without_nulls

STREAM = "stream:"
COLON = re.compile(r":(?![^\[]*\])")  # not the colon of a slice
FIRST_ROWS = re.compile(r"(?P<split>[\w.-]+)(\[:(?P<count>\d+)\])?")


def dataset_rows(name: str, setting: str) -> Iterator[dict]:
    """The rows of a dataset in order, one at a time.

    Raises ValueError, with the reason, where it cannot be loaded or read.
    """
    with _reasons(name, setting) as hint:
        for row in _open(name, hint):
            yield without_nulls(row)


def fingerprint(name: str, setting: str) -> Optional[str]:
    """Hash of a dataset's content; None for a stream, which has not been read yet.

    It covers the dataset's files, since the library's own hash covers only the functions that made the
    dataset: one that draws numbers or reads a file gives other rows under the same hash. Raises ValueError as
    ``dataset_rows`` does.
    """
    if name.startswith(STREAM):
        return None
    with _reasons(name, setting) as hint:
        found = _open(name, hint)
        return " ".join(
            [
                found._fingerprint,
                *(durable.described(Path(file["filename"]))[1] for file in found.cache_files),
            ]
        )


@contextmanager
def _reasons(name: str, setting: str) -> Iterator[str]:
    """Yield the beginning of an error sentence about ``name``, and put it before errors raised inside."""
    hint = (
        f"{setting}: {name} is not a file of the kinds {', '.join(DATA_SUFFIXES)}, and as a Hugging Face "
        "dataset it "
    )
    try:
        yield hint
    except Exception as error:
        # It may come from the network, the hub, the dataset's builder, a wrong split or configuration.
        if str(error).startswith(hint):
            raise
        reason = " ".join(str(error).split())
        if "config" in reason.lower():
            path = COLON.split(name.removeprefix(STREAM))[0]
            reason += f" (a configuration stands before the split: {path}:configuration:split)"
        raise ValueError(hint + f"cannot be read: {type(error).__name__}: {reason}") from error


def _open(name: str, hint: str) -> Any:
    """The dataset called ``name``; an iterable one where it is streamed."""
    import datasets  # slow to import: only those who name a dataset need it

    path, configuration, split = _split_name(name.removeprefix(STREAM), hint)
    if os.path.isdir(path) and not os.listdir(path):
        raise ValueError("the folder is empty")
    if os.path.isfile(os.path.join(path, "state.json")) or os.path.isfile(
        os.path.join(path, "dataset_dict.json")
    ):
        if configuration or name.startswith(STREAM):
            raise ValueError(
                "what save_to_disk wrote has no configurations, and is read row by row anyhow: NAME or "
                "NAME:SPLIT"
            )
        return _saved(datasets, path, split)
    if name.startswith(STREAM):
        return _streamed(datasets, path, configuration, split)
    return datasets.load_dataset(path, configuration, split=split)


def _split_name(name: str, hint: str) -> tuple[str, Optional[str], str]:
    """Path, configuration and split. A folder's name, which may hold colons, is the path and no more."""
    path, *rest = [name] if os.path.isdir(name) else COLON.split(name)
    if not path or not all(rest) or len(rest) > 2:
        raise ValueError(hint + "is no name: expected name, name:split or name:configuration:split")
    *configuration, split = rest or ["train"]
    return path, configuration[0] if configuration else None, split


def _streamed(datasets: Any, path: str, configuration: Optional[str], split: str) -> Any:
    found = FIRST_ROWS.fullmatch(split)
    if not found:
        raise ValueError(
            f"a stream is read from its first row on: {split} must be a split, or the beginning of one, "
            "train[:1000]"
        )
    rows = datasets.load_dataset(path, configuration, split=found["split"], streaming=True)
    return rows.take(int(found["count"])) if found["count"] else rows


def _saved(datasets: Any, path: str, split: str) -> Any:
    """The rows of ``split`` in a folder of ``save_to_disk``.

    It holds one dataset, which is called 'train' here whatever it was called, or several by split.
    """
    found = datasets.load_from_disk(path)
    parts = {"train": found, str(found.split): found} if isinstance(found, datasets.Dataset) else dict(found)
    lengths = {part: len(rows) for part, rows in parts.items()}
    pieces = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    ends = [lengths[piece.splitname] if piece.to is None else piece.to for piece in pieces]
    return datasets.concatenate_datasets(
        [parts[piece.splitname].select(range(piece.from_ or 0, end)) for piece, end in zip(pieces, ends)]
    )
