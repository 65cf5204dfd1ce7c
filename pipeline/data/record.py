"""One sample as text: the formats that a row of a file or dataset may have, checked field by field."""

import json
from dataclasses import dataclass
from typing import Any, Optional

from pipeline.data import preferences
from pipeline.data.checks import BrokenLine, label, shown, string
from pipeline.data.messages import calls_of, read_messages, read_tools

FORMATS = (
    "'messages', 'conversations', 'prompt' and 'completion', 'instruction' and 'output' (with optional "
    "'input'), or 'text'"
)
FIELDS = (
    "messages",
    "conversations",
    "tools",
    "functions",
    "system",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "history",
    "text",
    "id",
    "source",
    "damage",
    "corruption",
)
"""Fields of a row that are read; all others are ignored."""


@dataclass(frozen=True)
class Record:
    """A sample as text, in exactly one of three forms: ``messages``, ``prompt`` with ``completion``, or
    ``text``.

    ShareGPT's conversations, Alpaca fields, and prompts and completions that are lists of messages, arrive as
    ``messages``.
    """

    id: str
    source: str
    damage: str
    origin: str
    """Place of the row, 'file:line' (its number, from 1, where there are no lines)."""
    messages: Optional[list[dict]] = None
    tools: Optional[list[dict]] = None
    """Tools that the assistant may call in ``messages``: {'type': 'function', 'function': {'name': ...}}."""
    num_context: int = 0
    """Leading messages that belong to a prompt: an assistant's turn among them is not supervised."""
    prompt: Optional[str] = None
    completion: Optional[str] = None
    text: Optional[str] = None

    def parts(self) -> list[str]:
        """All texts in order, question and answers with their tool calls; then the tools."""
        if self.messages is not None:
            tools = [json.dumps(tool["function"], ensure_ascii=False) for tool in self.tools or ()]
            return [part for message in self.messages for part in _said(message)] + tools
        return [part for part in (self.prompt, self.completion, self.text) if part is not None]


def parse(row: Any, stem: str, number: int, origin: str) -> Record:
    """The record in a decoded row. Raises BrokenLine.

    ``stem`` and ``number`` name it where the row has no id or source.
    """
    if not isinstance(row, dict):
        raise BrokenLine("wrong type", f"expected an object with {FORMATS}, got {shown(row)}")
    # Parquet fills absent fields with nulls.
    row = {key: value for key, value in row.items() if value is not None}
    preferences.refuse(row)
    about: dict[str, Any] = {
        "id": label(row, "id", f"{stem}:{number}"),
        "source": label(row, "source", stem),
        "damage": label(row, "corruption" if "corruption" in row else "damage", ""),
        "origin": origin,
    }
    tools = read_tools(row)
    if "messages" in row:
        return Record(**about, messages=read_messages(row, "messages"), tools=tools)
    if "conversations" in row:
        return Record(**about, messages=_with_system(row, read_messages(row, "conversations")), tools=tools)
    if "prompt" in row and "completion" in row and not isinstance(row["prompt"], str):
        context = read_messages(row, "prompt", opens=True, answered=False)
        completion = read_messages(row, "completion", opens=False, answered=True)
        return Record(**about, messages=context + completion, num_context=len(context), tools=tools)
    if "instruction" in row and "output" in row and not ("prompt" in row and "completion" in row):
        return Record(**about, messages=_with_system(row, _alpaca(row)), tools=tools)
    if tools:
        raise BrokenLine("tool call", "'tools' would be lost with a prompt that is no chat: take 'messages'")
    if "prompt" in row and "completion" in row:
        for key in ("prompt", "completion"):
            _refuse_chat_in_text(row[key], key)
        return Record(
            **about, prompt=string(row, "prompt", "prompt"), completion=string(row, "completion", "answer")
        )
    if "text" in row:
        return Record(**about, text=string(row, "text", "text"))
    raise BrokenLine(
        "missing field",
        f"expected {FORMATS}, got the fields {shown(sorted(row, key=str))}; data.columns gives them other "
        "names",
    )


def _refuse_chat_in_text(text: Any, key: str) -> None:
    """Raise BrokenLine for a list of messages as JSON text, as a CSV cell may have it.

    It would be trained on as text, brackets and all.
    """
    try:
        found = json.loads(text) if isinstance(text, str) and text.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        return
    if (
        isinstance(found, list)
        and found
        and all(isinstance(message, dict) and "role" in message for message in found)
    ):
        raise BrokenLine(
            "wrong type",
            f"'{key}' is the JSON text of messages: put the whole chat into 'messages', where text is "
            f"decoded, or make '{key}' a list",
        )


def _alpaca(row: dict) -> list[dict]:
    question, answer = string(row, "instruction", "prompt"), string(row, "output", "answer")
    if row.get("input"):
        question += "\n\n" + string(row, "input")
    return _turns(row.get("history") or []) + _turns([[question, answer]])


def _turns(pairs: Any) -> list[dict]:
    """Messages of [[question, answer], ...]."""
    if not isinstance(pairs, list) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    ):
        raise BrokenLine(
            "wrong type", f"'history' must be a list of pairs, question and answer, got {shown(pairs)}"
        )
    return [
        {
            "role": role,
            "content": string({"history": text}, "history", "answer" if role == "assistant" else None),
        }
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair)
    ]


def _with_system(row: dict, messages: list[dict]) -> list[dict]:
    """The messages with the column ``system`` as the first, unless it stands there already."""
    if not row.get("system"):
        return messages
    system = {"role": "system", "content": string(row, "system")}
    if messages[0]["role"] == "system" and messages[0]["content"] != system["content"]:
        raise BrokenLine("wrong type", "'system' and the chat's own system message differ")
    return messages if messages[0]["role"] == "system" else [system, *messages]


def _said(message: dict) -> list[str]:
    calls = [
        f"{call['name']}({json.dumps(call['arguments'], ensure_ascii=False)})" for call in calls_of(message)
    ]
    return calls if calls and not message["content"] else [message["content"], *calls]
