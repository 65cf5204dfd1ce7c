"""Rows of Hugging Face datasets: of the hub, of a folder, of a folder that ``save_to_disk`` made, or streamed.

    NAME                        the split train
    NAME:SPLIT                  or a part of it, train[:1000], train[10%:20%], or several, train+test
    NAME:CONFIGURATION:SPLIT    of a dataset that has several configurations
    stream:NAME...              row by row, without downloading the dataset first; of a split, or of its beginning, train[:1000]

NAME is a hub name or a folder. None of this runs code that comes with a dataset: the library has no such thing from version 4 on.
"""

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, Optional

from pipeline.config import DATA_SUFFIXES
from pipeline.data.tables import without_nulls

STREAM = "stream:"
COLON = re.compile(r":(?![^\[]*\])")  # none of a slice
FIRST_ROWS = re.compile(r"(?P<split>[\w.-]+)(\[:(?P<count>\d+)\])?")


def dataset_rows(name: str, setting: str) -> Iterator[dict]:
    """The rows of a dataset in order, one at a time. Raises ValueError where it cannot be loaded or read, with the reason."""
    kinds = ", ".join(DATA_SUFFIXES)
    hint = f"{setting}: {name} is not a file of the kinds {kinds}, and as a Hugging Face dataset it "
    try:
        import datasets  # optional and slow to import: only those who name a dataset need it
    except ImportError as error:
        raise ValueError(hint + "needs 'pip install datasets'") from error
    path, configuration, split = _split_name(name.removeprefix(STREAM), hint)
    try:
        if os.path.isdir(path) and not os.listdir(path):
            raise ValueError("the folder is empty")
        if _is_saved(path):
            if configuration or name.startswith(STREAM):
                raise ValueError(
                    "what save_to_disk wrote has no configurations, and is read row by row anyhow: NAME or NAME:SPLIT"
                )
            rows = _saved(datasets, path, split)
        elif name.startswith(STREAM):
            rows = _streamed(datasets, path, configuration, split)
        else:
            rows = datasets.load_dataset(path, configuration, split=split)
        for row in rows:
            yield without_nulls(row)
    except Exception as error:  # of the network, the hub, the dataset's builder, the name of a split or configuration
        reason = " ".join(str(error).split())
        if "config" in reason.lower():
            reason += f" (a configuration stands before the split: {path}:configuration:split)"
        raise ValueError(hint + f"cannot be read: {type(error).__name__}: {reason}") from error


def fingerprint(name: str, setting: str) -> Optional[str]:
    """The library's own hash of what a dataset holds and how it is read; None of a stream, and of what cannot be loaded."""
    if name.startswith(STREAM):
        return None
    try:
        import datasets

        path, configuration, split = _split_name(name, setting)
        if _is_saved(path):
            found = datasets.load_from_disk(path)
            parts = {"": found} if isinstance(found, datasets.Dataset) else dict(found)
            return " ".join(f"{part} {rows._fingerprint}" for part, rows in parts.items())
        return datasets.load_dataset(path, configuration, split=split)._fingerprint
    except Exception:  # reading says what is wrong
        return None


def _is_saved(path: str) -> bool:
    """``save_to_disk`` has written it."""
    return any(os.path.isfile(os.path.join(path, file)) for file in ("state.json", "dataset_dict.json"))


def _split_name(name: str, hint: str) -> tuple[str, Optional[str], str]:
    """Path, configuration and split. A folder may have colons in its name, which then is all there is."""
    path, *rest = [name] if os.path.isdir(name) else COLON.split(name)
    if not path or not all(rest) or len(rest) > 2:
        raise ValueError(hint + "is no name: expected name, name:split or name:configuration:split")
    *configuration, split = rest or ["train"]
    return path, configuration[0] if configuration else None, split


def _streamed(datasets: Any, path: str, configuration: Optional[str], split: str) -> Iterable[dict]:
    found = FIRST_ROWS.fullmatch(split)
    if not found:
        raise ValueError(
            f"a stream is read from its first row on: {split} must be a split, or the beginning of one, train[:1000]"
        )
    rows = datasets.load_dataset(path, configuration, split=found["split"], streaming=True)
    return rows.take(int(found["count"])) if found["count"] else rows


def _saved(datasets: Any, path: str, split: str) -> Iterable[dict]:
    """What ``save_to_disk`` wrote, a dataset (its rows are 'train', whatever it was called) or several by split."""
    found = datasets.load_from_disk(path)
    parts = {"train": found, str(found.split): found} if isinstance(found, datasets.Dataset) else dict(found)
    lengths = {part: len(rows) for part, rows in parts.items()}
    for piece in datasets.ReadInstruction.from_spec(split).to_absolute(lengths):
        rows = parts[piece.splitname]
        yield from rows.select(range(piece.from_ or 0, len(rows) if piece.to is None else piece.to))
