"""Rows of CSV and Parquet files, each able to fail by itself."""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Union

import pyarrow
import pyarrow.parquet

from pipeline.data.checks import BrokenLine, shown

LARGEST_CELL = 2**27  # characters: a quote that nobody closes takes the rest of the file
NO_UTF_8 = re.compile("[\udc80-\udcff]")  # surrogateescape's stand-ins for bytes that are no UTF-8


def csv_rows(name: str, delimiter: str = ",") -> Iterator[tuple[int, Union[dict, BrokenLine]]]:
    """(line where it begins, row) for each row of a file with a header.

    Cells are text, and may hold line breaks in quotes. Empty rows are passed over. Raises ValueError for a
    header that names a column twice or is no UTF-8.
    """
    csv.field_size_limit(LARGEST_CELL)
    header = None
    with open(name, newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            cells: Union[list[str], BrokenLine]
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells = BrokenLine("malformed CSV", f"{error}, in the row up to line {reader.line_num}")
            if header is None:
                header = _header(name, line, cells)
            elif isinstance(cells, BrokenLine) or any(cell.strip() for cell in cells):
                yield line, _csv_row(cells, header)


def _header(name: str, line: int, cells: Union[list[str], BrokenLine]) -> list[str]:
    if isinstance(cells, BrokenLine):
        raise ValueError(f"{name}:{line}: {cells}")
    if broken := [cell for cell in cells if NO_UTF_8.search(cell)]:
        raise ValueError(
            f"{name}:{line}: wrong encoding: expected UTF-8, found the column {shown(broken[0])}"
        )
    _check_columns(name, cells)
    return cells


def _csv_row(cells: Union[list[str], BrokenLine], header: list[str]) -> Union[dict, BrokenLine]:
    if isinstance(cells, BrokenLine):
        return cells
    if len(cells) != len(header):
        return BrokenLine(
            "wrong number of cells",
            f"{len(cells)}, and the header names {len(header)} columns: {shown(header)}",
        )
    for column, cell in zip(header, cells):
        if found := NO_UTF_8.search(cell):
            byte = ord(found[0]) - 0xDC00
            return BrokenLine(
                "wrong encoding", f"expected UTF-8, found byte 0x{byte:02x} in the column {shown(column)}"
            )
    return dict(zip(header, cells))


def parquet_rows(name: str) -> Iterator[tuple[int, Union[dict, BrokenLine]]]:
    """(number from 1, row) for each row of a Parquet file.

    Raises ValueError where it is no such file, or a column is there twice.
    """
    try:
        with pyarrow.parquet.ParquetFile(name) as file:
            _check_columns(name, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(1024):
                for row in _python_rows(batch):
                    number += 1
                    yield number, without_nulls(row)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name
        raise ValueError(f"{name}: not a Parquet file: {error}") from error


def without_nulls(value: Any) -> Any:
    """``value`` without the fields that Arrow's structs fill with nulls, at every depth."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _check_columns(name: str, columns: list[str]) -> None:
    if twice := [column for column, count in Counter(columns).items() if count > 1]:
        raise ValueError(f"{name}: the column {shown(twice[0])} is there twice")


def _python_rows(batch: pyarrow.RecordBatch) -> list[Union[dict, BrokenLine]]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError) as error:
        # A text is no UTF-8, or a date before the year 1: look for its row.
        if batch.num_rows == 1:
            return [
                BrokenLine(
                    "wrong encoding" if isinstance(error, UnicodeDecodeError) else "wrong type", str(error)
                )
            ]
        return [row for i in range(batch.num_rows) for row in _python_rows(batch.slice(i, 1))]
