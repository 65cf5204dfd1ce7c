"""What the samples of a pool say, for questions that token counts cannot answer: exact duplicates and lengths."""

import hashlib
from collections import Counter

import pandas as pd

from pipeline.config import DataConfig
from pipeline.data import sources


def read_texts(data: DataConfig) -> pd.DataFrame:
    """One row a sample of ``data.pool`` by its id: ``length`` in characters, ``is_duplicate``: others have the same text.

    Samples with an id that occurs twice are left out, as kept records name samples by id.
    """
    records, _ = sources.read(data.pool, data.on_broken)
    ids = Counter(record.id for record in records)
    digests = [hashlib.sha256("\0".join(record.parts()).encode()).digest() for record in records]
    occurrences = Counter(digests)
    rows = [
        {"id": record.id, "length": sum(map(len, record.parts())), "is_duplicate": occurrences[digest] > 1}
        for record, digest in zip(records, digests)
        if ids[record.id] == 1
    ]
    return pd.DataFrame(rows, columns=["id", "length", "is_duplicate"]).set_index("id")
