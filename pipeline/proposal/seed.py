# n samples of the pool that have a score
"""Cosines that pipeline.score has measured before the run, for the samples of a pool."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Optional

import numpy as np
import pyarrow
import pyarrow.parquet

from pipeline.data.token_file import TokenFile

PARTS = "parts"
"""Folder of the parts in one that pipeline.score has written (pipeline/datastore/parts.py)."""
Name = tuple[Optional[str], Optional[str]]


def read_scores(path: Path, pool: TokenFile) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the pool, int64 (n,), of the samples that have a score, and their cosines, float64 (n,).

    Source and id tell which sample is which; where two share both, in the pool or among the scores, neither
    has one.

    Args:
        path: a folder that pipeline.score has written, one of Parquet files, or a Parquet file.
        pool: the samples.

    Raises:
        ValueError: it cannot be read, or has no cosine for any sample of the pool.
    """
    parts = path / PARTS if (path / PARTS).is_dir() else path
    try:
        table = pyarrow.parquet.read_table(parts, columns=["source", "id", "cosine"])
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"selection.seed_scores: {parts} cannot be read: {error}. Name what pipeline.score has written"
        ) from error
    columns = (chain.from_iterable(pool.column(name)) for name in ("source", "id"))
    names = zip(*((value.as_py() or None for value in column) for column in columns))
    position_of = _once(names, range(len(pool)))
    scored = zip(*(table[name].to_pylist() for name in ("source", "id")))
    cosine_of = _once(scored, table["cosine"].to_pylist())
    found = {
        position_of[name]: cosine
        for name, cosine in cosine_of.items()
        if cosine is not None and position_of.get(name) is not None
    }
    if not any(found.values()):
        raise ValueError(
            f"selection.seed_scores: among {table.num_rows:,} samples of {parts} none with a cosine is one "
            f"of the {len(pool):,} of data.pool, by source and id: name scores of this pool"
        )
    return np.array(list(found), dtype=np.int64), np.array(list(found.values()), dtype=np.float64)


def _once(names: Iterable[Name], values: Iterable) -> dict[Name, Optional[float]]:
    """Values by name; None where a name comes twice."""
    found: dict[Name, Optional[float]] = {}
    for name, value in zip(names, values):
        found[name] = None if name in found else value
    return found
