"""One sample as text: the formats that a row of a file or dataset may have, checked field by field."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, Optional

ROLES = ("system", "user", "assistant", "tool")
FORMATS = "'messages', 'prompt' and 'completion', 'instruction' and 'output' (with optional 'input'), or 'text'"

MAX_DEPTH = 32  # of what a message may hold besides its content: templates walk through it


@dataclass(frozen=True)
class Record:
    """A sample as text, in exactly one of three forms: ``messages``, ``prompt`` with ``completion``, or ``text``.

    Alpaca fields, and prompts and completions that are lists of messages, arrive as ``messages``.
    """

    id: str
    source: str
    damage: str
    origin: str
    """Where it was read, 'file:line' (the row's number where there are no lines, counted from 1)."""
    messages: Optional[list[dict]] = None
    num_context: int = 0
    """Leading messages that belong to a prompt: an assistant's turn among them is not supervised."""
    prompt: Optional[str] = None
    completion: Optional[str] = None
    text: Optional[str] = None

    def parts(self) -> list[str]:
        """Its text, question and answers, in order."""
        if self.messages is not None:
            return [message["content"] for message in self.messages]
        return [part for part in (self.prompt, self.completion, self.text) if part is not None]


class BrokenLine(ValueError):
    """A row that is no sample: ``reason`` to count it by, and the details."""

    def __init__(self, reason: str, details: str):
        super().__init__(f"{reason}: {details}")
        self.reason = reason

    def at(self, origin: str) -> ValueError:
        """The error that ends a run, with the place."""
        return ValueError(f"{origin}: {self}; data.on_broken = skip counts such lines instead")


def decode(raw: bytes) -> Any:
    """The JSON value in ``raw``, UTF-8 with or without a byte order mark. Raises BrokenLine.

    Stricter than json.loads: no key twice in an object, of which one value would be lost, and no NaN.
    """
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise BrokenLine("wrong encoding", f"expected UTF-8, found {error.reason} at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise BrokenLine("malformed JSON", f"{error.msg} at {place} of {shown(error.doc)}") from error
    except RecursionError as error:
        raise BrokenLine("malformed JSON", f"nested too deeply: {shown(raw)}") from error
    except BrokenLine:
        raise
    except ValueError as error:  # Python's limit on the digits of a number
        raise BrokenLine("malformed JSON", f"a number is too long: {shown(raw)}") from error


def parse(row: Any, stem: str, number: int, origin: str) -> Record:
    """Turn a decoded row into a record; ``stem`` and ``number`` name it where it has no id or source. Raises BrokenLine."""
    if not isinstance(row, dict):
        raise BrokenLine("wrong type", f"expected an object with {FORMATS}, got {shown(row)}")
    row = {key: value for key, value in row.items() if value is not None}  # Parquet fills absent fields with nulls
    about: dict[str, Any] = {
        "id": _label(row, "id", f"{stem}:{number}"),
        "source": _label(row, "source", stem),
        "damage": _label(row, "corruption" if "corruption" in row else "damage", ""),
        "origin": origin,
    }
    if "messages" in row:
        return Record(**about, messages=_messages(row, "messages"))
    if "prompt" in row and "completion" in row:
        if isinstance(row["prompt"], str):
            return Record(**about, prompt=_string(row, "prompt", "prompt"), completion=_string(row, "completion", "answer"))
        context = _messages(row, "prompt", opens=True, answered=False)
        completion = _messages(row, "completion", opens=False, answered=True)
        return Record(**about, messages=context + completion, num_context=len(context))
    if "instruction" in row and "output" in row:
        question, answer = _string(row, "instruction", "prompt"), _string(row, "output", "answer")
        if row.get("input"):
            question += "\n\n" + _string(row, "input")
        return Record(**about, messages=[{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    if "text" in row:
        return Record(**about, text=_string(row, "text", "text"))
    raise BrokenLine("missing field", f"expected {FORMATS}, got the fields {shown(sorted(row))}")


def shown(value: Any) -> str:
    """A value as it may stand in an error message: the start of it."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 60 else text[:60] + "..."


def _messages(row: dict, key: str, opens: bool = True, answered: bool = True) -> list[dict]:
    """Checked messages. ``opens`` the chat: somebody else speaks before the assistant; ``answered``: the assistant speaks."""
    messages = row[key]
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise BrokenLine("wrong type", f"'{key}' must be a list of objects with role and content, got {shown(messages)}")
    messages = [{field: value for field, value in message.items() if value is not None} for message in messages]
    if row.get("tools") not in (None, [], "", "[]"):
        raise BrokenLine("tool call", "'tools' would be lost: say in a system message which tools there are")
    for place, message in enumerate(messages, 1):
        what = f"message {place} of '{key}'"
        if message.get("tool_calls") or message.get("function_call"):
            raise BrokenLine("tool call", f"{what} calls a tool in a field of its own, which many chat templates leave out: write the "
                             "call into its content, as the model is to write it")  # fmt: skip
        if "role" not in message or "content" not in message:
            raise BrokenLine("missing field", f"{what} needs role and content, has {shown(sorted(message))}")
        if message["role"] not in ROLES:
            raise BrokenLine("wrong type", f"{what} has the role {shown(message['role'])}, not one of {ROLES}")
        _string(message, "content", "answer" if message["role"] == "assistant" else None)
        _encodable(message, what)
    if opens and messages[0]["role"] == "assistant":
        raise BrokenLine("missing field", f"'{key}' starts with the assistant: expected a message to answer before it")
    if answered and not any(message["role"] == "assistant" for message in messages):
        raise BrokenLine("empty answer", f"'{key}' has no message of the assistant")
    return messages


def _string(row: dict, key: str, required: Optional[str] = None) -> str:
    """The string in ``row[key]``; what is ``required`` must not be blank."""
    value = row[key]
    if not isinstance(value, str):
        raise BrokenLine("wrong type", f"'{key}' must be a string, got {shown(value)}")
    if required and not value.strip():
        raise BrokenLine(f"empty {required}", f"'{key}' has no text")
    _encodable(value, f"'{key}'")
    return value


def _label(row: dict, key: str, default: str) -> str:
    """What names or describes a sample, as a string."""
    value = row.get(key, default)
    if not isinstance(value, (str, int, float)):
        raise BrokenLine("wrong type", f"'{key}' must be a string or a number, got {shown(value)}")
    _encodable(str(value), f"'{key}'")
    return str(value)


def _encodable(value: Any, what: str, depth: int = 0) -> None:
    """Refuse strings that UTF-8 does not have, wherever they stand in ``value``."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no tokenizer takes
            raise BrokenLine("wrong encoding", f"{what} has an unpaired surrogate at character {error.start + 1}") from error
    elif isinstance(value, (dict, list, tuple)):
        if depth == MAX_DEPTH:
            raise BrokenLine("wrong type", f"{what} is nested more than {MAX_DEPTH} levels deep")
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            _encodable(item, what, depth + 1)


def _object(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise BrokenLine("malformed JSON", f"the key {shown(twice)} stands twice in one object")
    return found


def _constant(name: str) -> None:
    raise BrokenLine("malformed JSON", f"{name} is no number in JSON")
