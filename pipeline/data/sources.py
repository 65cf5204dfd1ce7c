"""Read samples from files and Hugging Face datasets; a line that cannot be read is named or counted, never lost."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

import pyarrow
import pyarrow.parquet

from pipeline.config import DATA_SUFFIXES
from pipeline.data import demo
from pipeline.data.record import BrokenLine, Record, decode, parse, shown


def read(names: list[str], on_broken: str, setting: str = "data.pool") -> tuple[list[Record], dict[str, int]]:
    """Read all files and datasets in ``names``, in order.

    Args:
        names: .jsonl, .json (a list of objects) and .parquet files in UTF-8, Hugging Face datasets, 'name' or 'name:split', or
            'demo:pool', 'demo:target', 'demo:test': what pipeline.data.demo writes, without the files.
        on_broken: 'error' raises at the first line that is no sample, 'skip' counts such lines by reason.
        setting: the setting that ``names`` came from, for error messages.

    Returns:
        The records, and counts: {'samples': n, reason: skipped, ...}.

    Raises:
        ValueError: a broken line, with file and line number; a name without any sample, or that cannot be read at all.
    """
    if not names:
        raise ValueError(f"{setting} is empty: name at least one file or dataset")
    records: list[Record] = []
    skipped: Counter[str] = Counter()
    for name in names:
        num_before, skipped_before = len(records), skipped.total()
        for number, row in _rows(name, setting):
            origin = f"{name}:{number}"
            try:
                if isinstance(row, BrokenLine):
                    raise row
                row = decode(row) if isinstance(row, bytes) else row
                records.append(parse(row, Path(name).stem, number, origin))
            except BrokenLine as broken:
                if on_broken == "error":
                    raise broken.at(origin) from broken
                skipped[broken.reason] += 1
        if len(records) == num_before:
            lines = f"{skipped.total() - skipped_before} broken lines skipped"
            raise ValueError(f"{setting}: there is no sample in {name} ({lines})")
    return records, {"samples": len(records), **skipped}


def _rows(name: str, setting: str) -> Iterator[tuple[int, Any]]:
    """(number from 1, row) of one file or dataset; lines of a .jsonl file as bytes, so that each can fail by itself."""
    suffix = Path(name).suffix
    if name != name.encode("utf-8", "replace").decode():  # it names samples, in records that are UTF-8
        raise ValueError(f"{setting}: the name {name!r} is no UTF-8: rename the file")
    if name.startswith("demo:"):
        parts = demo.generate(demo.POOL_SAMPLES, seed=0)
        if name.removeprefix("demo:") not in parts:
            raise ValueError(f"{setting}: there is no {name}; the demo data are {', '.join(f'demo:{part}' for part in parts)}")
        yield from enumerate(parts[name.removeprefix("demo:")], 1)
    elif suffix not in DATA_SUFFIXES:
        yield from enumerate(_hub_dataset(name, setting), 1)
    elif not os.path.isfile(name):
        raise ValueError(f"{setting}: there is no file {name}")
    else:
        read_file = {".jsonl": _json_lines, ".json": _json_list, ".parquet": _parquet_rows}[suffix]
        try:
            yield from read_file(name)
        except OSError as error:
            raise ValueError(f"{setting}: {name} cannot be read: {error}") from error


def _json_lines(name: str) -> Iterator[tuple[int, bytes]]:
    with open(name, "rb") as lines:
        yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _parquet_rows(name: str) -> Iterator[tuple[int, Union[dict, BrokenLine]]]:
    try:
        with pyarrow.parquet.ParquetFile(name) as file:
            columns = Counter(file.schema_arrow.names)
            if twice := [column for column, count in columns.items() if count > 1]:
                raise ValueError(f"{name}: the column {shown(twice[0])} is there twice")
            number = 0
            for batch in file.iter_batches(1024):
                for row in _python_rows(batch):
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a column's name
        raise ValueError(f"{name}: not a Parquet file: {error}") from error


def _python_rows(batch: pyarrow.RecordBatch) -> list[Union[dict, BrokenLine]]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError) as error:  # text that is no UTF-8, a date before the year 1: find the row
        if batch.num_rows == 1:
            return [BrokenLine("wrong encoding" if isinstance(error, UnicodeDecodeError) else "wrong type", str(error))]
        return [row for i in range(batch.num_rows) for row in _python_rows(batch.slice(i, 1))]


def _json_list(name: str) -> Iterator[tuple[int, Any]]:
    try:
        rows = decode(Path(name).read_bytes())
    except BrokenLine as broken:
        raise ValueError(f"{name}: {broken}; a file with one object a line must be named .jsonl") from broken
    if not isinstance(rows, list):
        raise ValueError(f"{name}: expected a list of objects, got {shown(rows)}; name it .jsonl if it has one object a line")
    return enumerate(rows, 1)


def _hub_dataset(name: str, setting: str):
    hint = f"{setting}: {name} is not a file of the kinds {', '.join(DATA_SUFFIXES)}, and as a Hugging Face dataset it "
    try:
        import datasets  # optional and slow to import: only those who name a dataset need it
    except ImportError as error:
        raise ValueError(hint + "needs 'pip install datasets'") from error
    path, _, split = name.partition(":")
    try:
        return datasets.load_dataset(path, split=split or "train")
    except Exception as error:  # of the network, the hub, the dataset's builder
        raise ValueError(hint + f"cannot be loaded: {error}") from error
