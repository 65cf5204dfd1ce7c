"""Read samples from files and Hugging Face datasets; a line that cannot be read is named or counted, never lost."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    records, skipped = [], Counter()
    for name in names:
        num_before, skipped_before = len(records), skipped.total()
        for number, row in _rows(name, setting):
            origin = f"{name}:{number}"
            try:
                row = decode(row) if isinstance(row, bytes) else row
                records.append(parse(row, Path(name).stem, number, origin))
            except BrokenLine as broken:
                if on_broken == "error":
                    raise ValueError(f"{origin}: {broken}; data.on_broken = skip counts such lines instead") from broken
                skipped[broken.reason] += 1
        if len(records) == num_before:
            lines = f"{skipped.total() - skipped_before} broken lines skipped"
            raise ValueError(f"{setting}: there is no sample in {name} ({lines})")
    return records, {"samples": len(records), **skipped}


def _rows(name: str, setting: str) -> Iterator[tuple[int, Any]]:
    """(number from 1, row) of one file or dataset; lines of a .jsonl file as bytes, so that each can fail by itself."""
    suffix = Path(name).suffix
    if name.startswith("demo:"):
        parts = demo.generate(demo.POOL_SAMPLES, seed=0)
        if name.removeprefix("demo:") not in parts:
            raise ValueError(f"{setting}: there is no {name}; the demo data are {', '.join(f'demo:{part}' for part in parts)}")
        yield from enumerate(parts[name.removeprefix("demo:")], 1)
    elif suffix not in DATA_SUFFIXES:
        yield from enumerate(_hub_dataset(name, setting), 1)
    elif not Path(name).is_file():
        raise ValueError(f"{setting}: there is no file {name}")
    elif suffix == ".jsonl":
        with open(name, "rb") as lines:
            yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    elif suffix == ".json":
        yield from enumerate(_json_list(name), 1)
    else:
        try:
            yield from enumerate(pyarrow.parquet.read_table(name).to_pylist(), 1)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{name}: not a Parquet file: {error}") from error


def _json_list(name: str) -> list:
    try:
        rows = decode(Path(name).read_bytes())
    except BrokenLine as broken:
        raise ValueError(f"{name}: {broken}; a file with one object a line must be named .jsonl") from broken
    if not isinstance(rows, list):
        raise ValueError(f"{name}: expected a list of objects, got {shown(rows)}; name it .jsonl if it has one object a line")
    return rows


def _hub_dataset(name: str, setting: str):
    hint = f"{setting}: {name} is not a file of the kinds {', '.join(DATA_SUFFIXES)}, and as a Hugging Face dataset it "
    try:
        import datasets  # optional and slow to import: only those who name a dataset need it
    except ImportError as error:
        raise ValueError(hint + "needs 'pip install datasets'") from error
    path, _, split = name.partition(":")
    try:
        return datasets.load_dataset(path, split=split or "train")
    except (OSError, ValueError) as error:
        raise ValueError(hint + f"cannot be loaded: {error}") from error
