# n samples of a block, T tokens of all of them
"""Many samples as flat arrays, for what goes through a whole pool: straight from the map of a token file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow

from pipeline.data.sample import IGNORED, Sample
from pipeline.data.token_file import ROWS, TokenFile

BLOCK = 4096
"""Samples of a block: enough that the work on an array outweighs its call, and small beside a pool."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of neighbouring samples, one sample behind the other."""

    ids_T: np.ndarray
    """int64 (T,)."""
    is_supervised_T: np.ndarray
    """bool (T,)."""
    lengths_n: np.ndarray
    """Tokens of each sample, int64 (n,)."""

    @property
    def sample_T(self) -> np.ndarray:
        """The sample of each token, counted within the block, int64 (T,)."""
        return np.repeat(np.arange(len(self.lengths_n)), self.lengths_n)


def token_blocks(samples: Sequence[Sample], block: int = BLOCK) -> Iterator[Tokens]:
    """All samples in order, ``block`` at a time; of a token file, the next multiple of its own batches."""
    if isinstance(samples, TokenFile):
        columns = samples.column("input_ids"), samples.column("is_supervised")
        while lists := list(islice(zip(*columns), -(-block // ROWS))):
            ids, is_supervised = (pyarrow.concat_arrays(parts) for parts in zip(*lists))
            yield Tokens(
                ids.flatten().to_numpy().astype(np.int64),
                is_supervised.flatten().to_numpy(zero_copy_only=False),
                ids.value_lengths().to_numpy().astype(np.int64),
            )
    else:
        rows = iter(samples)
        while part := list(islice(rows, block)):
            lengths_n = np.array([len(sample.input_ids) for sample in part], dtype=np.int64)
            ids, labels = (
                np.fromiter((t for sample in part for t in getattr(sample, name)), np.int64, lengths_n.sum())
                for name in ("input_ids", "labels")
            )
            yield Tokens(ids, labels != IGNORED, lengths_n)


def sources_and_damages(samples: Sequence[Sample]) -> Iterator[tuple[str, str]]:
    """``source`` and ``damage`` of every sample, in order."""
    if isinstance(samples, TokenFile):
        for sources, damages in zip(samples.column("source"), samples.column("damage")):
            yield from zip(sources.to_pylist(), damages.to_pylist())
    else:
        yield from ((sample.source, sample.damage) for sample in samples)
