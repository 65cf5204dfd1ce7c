"""Texts, lengths and duplicates in a pool, for questions that counts of tokens cannot answer."""

import hashlib
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Optional

import pandas as pd

from pipeline.config import DATA_SUFFIXES, DataConfig
from pipeline.data import sources

MAX_CHARACTERS = 600
"""Length of a text that is shown; the rest of it is cut off."""


def read_texts(data: DataConfig) -> pd.DataFrame:
    """Table of the samples of ``data.pool``, a row each, by id.

    Columns: ``source``, ``damage``, ``text`` (the first MAX_CHARACTERS), ``length`` in characters, ``digest``
    (two samples share it if they differ in case and white space alone), ``is_duplicate`` (others share the
    digest). Samples whose id occurs twice are left out, as records of kept samples name them by id. Raises
    ValueError as ``sources.read`` does.
    """
    records, _ = sources.read(data.pool, data.on_broken, columns=data.columns)
    ids = Counter(record.id for record in records)
    digests = [digest(record.parts()) for record in records]
    occurrences = Counter(digests)
    rows = [
        {
            "id": _in_utf_8(record.id),
            "source": _in_utf_8(record.source),
            "damage": _in_utf_8(record.damage),
            "text": "\n".join(record.parts())[:MAX_CHARACTERS],
            "length": sum(map(len, record.parts())),
            "digest": digest,
            "is_duplicate": occurrences[digest] > 1,
        }
        for record, digest in zip(records, digests)
        if ids[record.id] == 1
    ]
    return pd.DataFrame(
        rows, columns=["id", "source", "damage", "text", "length", "digest", "is_duplicate"]
    ).set_index("id")


def pool_texts(runs: list[tuple[dict, Optional[dict[str, int]]]]) -> tuple[Optional[pd.DataFrame], str]:
    """The texts of the runs' common pool and '', or None and the reason in a sentence.

    Args:
        runs: for each its ``data`` settings and the sizes of the pool's files in bytes (None where these were
            not recorded).
    """
    (data, file_bytes), *others = runs
    names = data.get("pool") or []
    if any(other.get("pool") != data.get("pool") for other, _ in others):
        return None, "Texts are not shown: the runs have different pools. A report on one of them shows its."
    files = [name for name in names if Path(name).suffix in DATA_SUFFIXES]
    for name in files:
        if not Path(name).is_file():
            return (
                None,
                f"Texts are not shown: there is no file {name} here. Make the report where the run was made, "
                "in the same folder.",
            )
        size, before = Path(name).stat().st_size, (file_bytes or {}).get(name)
        if before not in (None, size):
            return (
                None,
                f"Texts are not shown: {name} had {before:,} bytes when the run began and has {size:,} now.",
            )
    # A report downloads nothing: a dataset is in the cache since the run, or it is not.
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    try:
        return read_texts(DataConfig(pool=names, on_broken="skip", columns=data.get("columns") or {})), ""
    except ValueError as error:
        return None, f"Texts are not shown: {error}."


def _in_utf_8(text: str) -> str:
    """The text as a run's records have it: half a surrogate pair, which an id may hold, becomes an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def digest(parts: list[str]) -> str:
    """Hash of a sample's text without regard to case and white space."""
    normal = [" ".join(unicodedata.normalize("NFKC", part).casefold().split()) for part in parts]
    return hashlib.sha256("\0".join(normal).encode("utf-8", "surrogatepass")).hexdigest()[:16]
