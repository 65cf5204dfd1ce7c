"""Samples of files and Hugging Face datasets; a line that cannot be read is named or counted, never lost."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from pipeline.config import DATA_SUFFIXES
from pipeline.data import demo, demo_settings
from pipeline.data.checks import BrokenLine, decode, shown
from pipeline.data.hub import STREAM, dataset_rows
from pipeline.data.record import FIELDS, Record, parse
from pipeline.data.tables import csv_rows, parquet_rows


def read(
    names: list[str], on_broken: str, setting: str = "data.pool", columns: Optional[Mapping[str, str]] = None
) -> tuple[list[Record], dict[str, int]]:
    """Records of all ``names``, and counts {'samples': n, reason: skipped, ...}. Raises as ``records_of``."""
    if not names:
        raise ValueError(f"{setting} is empty: name at least one file or dataset")
    skipped: Counter[str] = Counter()
    found = [record for name in names for record in records_of(name, on_broken, setting, skipped, columns)]
    return found, {"samples": len(found), **skipped}


def records_of(
    name: str, on_broken: str, setting: str, skipped: Counter, columns: Optional[Mapping[str, str]] = None
) -> Iterator[Record]:
    """The samples of one file or dataset, in order, as they are asked for.

    Args:
        name: a .jsonl, .json (a list of objects), .csv, .tsv or .parquet file in UTF-8, a Hugging Face
            dataset (pipeline/data/hub.py says how they are named), or 'demo:pool', 'demo:target',
            'demo:test': what pipeline.data.demo writes, without the files; 'demo:SETTING/pool' and so on: of
            a setting of pipeline.data.demo_settings.
        on_broken: 'error' raises at the first line that is no sample, 'skip' counts such lines by reason.
        setting: the setting that holds ``name``, for error messages.
        skipped: counts of skipped lines by reason; added to here.
        columns: names of fields by the file's names for them; the file must have all of these.

    Raises:
        ValueError: a broken line, with file and line number; a name without any sample, or that cannot be
            read at all; columns that a file does not have, or has under both names.
    """
    columns = dict(columns or {})
    if unknown := [meant for meant in columns.values() if meant not in FIELDS]:
        raise ValueError(
            f"data.columns gives a column the name {unknown[0]!r}, which nothing reads; read are "
            f"{', '.join(FIELDS)}"
        )
    path = Path(name.removeprefix(STREAM))
    stem = path.stem if path.suffix in DATA_SUFFIXES else path.name
    num_samples, num_skipped, first_broken, missing, last_row = 0, 0, None, set(columns), None
    for number, row in _rows(name, setting):
        origin = f"{name}:{number}"
        try:
            if isinstance(row, BrokenLine):
                raise row
            row = decode(row) if isinstance(row, bytes) else row
            if columns and isinstance(row, dict):
                missing, last_row = missing - row.keys(), row
                row = _renamed(row, columns, origin)
            record = parse(row, stem, number, origin)
        except BrokenLine as broken:
            if on_broken == "error":
                raise broken.at(origin) from broken
            skipped[broken.reason] += 1
            num_skipped, first_broken = num_skipped + 1, first_broken or f"{origin}: {broken}"
        else:
            num_samples += 1
            yield record
    if missing and last_row is not None:
        raise ValueError(
            f"{name}: data.columns names the column {sorted(missing)[0]!r}, which no row has; the last row "
            f"has {shown(sorted(last_row, key=str))}. Files of the pool, the target and the test must all "
            "have it: name it alike in them"
        )
    if not num_samples:
        why = f"; the first: {first_broken}" if first_broken else ""
        raise ValueError(f"{setting}: there is no sample in {name} ({num_skipped} broken lines skipped{why})")


def _renamed(row: dict, columns: Mapping[str, str], origin: str) -> dict:
    renamed: dict = {}
    for key, value in row.items():
        if value is None:  # a field that is not there
            continue
        name = columns.get(key, key)
        if name in renamed:
            raise ValueError(
                f"{origin}: data.columns gives a second column the name {name!r}: leave it out, or name both"
            )
        renamed[name] = value
    return renamed


def _rows(name: str, setting: str) -> Iterator[tuple[int, Any]]:
    """(number from 1, row) of one file or dataset; .jsonl lines as bytes, so that each can fail by itself."""
    suffix = Path(name).suffix
    if name != name.encode("utf-8", "replace").decode():  # it names samples in records, which are UTF-8
        raise ValueError(f"{setting}: the name {name!r} is no UTF-8: rename the file")
    if name.startswith("demo:"):
        yield from enumerate(_demo_rows(name, setting), 1)
    elif suffix not in DATA_SUFFIXES:
        yield from enumerate(dataset_rows(name, setting), 1)
    elif not os.path.isfile(name):
        raise ValueError(f"{setting}: there is no file {name}")
    else:
        try:
            yield from READERS[suffix](name)
        except OSError as error:
            raise ValueError(f"{setting}: {name} cannot be read: {error}") from error


def _demo_rows(name: str, setting: str) -> list[dict]:
    of, slash, part = name.removeprefix("demo:").rpartition("/")
    known = demo_settings.SETTINGS
    if (slash and of not in known) or part not in demo.PARTS:
        raise ValueError(
            f"{setting}: there is no {name}; the demo data are "
            f"{', '.join(f'demo:{part}' for part in demo.PARTS)}, and in place of demo: with "
            f"{', '.join(f'demo:{of}/' for of in known)}"
        )
    parts = demo_settings.generate(of, seed=0) if slash else demo.generate(demo.POOL_SAMPLES, seed=0)
    return parts[part]


def _json_lines(name: str) -> Iterator[tuple[int, bytes]]:
    with open(name, "rb") as lines:
        yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _json_list(name: str) -> Iterator[tuple[int, Any]]:
    try:
        rows = decode(Path(name).read_bytes())
    except BrokenLine as broken:
        raise ValueError(f"{name}: {broken}; a file with one object a line must be named .jsonl") from broken
    if not isinstance(rows, list):
        raise ValueError(
            f"{name}: expected a list of objects, got {shown(rows)}; name it .jsonl if it has one object a "
            "line"
        )
    return enumerate(rows, 1)


READERS: dict[str, Callable[[str], Iterable[tuple[int, Any]]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": csv_rows,
    ".tsv": lambda name: csv_rows(name, "\t"),
    ".parquet": parquet_rows,
}
