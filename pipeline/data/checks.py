"""Checks of rows: strict JSON, strings that UTF-8 can hold, and the error that says what is wrong."""

import json
from collections import Counter
from typing import Any, Optional

MAX_DEPTH = 32  # levels of nesting in a message or a tool: templates walk through them


class BrokenLine(ValueError):
    """A row that is no sample: ``reason``, its name in counts, and ``details`` for the message."""

    def __init__(self, reason: str, details: str):
        super().__init__(f"{reason}: {details}")
        self.reason, self.details = reason, details

    def at(self, origin: str) -> ValueError:
        """The error that ends a run: this one, with the row's place before it."""
        return ValueError(f"{origin}: {self}; data.on_broken = skip counts such lines instead")


def decode(raw: bytes) -> Any:
    """The JSON value in ``raw``, UTF-8 with or without a byte order mark. Raises BrokenLine.

    Stricter than json.loads: it refuses NaN, and a key that stands twice in an object, where one of the two
    values would be lost.
    """
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise BrokenLine(
            "wrong encoding", f"expected UTF-8, found {error.reason} at byte {error.start + 1}"
        ) from error
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise BrokenLine("malformed JSON", f"{error.msg} at {place} of {shown(error.doc)}") from error
    except RecursionError as error:
        raise BrokenLine("malformed JSON", f"nested too deeply: {shown(raw)}") from error
    except BrokenLine:
        raise
    except ValueError as error:  # Python's limit on the digits of a number
        raise BrokenLine("malformed JSON", f"a number is too long: {shown(raw)}") from error


def from_text(value: Any, what: str) -> Any:
    """``value``, decoded from JSON where it is a text, as every cell of a table is. Raises BrokenLine."""
    if not isinstance(value, str):
        return value
    try:
        return decode(value.encode("utf-8", "surrogatepass"))
    except BrokenLine as broken:
        raise BrokenLine(broken.reason, f"{what} is a text, and as JSON: {broken.details}") from broken


def shown(value: Any) -> str:
    """The first 60 characters of a value, for an error message."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 60 else text[:60] + "..."


def string(row: dict, key: str, required: Optional[str] = None) -> str:
    """The string in ``row[key]``. Raises BrokenLine, also for a blank one where ``required`` names it."""
    value = row[key]
    if not isinstance(value, str):
        raise BrokenLine("wrong type", f"'{key}' must be a string, got {shown(value)}")
    if required and not value.strip():
        raise BrokenLine(f"empty {required}", f"'{key}' has no text")
    encodable(value, f"'{key}'")
    return value


def label(row: dict, key: str, default: str) -> str:
    """The name or description in ``row[key]``, or ``default``, as a string. Raises BrokenLine."""
    value = row.get(key, default)
    if not isinstance(value, (str, int, float)):
        raise BrokenLine("wrong type", f"'{key}' must be a string or a number, got {shown(value)}")
    encodable(str(value), f"'{key}'")
    return str(value)


def encodable(value: Any, what: str, depth: int = 0) -> None:
    """Raise BrokenLine for a string that UTF-8 cannot hold, wherever it stands in ``value``."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            # JSON can spell half of a surrogate pair, which no tokenizer takes.
            raise BrokenLine(
                "wrong encoding", f"{what} has an unpaired surrogate at character {error.start + 1}"
            ) from error
    elif isinstance(value, (dict, list, tuple)):
        if depth == MAX_DEPTH:
            raise BrokenLine("wrong type", f"{what} is nested more than {MAX_DEPTH} levels deep")
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            encodable(item, what, depth + 1)


def _object(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise BrokenLine("malformed JSON", f"the key {shown(twice)} stands twice in one object")
    return found


def _constant(name: str) -> None:
    raise BrokenLine("malformed JSON", f"{name} is no number in JSON")
