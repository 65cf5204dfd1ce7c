"""One sample as text: the formats that a row of a file or dataset may have, checked field by field."""

import json
from dataclasses import dataclass
from typing import Any, Optional

ROLES = ("system", "user", "assistant", "tool")
FORMATS = "'messages', 'prompt' and 'completion', 'instruction' and 'output' (with optional 'input'), or 'text'"


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


def decode(raw: bytes) -> Any:
    """The JSON value in ``raw``, UTF-8 with or without a byte order mark. Raises BrokenLine."""
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BrokenLine("wrong encoding", f"expected UTF-8, found {error.reason} at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise BrokenLine("malformed JSON", f"{error.msg} at {place} of {shown(error.doc)}") from error


def parse(row: Any, stem: str, number: int, origin: str) -> Record:
    """Turn a decoded row into a record; ``stem`` and ``number`` name it where it has no id or source. Raises BrokenLine."""
    if not isinstance(row, dict):
        raise BrokenLine("wrong type", f"expected an object with {FORMATS}, got {shown(row)}")
    row = {key: value for key, value in row.items() if value is not None}  # Parquet fills absent fields with nulls
    about = {
        "id": str(row.get("id", f"{stem}:{number}")),
        "source": str(row.get("source", stem)),
        "damage": str(row.get("corruption", row.get("damage", ""))),
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
    raise BrokenLine("missing field", f"expected {FORMATS}, got the fields {sorted(row)}")


def shown(value: Any) -> str:
    """A value as it may stand in an error message: the start of it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _messages(row: dict, key: str, opens: bool = True, answered: bool = True) -> list[dict]:
    """Checked messages. ``opens`` the chat: somebody else speaks before the assistant; ``answered``: the assistant speaks."""
    messages = row[key]
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise BrokenLine("wrong type", f"'{key}' must be a list of objects with role and content, got {shown(messages)}")
    messages = [{field: value for field, value in message.items() if value is not None} for message in messages]
    for place, message in enumerate(messages, 1):
        if "role" not in message or "content" not in message:
            raise BrokenLine("missing field", f"message {place} of '{key}' needs role and content, has {sorted(message)}")
        if message["role"] not in ROLES:
            raise BrokenLine("wrong type", f"message {place} of '{key}' has the role {message['role']!r}, not one of {ROLES}")
        _string(message, "content", "answer" if message["role"] == "assistant" else None)
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
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which no tokenizer takes
        raise BrokenLine("wrong encoding", f"'{key}' has an unpaired surrogate at character {error.start + 1}") from error
    return value
