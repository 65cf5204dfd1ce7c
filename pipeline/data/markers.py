"""Chats to tokens, where only the template writes special tokens: a text that spells one stays text.

    messages --hide--> messages that spell no special token
             --template--> a text with special tokens of the template alone
             --encode--> ids, offsets

Hiding and marking keep the number of characters, so that places in the rendered chat stay what they are.
"""

import json
import re
from functools import lru_cache
from typing import Any, Optional

from tokenizers import AddedToken, Tokenizer

from pipeline.data.checks import BrokenLine
from pipeline.data.record import Record

# Characters at the end of Unicode's last private plane stand for hidden ones and, from FIRST_MARK on, for the
# template's tokens while a chat is encoded.
FIRST_HIDDEN, FIRST_MARK, LAST = 0x108000, 0x109000, 0x10FFFD
RESERVED = re.compile(f"[{chr(FIRST_HIDDEN)}-\U0010ffff]")


class Markers:
    """The special tokens of a tokenizer and its template, kept apart from what messages say.

    Tokens that the template writes around turns are special here, even if they were added as ordinary ones.
    Other added tokens that the template's source spells (``<think>``, ``<tool_call>``) stay text in a user's
    and a tool's words, in tools and in the arguments of calls. In an assistant's words they are tokens: it is
    to learn them.
    """

    def __init__(self, tokenizer, template: str):
        added = sorted(tokenizer.added_tokens_decoder.items())
        special = {token.content for _, token in added if token.special} | set(tokenizer.all_special_tokens)
        spelt = {
            token.content for _, token in added if token.content in template and not token.content.isspace()
        }
        special |= {token for token in spelt if token in _plain_turns(tokenizer, template)}
        self.special, self.control = _any_of(special), _any_of(special | spelt)
        alphabet = sorted(set("".join(special | spelt)))
        assert len(alphabet) < FIRST_MARK - FIRST_HIDDEN and len(added) < LAST - FIRST_MARK
        self.hidden = {ord(character): chr(FIRST_HIDDEN + i) for i, character in enumerate(alphabet)}
        self.shown = {ord(stand_in): chr(character) for character, stand_in in self.hidden.items()}
        tokens = [token for _, token in added if token.content in special | spelt]
        self.marks = {
            token.content: chr(FIRST_MARK + i) * len(token.content) for i, token in enumerate(tokens)
        }
        # A tokenizer of its own, which reads marks as tokens and takes every special or spelt token for text.
        self.backend = Tokenizer.from_str(
            _with_special(tokenizer.backend_tokenizer.to_str(), special | spelt)
        )
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True
        self.backend.add_tokens(
            [
                AddedToken(
                    self.marks[token.content],
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=False,
                    special=False,
                )
                for token in tokens
            ]
        )
        self.not_from_text = {place: token.content for place, token in added if token.content in self.marks}
        self.not_from_text.pop(tokenizer.unk_token_id, None)  # every unknown character becomes it
        self.id_of_mark = {
            self.backend.token_to_id(self.marks[token.content]): place
            for place, token in added
            if token.content in self.marks
        }

    def hide(self, record: Record) -> list[dict]:
        """The messages, special tokens in them hidden. Raises BrokenLine for a reserved character."""
        assert record.messages is not None, record.origin
        return [
            {
                key: value
                if key == "role"
                else self._hide(value, "tool" if key == "tool_calls" else message["role"], f"message {place}")
                for key, value in message.items()
            }
            for place, message in enumerate(record.messages, 1)
        ]

    def hide_tools(self, record: Record) -> Optional[list[dict]]:
        """The tools that the assistant may call, hidden in the same way; None without any."""
        return self._hide(record.tools, "tool", "'tools'")

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and character places of a chat that was rendered from hidden messages.

        Raises BrokenLine where the tokenizer makes a special token of plain text.
        """
        marked = self.control.sub(lambda found: self.marks[found[0]], text)
        encoding = self.backend.encode(marked.translate(self.shown), add_special_tokens=False)
        for token in encoding.ids:
            if token in self.not_from_text:
                raise BrokenLine(
                    "special token in text",
                    f"the tokenizer makes {self.not_from_text[token]} of plain text: replace it",
                )
        return [self.id_of_mark.get(token, token) for token in encoding.ids], encoding.offsets

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special. Raises BrokenLine as ``hide`` and ``encode`` do."""
        return self.encode(self._hide(text, "user", "the text"))[0]

    def _hide(self, value: Any, role: str, place: str) -> Any:
        if isinstance(value, dict):
            return {
                self._hide(key, role, place): self._hide(item, role, place) for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._hide(item, role, place) for item in value]
        if not isinstance(value, str):
            return value
        if found := RESERVED.search(value):
            raise BrokenLine(
                "reserved character",
                f"{place} has U+{ord(found[0]):X} at character {found.start() + 1}, and private-use "
                f"characters from U+{FIRST_HIDDEN:X} on stand for special tokens here: replace it",
            )
        tokens = self.control if role in ("user", "tool") else self.special
        return tokens.sub(lambda found: found[0].translate(self.hidden), value)


@lru_cache(maxsize=4)
def markers_of(tokenizer, template: str) -> Markers:
    return Markers(tokenizer, template)


@lru_cache(maxsize=4)
def special_tokens(tokenizer) -> re.Pattern:
    """Pattern of a special token's spelling."""
    return _any_of(
        set(tokenizer.all_special_tokens)
        | {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    )


def _any_of(tokens: set[str]) -> re.Pattern:
    """Pattern of any of ``tokens``, the longest where one begins with another."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _plain_turns(tokenizer, template: str) -> str:
    """A short chat as ``template`` renders it; '' where it refuses.

    The chat ends with a user's turn: templates may write thoughts into an assistant's last turn.
    """
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    try:
        return (
            tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False) if template else ""
        )
    except Exception:  # a template that refuses this refuses it in the data too, with its place
        return ""


def _with_special(description: str, tokens: set[str]) -> str:
    """A tokenizer's description, in JSON, with ``tokens`` as special ones, whatever they were."""
    described = json.loads(description)
    for token in described["added_tokens"]:
        token["special"] = token["special"] or token["content"] in tokens
    # Its vocabulary holds them as pieces too: text must not be cut into these.
    if described["model"]["type"] == "Unigram":
        described["model"]["vocab"] = [
            [piece, -1e6 if piece in tokens else score] for piece, score in described["model"]["vocab"]
        ]
    return json.dumps(described)
