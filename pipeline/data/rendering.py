"""A chat as the tokenizer's template renders it, and checks that no content, tool or call is left out."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Optional

from transformers.utils.chat_template_utils import render_jinja_template

from pipeline.data.checks import BrokenLine

DAY = date(2024, 7, 26)
"""The date for templates that write one, on every day: a run that goes on tomorrow must train on the same
tokens. Llama 3's template takes this day where the renderer has no clock."""
# A macro, since a template is given values and no functions; +%} keeps a line break behind it.
CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f".replace('%{letter}', '{DAY.strftime(f'%{letter}')}')" for letter in "YymdeBbAaHIMSpj")
    + " }}{%- endmacro +%}"
)
TAGS = range(0xF0000, 0xFFFFE)  # private use, and not the plane that stands for special tokens


@dataclass(frozen=True)
class Chat:
    """Messages, the tools that the assistant may call, and the template with its tokenizer."""

    messages: list[dict]
    tools: Optional[list[dict]]
    template: str
    tokenizer: Any
    has_text_arguments: bool = False
    """Whether the template is given arguments of calls as JSON text."""
    has_parts: bool = False
    """Whether the template is given content as [{'type': 'text', 'text': ...}]."""

    def text(self, num_messages: Optional[int] = None, **options) -> str:
        """The first ``num_messages``, or all, rendered. Raises BrokenLine where the template refuses them."""
        return self._rendered(self.messages[:num_messages], **options)[0]

    def text_and_spans(self) -> tuple[str, list[tuple[int, int]]]:
        """All messages rendered, and the characters [start, stop) between the template's generation tags."""
        return self._rendered(self.messages, return_assistant_tokens_mask=True)

    def _rendered(self, messages: list[dict], **options) -> tuple[str, list[tuple[int, int]]]:
        known = self.tokenizer.special_tokens_map
        if self.has_text_arguments:
            messages = [_with_text_arguments(message) for message in messages]
        if self.has_parts:
            messages = [
                {**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages
            ]
        template = CLOCK + self.template if "strftime_now" in self.template else self.template
        try:
            texts, spans = render_jinja_template(
                [messages], self.tools, chat_template=template, **known, **options
            )
        except Exception as error:  # a template is a program, and may raise anything
            raise BrokenLine("refused by the chat template", f"{type(error).__name__}: {error}") from error
        return texts[0], spans[0] if spans else []


def as_template_takes_it(chat: Chat) -> tuple[Chat, str]:
    """The chat in the first form that the template renders whole, and the rendered text.

    The forms are: content as text and arguments of calls as objects; arguments as text, for templates of
    DeepSeek's kind; content in parts, for templates of models that see, which leave text out. Raises
    BrokenLine, with the reason against the first form, where no form comes out whole.
    """
    forms = [chat, replace(chat, has_parts=True)]
    if any("tool_calls" in message for message in chat.messages):
        forms.insert(1, replace(chat, has_text_arguments=True))
    reasons = []
    for form in forms:
        try:
            return form, _whole_text(form)
        except BrokenLine as broken:
            reasons.append(broken)
    raise reasons[0]


def _whole_text(chat: Chat) -> str:
    """The rendered chat. Raises BrokenLine where the content of a message is left out."""
    text = chat.text()
    if chat.has_parts and ("'type': 'text'" in text or '"type": "text"' in text):
        raise BrokenLine("content left out", "the chat template writes parts as they are")
    for place, message in enumerate(chat.messages, 1):
        content = message["content"].strip()
        if not content or content in text:
            continue
        # It may come out changed, in quotes or without its thoughts: then another content gives another text.
        others = [
            *chat.messages[: place - 1],
            {**message, "content": message["content"] + chr(TAGS[0])},
            *chat.messages[place:],
        ]
        if replace(chat, messages=others).text() == text:
            raise BrokenLine(
                "content left out",
                f"the chat template leaves out what message {place} says, which is a message of the "
                f"{message['role']}: say it elsewhere, or take a template that has it",
            )
    return text


def check_tools(chat: Chat, text: str, spans: Optional[list[tuple[int, int]]]) -> None:
    """Raise BrokenLine where the template leaves out the name of a tool, or anything of a call.

    The chat is rendered once more with a tag, a character of its own, behind the name of each tool and behind
    the name, each key and each string of the arguments of each call. All tags must come out, and with
    ``spans`` those of calls must stand in one of them.

    Args:
        text: the chat as rendered.
        spans: the characters between generation tags; None where the tags do not count.
    """
    if not chat.tools and not any("tool_calls" in message for message in chat.messages):
        return
    unused = (chr(place) for place in TAGS if chr(place) not in text)
    of_tools: dict[str, int] = {}
    of_calls: dict[str, int] = {}

    def tagged_by(places: dict[str, int], place: int) -> Callable[[str], str]:
        def tagged(word: str) -> str:
            tag = next(unused, None)
            if tag is None:
                raise BrokenLine("tool call", f"more than {len(TAGS)} strings in tools and their calls")
            places[tag] = place
            return word + tag

        return tagged

    tools = [
        {
            **tool,
            "function": {**tool["function"], "name": tagged_by(of_tools, place)(tool["function"]["name"])},
        }
        for place, tool in enumerate(chat.tools or (), 1)
    ]
    messages = [
        _with_tags(message, tagged_by(of_calls, place)) for place, message in enumerate(chat.messages, 1)
    ]
    tagged = replace(chat, messages=messages, tools=tools or None)
    found, found_spans = tagged.text_and_spans() if spans is not None else (tagged.text(), None)
    for tag, place in of_tools.items():
        if tag not in found:
            raise BrokenLine(
                "tool call",
                f"the chat template leaves out tool {place} of 'tools': say in a system message which tools "
                "there are, or take a template that does",
            )
    for tag, place in of_calls.items():
        where = found.find(tag)
        if where < 0:
            raise BrokenLine(
                "tool call",
                f"message {place} calls a tool in a field of its own, and the chat template leaves out its "
                "name or arguments: write the call into its content, as the model is to write it",
            )
        if found_spans is not None and not any(start <= where < stop for start, stop in found_spans):
            raise BrokenLine(
                "tool call",
                f"message {place} calls a tool outside of the chat template's {{% generation %}} marks, so "
                "that the call would not be learnt: move the marks, or write the call into the content",
            )


def _with_text_arguments(message: dict) -> dict:
    def with_text(function: dict) -> dict:
        return {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}

    return _with_functions(message, with_text)


def _with_tags(message: dict, tagged: Callable[[str], str]) -> dict:
    def strings(value: Any) -> Any:
        if isinstance(value, dict):
            return {tagged(key): strings(item) for key, item in value.items()}
        if isinstance(value, list):
            return [strings(item) for item in value]
        return tagged(value) if isinstance(value, str) else value

    return _with_functions(message, lambda function: {key: strings(value) for key, value in function.items()})


def _with_functions(message: dict, change: Callable[[dict], dict]) -> dict:
    """The message with every call's name and arguments changed."""
    if "tool_calls" not in message:
        return message
    return {
        **message,
        "tool_calls": [{**call, "function": change(call["function"])} for call in message["tool_calls"]],
    }
