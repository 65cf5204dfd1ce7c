"""Records to tokens, with an exact mask of the supervised ones: chats, prompts with completions, plain text.

Text that spells a special token stays text in all three (pipeline/data/markers.py).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Optional

from pipeline.config import DataConfig
from pipeline.data.checks import BrokenLine
from pipeline.data.markers import markers_of, special_tokens
from pipeline.data.messages import calls_of
from pipeline.data.record import Record
from pipeline.data.rendering import Chat, as_template_takes_it, check_tools
from pipeline.data.sample import IGNORED, Sample

GENERATION_TAG = re.compile(r"\{%-?\s*generation\b")  # templates that mark the assistant's text themselves


def tokenize_all(
    records: list[Record], tokenizer, data: DataConfig, setting: str = "data.pool"
) -> tuple[list[Sample], dict[str, int]]:
    """Tokenise all records, in order.

    Returns:
        The samples that have a supervised token, and counts, zeros left out: 'samples', 'truncated',
        'too long, dropped', 'no supervised token, dropped', 'spelling special tokens, kept as text', and
        with ``data.on_broken`` 'skip' the records that the template refuses, by reason.

    Raises:
        ValueError: no sample is left (the message has the counts and ``setting``), the tokenizer does not fit
            the records, or its template refuses one.
    """
    counts: Counter[str] = Counter()
    samples = list(tokenize_each(records, tokenizer, data, counts))
    return samples, summary(counts, len(records), data, setting)


def tokenize_each(
    records: Iterable[Record], tokenizer, data: DataConfig, counts: Counter
) -> Iterator[Sample]:
    """Yield the samples of ``tokenize_all`` one by one, and add every record to ``counts``."""
    for record in records:
        try:
            whole = _encode(record, tokenizer, data.loss_on)
        except BrokenLine as broken:
            if data.on_broken == "error":
                raise broken.at(record.origin) from broken
            counts[broken.reason] += 1
            continue
        counts["spelling special tokens, kept as text"] += any(
            map(special_tokens(tokenizer).search, record.parts())
        )
        sample = _fit(whole, data.max_tokens, data.on_long)
        if sample is None:
            counts["too long, dropped"] += 1
        elif not sample.num_supervised:
            counts["no supervised token, dropped"] += 1
        else:
            counts["samples"] += 1
            counts["truncated"] += len(sample.input_ids) < len(whole.input_ids)
            yield sample


def summary(counts: Counter, num_records: int, data: DataConfig, setting: str) -> dict[str, int]:
    """The counts of ``tokenize_each`` without zeros. Raises ValueError where no sample is left."""
    found = {"samples": counts["samples"], **+counts}
    if not found["samples"]:
        raise ValueError(
            f"{setting}: none of the {num_records} samples is left after tokenising with data.max_tokens = "
            f"{data.max_tokens} and data.on_long = {data.on_long} ({found}): raise data.max_tokens or look "
            "at the data"
        )
    return found


def tokenize(record: Record, tokenizer, max_tokens: int, on_long: str, loss_on: str) -> Optional[Sample]:
    """One record as tokens; None if they are more than ``max_tokens`` and ``on_long`` is 'drop'.

    With ``loss_on`` 'assistant' the answer is supervised: in a chat the assistant's turns with their end
    tokens, but not what the template adds behind these; the completion of a prompt, with its end token; all
    of a text. With 'all' every token is. Truncation may leave no supervised token.

    Raises:
        ValueError: the tokenizer has no chat template, end token or offsets, and needs them.
        BrokenLine: its template refuses the chat, or renders earlier turns differently once later ones
            follow, so that the assistant's tokens cannot be told exactly.
    """
    return _fit(_encode(record, tokenizer, loss_on), max_tokens, on_long)


def _fit(sample: Sample, max_tokens: int, on_long: str) -> Optional[Sample]:
    if len(sample.input_ids) <= max_tokens:
        return sample
    if on_long == "drop":
        return None
    return replace(sample, input_ids=sample.input_ids[:max_tokens], labels=sample.labels[:max_tokens])


def _encode(record: Record, tokenizer, loss_on: str) -> Sample:
    """The sample of a record, however long it is."""
    encode = _encode_plain if record.messages is None else _encode_chat
    ids, supervised = encode(record, tokenizer, loss_on)
    labels = [token if keep else IGNORED for token, keep in zip(ids, supervised)]
    return Sample(input_ids=ids, labels=labels, id=record.id, source=record.source, damage=record.damage)


def _encode_plain(record: Record, tokenizer, loss_on: str) -> tuple[list[int], list[bool]]:
    """Tokens of prompt and completion, or of text, without a template, and whether each is supervised."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{record.origin}: the tokenizer has no end token (eos_token) to put behind a completion or text"
        )

    def encode_slowly(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    encode = markers_of(tokenizer, "").encode_plain if tokenizer.is_fast else encode_slowly
    # the begin token, where the tokenizer sets one
    context = [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]
    if record.text is None:
        # Tokenised apart from the completion, as when the model is asked: no token reaches across the border.
        context += encode(record.prompt or "")
    answer = [*encode(record.completion or record.text or ""), tokenizer.eos_token_id]
    return context + answer, [loss_on == "all"] * len(context) + [True] * len(answer)


def _encode_chat(record: Record, tokenizer, loss_on: str) -> tuple[list[int], list[bool]]:
    """Tokens of the rendered chat, and whether each is supervised."""
    if not tokenizer.chat_template:
        raise ValueError(
            f"{record.origin}: the tokenizer has no chat template, which messages and Alpaca fields need: "
            "take the tokenizer of an instruction-tuned model, or 'prompt' and 'completion' fields"
        )
    if not tokenizer.is_fast:
        raise ValueError(
            f"{record.origin}: {type(tokenizer).__name__} gives no character offsets: install its fast "
            "version"
        )
    template = tokenizer.get_chat_template(tools=record.tools)  # some have a second one, for tools
    markers = markers_of(tokenizer, template)
    chat, text = as_template_takes_it(
        Chat(markers.hide(record), markers.hide_tools(record), template, tokenizer)
    )
    is_marked = bool(GENERATION_TAG.search(template)) and not record.num_context and loss_on != "all"
    spans = chat.text_and_spans()[1] if is_marked else None
    check_tools(chat, text, spans)
    ids, offsets = markers.encode(text)
    if loss_on == "all":
        return ids, [True] * len(ids)
    if spans is None:
        answers = [
            turn
            for turn in range(record.num_context, len(chat.messages))
            if chat.messages[turn]["role"] == "assistant"
        ]
        spans = [_turn_span(chat, turn, text, special_tokens(tokenizer)) for turn in answers]

    special = {place for place, token in tokenizer.added_tokens_decoder.items() if token.special}
    supervised = [False] * len(ids)
    for start, stop in spans:
        # A token across the start (two line breaks in one) counts: it holds the answer's first character.
        inside = [
            i for i, (left, right) in enumerate(offsets) if left < right and left < stop and right > start
        ]
        # Templates often put a line break behind the end token; the model is asked to stop before it.
        ends = (
            []
            if is_marked
            else [i for i in inside if ids[i] in special and not text[offsets[i][1] : stop].strip()]
        )
        for i in range(inside[0], (ends or inside)[-1] + 1) if inside else ():
            supervised[i] = True
    return ids, supervised


def _turn_span(chat: Chat, turn: int, text: str, special: re.Pattern) -> tuple[int, int]:
    """Characters [start, stop) of the rendered chat that the model is to write when asked for this turn."""
    before = chat.text(turn, add_generation_prompt=True)
    after = chat.text(turn + 1) if turn + 1 < len(chat.messages) else text
    if text.startswith(before):
        if text.startswith(after) and len(before) < len(after):
            return len(before), len(after)
        # Templates of reasoning models render the last answer differently: then its own text is the anchor.
        if stop := _end_of_answer(chat.messages[turn], text, after, len(before), special):
            return len(before), stop
    raise BrokenLine(
        "answer not told from the rest",
        f"the chat template renders message {turn + 1} of {len(chat.messages)} differently when it is asked "
        "for and when it stands in the chat, so its tokens cannot be told exactly: take a template with "
        "{% generation %} marks, end chats after the first answer, or set data.loss_on = all",
    )


def _end_of_answer(message: dict, text: str, after: str, start: int, special: re.Pattern) -> Optional[int]:
    """Place behind the end token of the answer that begins at ``start``; None if something else begins there.

    How a template spells tool calls is not known: a turn with calls is the longest end of ``after``, the chat
    rendered up to this turn, that stands at ``start``, as long as none of the turn's words is cut off.
    """
    if "tool_calls" not in message:
        answer = message["content"].strip()
        end_token = special.match(text, start + len(answer))
        return end_token.end() if end_token and text.startswith(answer, start) else None
    said = after[start:]
    words = [message["content"].strip(), *(call["name"] for call in calls_of(message))]
    for place in range(len(said)):
        rest = said[place:]
        if any(word and rest.count(word) < said.count(word) for word in words):
            return None
        if text.startswith(rest, start):
            return start + len(rest)
    return None
