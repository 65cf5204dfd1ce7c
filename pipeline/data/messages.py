"""Messages of a chat, brought from the forms that rows have into the one that chat templates take.

| a row has | it becomes |
| --- | --- |
| ShareGPT's ``from`` and ``value`` | ``role`` and ``content`` |
| content as parts, ``[{"type": "text", "text": ...}]`` | one text |
| ``tool_calls`` and ``tools``, with ``{"type": "function", "function": ...}`` around or without | with it |
| arguments of a call as JSON text | an object |
"""

from typing import Any, Optional

from pipeline.data.checks import BrokenLine, encodable, from_text, shown, string

ROLES = ("system", "user", "assistant", "tool")
SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
}
"""Roles by ShareGPT's ``from``, which can also be ``function_call``: the assistant, with the call as JSON in
``value``."""


def read_messages(row: dict, key: str, opens: bool = True, answered: bool = True) -> list[dict]:
    """Checked messages of ``row[key]``, a list or its JSON text. Raises BrokenLine.

    With ``opens`` they begin the chat: somebody must speak before the assistant. With ``answered`` the
    assistant must speak, and every turn of it must be one to learn.
    """
    messages = from_text(row[key], f"'{key}'")
    if (
        not isinstance(messages, list)
        or not messages
        or not all(isinstance(message, dict) for message in messages)
    ):
        raise BrokenLine(
            "wrong type", f"'{key}' must be a list of objects with role and content, got {shown(messages)}"
        )
    messages = [_message(message, f"message {place} of '{key}'") for place, message in enumerate(messages, 1)]
    if opens and messages[0]["role"] == "assistant":
        raise BrokenLine(
            "missing field", f"'{key}' starts with the assistant: expected a message to answer before it"
        )
    for place, message in enumerate(messages if answered else (), 1):
        if message["role"] == "assistant" and (message.get("weight") == 0 or message.get("train") is False):
            raise BrokenLine(
                "not to be learnt",
                f"message {place} of '{key}' has weight 0 or train false, and every turn of the assistant "
                "here is trained on: end the chat before it, or put it into a 'prompt' that is a list of "
                "messages",
            )
    if answered and not any(message["role"] == "assistant" for message in messages):
        raise BrokenLine("empty answer", f"'{key}' has no message of the assistant")
    return messages


def read_tools(row: dict) -> Optional[list[dict]]:
    """Tools that a row offers to the assistant, a list or its JSON text; None without. Raises BrokenLine."""
    older = row.get("functions") if "messages" in row else None  # OpenAI's form before tools
    tools = from_text(row.get("tools") or older or None, "'tools'")  # '' is an empty cell
    if not tools:
        return None
    if not isinstance(tools, list):
        raise BrokenLine("wrong type", f"'tools' must be a list of objects, got {shown(tools)}")
    tools = [_tool(from_text(tool, f"tool {place}"), f"tool {place}") for place, tool in enumerate(tools, 1)]
    encodable(tools, "'tools'")
    return tools


def calls_of(message: dict) -> list[dict]:
    """Name and arguments of each tool call."""
    return [call["function"] for call in message.get("tool_calls", ())]


def _message(message: dict, what: str) -> dict:
    message = {field: value for field, value in message.items() if value is not None}
    if "from" in message and "value" in message and not message.keys() & {"role", "content"}:
        message = _of_speaker(message, what)
    if message.get("role") == "function":  # OpenAI's form before the role tool
        message["role"] = "tool"
    one_call = message.pop("function_call", None)  # OpenAI's form before tool_calls
    calls = from_text(message.pop("tool_calls", None) or None, f"'tool_calls' of {what}") or (
        [one_call] if one_call else []
    )
    if calls:
        if message.get("role") != "assistant":
            raise BrokenLine(
                "wrong type",
                f"{what} calls a tool, and its role is {shown(message.get('role'))}, not 'assistant'",
            )
        if not isinstance(calls, list):
            raise BrokenLine("wrong type", f"'tool_calls' of {what} must be a list, got {shown(calls)}")
        message = {"content": "", **message, "tool_calls": [_call(call, what) for call in calls]}
    if "role" not in message or "content" not in message:
        raise BrokenLine("missing field", f"{what} needs role and content, has {shown(sorted(message))}")
    if message["role"] not in ROLES:
        raise BrokenLine("wrong type", f"{what} has the role {shown(message['role'])}, not one of {ROLES}")
    if isinstance(message["content"], list):
        message["content"] = "".join(_text_of(part, what) for part in message["content"])
    string(message, "content", "answer" if message["role"] == "assistant" and not calls else None)
    encodable(message, what)
    return message


def _of_speaker(message: dict, what: str) -> dict:
    speaker, value = message["from"], message["value"]
    rest = {field: item for field, item in message.items() if field not in ("from", "value")}
    if speaker == "function_call":
        calls = from_text(value, f"the call in {what}")
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": calls if isinstance(calls, list) else [calls],
            **rest,
        }
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        known = ", ".join(SPEAKERS)
        raise BrokenLine(
            "wrong type", f"{what} is from {shown(speaker)}, and known are {known}, function_call"
        )
    return {"role": SPEAKERS[speaker], "content": value, **rest}


def _text_of(part: Any, what: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, dict) else part
        raise BrokenLine(
            "not text",
            f"{what} has a part {shown(kind)} in its content, and only {{'type': 'text', 'text': ...}} is "
            "read",
        )
    return part["text"]


def _call(call: Any, what: str) -> dict:
    function = call.get("function", call) if isinstance(call, dict) else call
    _check_name(function, f"a tool call of {what}")
    unread = function.keys() - {"name", "arguments", "id", "type", "index"}
    if "arguments" not in function and unread:
        raise BrokenLine(
            "missing field",
            f"a tool call of {what} needs name and arguments, has {shown(sorted(function, key=str))}",
        )
    arguments = from_text(function.get("arguments") or None, f"the arguments of a call in {what}") or {}
    if not isinstance(arguments, dict):
        raise BrokenLine(
            "wrong type",
            f"the arguments of a call in {what} must be an object or its JSON text, got {shown(arguments)}",
        )
    about = {field: value for field, value in call.items() if field in ("id", "index") and value is not None}
    return {**about, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tool(tool: Any, what: str) -> dict:
    function = tool.get("function", tool) if isinstance(tool, dict) else tool
    _check_name(function, what)
    return {"type": "function", "function": function}


def _check_name(function: Any, what: str) -> None:
    if (
        not isinstance(function, dict)
        or not isinstance(function.get("name"), str)
        or not function["name"].strip()
    ):
        raise BrokenLine("wrong type", f"{what} must be an object with a name, got {shown(function)}")
