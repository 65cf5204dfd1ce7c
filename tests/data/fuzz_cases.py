"""Random, broken and hostile input to everything that reads a user's files, and what may come of it.

An input is accepted, or refused with a sentence that names the file (and the line, where there are lines) or
the setting; anything else is a crash. ``python -m benchmarks.fuzz_input`` tries them by the ten thousand.
"""

import contextlib
import csv
import io
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline import config as configuration
from pipeline.comparison import grid
from pipeline.config import Config, DataConfig
from pipeline.data.chat import tokenize_all
from pipeline.data.checks import BrokenLine
from pipeline.data.record import Record, parse
from pipeline.data.sources import read
from pipeline.settings import flatten

TURN = "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = "{% for message in messages %}" + TURN + "{% endfor %}" + ASK
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    + TURN
    + "{% endif %}{% endfor %}"
    + ASK
)
CALLING = (
    "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% for call in message.tool_calls or [] %}"
    "{{ '<call>' + call.function | tojson + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}" + ASK
)
CONTROL = ("<|im_start|>", "<|im_end|>", "<|pad|>", "<s>", "</s>", "<unk>")

# ---------------------------------------------------------------- tokenizers


@lru_cache(maxsize=1)
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """The ways in which tokenizers treat text, as small as they come."""
    return {
        "bytes": _byte_level(CHATML),
        "generation tags": _byte_level(MARKED),
        "tools": _byte_level(CALLING),
        "plain turn markers": _byte_level(CHATML, start_is_special=False),
        "strips spaces": _byte_level(CHATML, rstrip=True),
        "metaspace": _metaspace(),
        "lower case": _lower_case(),
    }


def _byte_level(
    template: str, start_is_special: bool = True, rstrip: bool = False
) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "ĊĊ", "<|", "im"])}
    backend = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ"), ("<", "|"), ("i", "m")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(
        [
            AddedToken("<|im_start|>", special=start_is_special, normalized=False, rstrip=rstrip),
            "<think>",
            "<call>",
            "</call>",
        ]
    )
    return _wrapped(backend, template, eos_token="<|im_end|>", pad_token="<|pad|>")


def _metaspace() -> PreTrainedTokenizerFast:
    pieces = [
        ("<unk>", 0.0),
        ("<s>", 0.0),
        ("</s>", 0.0),
        ("▁", -2.0),
        *((chr(c), -3.0) for c in range(33, 127)),
    ]
    backend = Tokenizer(
        models.Unigram([*pieces, *((f"<0x{b:02X}>", -9.0) for b in range(256))], 0, byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    template = (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '[' + message['role'] + ']' + message['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    )
    return _wrapped(backend, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _lower_case() -> PreTrainedTokenizerFast:
    words = {
        token: i
        for i, token in enumerate(
            ["<unk>", *(chr(c) for c in range(33, 127)), *(f"##{chr(c)}" for c in range(33, 127))]
        )
    }
    backend = Tokenizer(models.WordPiece(words, unk_token="<unk>"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    return _wrapped(
        backend, CHATML, eos_token="<|im_end|>", unk_token="<unk>", additional_special_tokens=["<|im_start|>"]
    )


def _wrapped(backend: Tokenizer, template: str, **tokens) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **tokens)
    wrapped.chat_template = template
    return wrapped


# ---------------------------------------------------------------- generators

PIECES = (
    *CONTROL,
    "<call>",
    "</call>",
    "<think>",
    "<|im_",
    "end|>",
    "<|IM_END|>",
    "\n",
    "\r\n",
    "\0",
    "\ufeff",
    "\u2028",
    "\U000f0000",
    "\U00108001",
    "\U00109000" * 12,
    "{{ 7 * 7 }}",
    "{% endfor %}",
    "e\u0301",
    "\u202e",
    "\U0001f600",
    "'",
    '"',
    "\\",
)
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6), st.just(" a b ")), max_size=6).map(
    "".join
)
WITH_SURROGATES = st.one_of(
    TEXTS, st.text(st.characters(), max_size=6), st.sampled_from(["\ud800", "a\udfff"])
)
ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WITH_SURROGATES)
KEYS = st.one_of(
    st.sampled_from(
        [
            "messages",
            "prompt",
            "completion",
            "instruction",
            "output",
            "input",
            "text",
            "id",
            "source",
            "damage",
            "corruption",
            "role",
            "content",
            "name",
            "tool_calls",
            "tools",
            "conversations",
            "from",
            "value",
            "chosen",
            "rejected",
            "label",
            "history",
            "system",
        ]
    ),
    WITH_SURROGATES,
)
JSON = st.recursive(
    SCALARS, lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(KEYS, v, max_size=4)), max_leaves=8
)
CHATS = st.lists(
    st.fixed_dictionaries({"role": ROLES, "content": TEXTS}, optional={"name": TEXTS}), min_size=1, max_size=5
)
GOOD_CHATS = st.lists(st.tuples(TEXTS, TEXTS.filter(str.strip)), min_size=1, max_size=3).map(
    lambda turns: [{"role": r, "content": c} for pair in turns for r, c in zip(("user", "assistant"), pair)]
)
SHAREGPT = GOOD_CHATS.map(
    lambda chat: [{"from": "human" if m["role"] == "user" else "gpt", "value": m["content"]} for m in chat]
)
TOOL_CALLS = st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXTS, "tool_calls": JSON})
GOOD_ROWS = st.one_of(
    st.fixed_dictionaries({"messages": GOOD_CHATS}, optional={"id": st.integers(), "source": TEXTS}),
    st.fixed_dictionaries({"prompt": TEXTS.filter(str.strip), "completion": TEXTS.filter(str.strip)}),
    st.fixed_dictionaries(
        {"instruction": TEXTS.filter(str.strip), "output": TEXTS.filter(str.strip), "input": TEXTS}
    ),
    st.fixed_dictionaries({"text": TEXTS.filter(str.strip)}),
    st.fixed_dictionaries({"conversations": SHAREGPT}, optional={"system": TEXTS}),
)
ARGUMENTS = st.dictionaries(
    TEXTS,
    st.recursive(
        st.one_of(TEXTS, st.integers(), st.booleans(), st.none()),
        lambda v: st.one_of(st.lists(v, max_size=2), st.dictionaries(TEXTS, v, max_size=2)),
        max_leaves=4,
    ),
    max_size=3,
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "name": TEXTS.filter(str.strip),
            "arguments": st.one_of(ARGUMENTS, ARGUMENTS.map(json.dumps)),
        }
    ),
    min_size=1,
    max_size=2,
)
TOOL_CHATS = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.tuples(TEXTS, st.one_of(st.none(), TEXTS), CALLS, TEXTS, TEXTS.filter(str.strip)),
            min_size=1,
            max_size=2,
        ).map(
            lambda turns: [
                message
                for question, said, calls, result, answer in turns
                for message in (
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": said, "tool_calls": calls},
                    {"role": "tool", "content": result},
                    {"role": "assistant", "content": answer},
                )
            ]
        ),
        "tools": st.lists(
            st.fixed_dictionaries({"name": TEXTS.filter(str.strip)}, optional={"parameters": ARGUMENTS}),
            max_size=2,
        ),
    }
)
ROWS = st.one_of(
    GOOD_ROWS,
    GOOD_ROWS,
    JSON,
    st.dictionaries(KEYS, JSON, max_size=5),
    st.fixed_dictionaries(
        {"messages": st.lists(st.one_of(CHATS.map(lambda c: c[0]), TOOL_CALLS, JSON), max_size=4)}
    ),
)
ODD_LINES = (
    b"[" * 5000,
    b'{"a":' * 3000,
    b"[" * 900 + b"]" * 900,
    b'{"text": ' + b"[" * 950 + b"]" * 950 + b"}",
    b"9" * 5000,
    b'{"text": NaN}',
    b'{"id": Infinity, "text": "a"}',
    b'{"text": "a", "text": "b"}',
    b'{"text": "\\ud800"}',
    b'{"text": "\\u0000"}',
    b"\xef\xbb\xbf",
    b"\0\0",
    b'{"text": "\xff"}',
    '{"text": "a"}'.encode("utf-16"),
    b'{"text": "' + b"x" * 200_000 + b'"}',
    b'{"text": "a"} {"text": "b"}',
    b'{"messages": [{"role": "assistant", "content": null, '
    b'"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]}',
    b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, '
    b'{"role": "assistant", "content": "b"}]}',
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "x": '
    + b"[" * 60
    + b"]" * 60
    + b"}]}",
)


def _damaged(content: bytes, places: list[tuple[int, int]]) -> bytes:
    """``content`` with some bytes replaced, or cut off where the new byte would be 0."""
    changed = bytearray(content)
    for place, byte in places:
        if changed and byte:
            changed[place % len(changed)] = byte
        elif changed:
            del changed[place % len(changed) :]
    return bytes(changed)


def _half(one: st.SearchStrategy, other: st.SearchStrategy) -> st.SearchStrategy:
    """Either as often; st.one_of weighs by the alternatives within."""
    return st.booleans().flatmap(lambda first: one if first else other)


DAMAGE = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3)
GOOD_LINES = ROWS.map(lambda row: json.dumps(row).encode())
LINES = st.one_of(
    GOOD_LINES,
    GOOD_LINES,
    st.builds(_damaged, GOOD_LINES, DAMAGE),
    st.binary(max_size=30),
    st.sampled_from(ODD_LINES),
    GOOD_ROWS.map(lambda row: json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")),
)
JSONL = st.builds(
    lambda lines, end, bom: bom + end.join(lines),
    st.lists(LINES, min_size=1, max_size=4),
    st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    st.sampled_from([b"", b"", b"\xef\xbb\xbf"]),
)
GOOD_JSON = st.lists(GOOD_ROWS, min_size=1, max_size=3).map(lambda rows: json.dumps(rows, indent=1).encode())
JSON_FILES = _half(
    GOOD_JSON,
    st.one_of(
        st.lists(ROWS, max_size=3).map(lambda rows: json.dumps(rows).encode()),
        LINES,
        st.builds(_damaged, GOOD_JSON, DAMAGE),
    ),
)


def _csv(rows: list[list[str]]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue().encode("utf-8", "replace")


GOOD_CSV = st.lists(st.tuples(TEXTS.filter(str.strip), TEXTS.filter(str.strip)), min_size=1, max_size=4).map(
    lambda rows: _csv([["prompt", "completion"], *map(list, rows)])
)
CSV = _half(
    GOOD_CSV,
    st.one_of(
        st.lists(st.lists(st.one_of(KEYS, TEXTS, JSON.map(json.dumps)), max_size=3), max_size=4).map(_csv),
        GOOD_CHATS.map(lambda chat: _csv([["messages"], [json.dumps(chat)]])),
        st.builds(_damaged, GOOD_CSV, DAMAGE),
        st.binary(max_size=30),
        st.sampled_from(
            [
                b"",
                b"text",
                b'text\n"',
                b"text\n\xff",
                b"text,text\na,b",
                b"text\n" + b"x" * 200_000,
                b'a"b\n"a"b',
                b"text\n\0",
            ]
        ),
    ),
)
COLUMN_TYPES = (
    pyarrow.string(),
    pyarrow.binary(),
    pyarrow.int64(),
    pyarrow.float64(),
    pyarrow.bool_(),
    pyarrow.null(),
    pyarrow.timestamp("us"),
    pyarrow.list_(pyarrow.string()),
    pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]),
    pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])),
    pyarrow.date32(),
    "no UTF-8",
)
PARQUET = st.tuples(
    st.one_of(
        st.lists(st.tuples(KEYS, st.sampled_from(COLUMN_TYPES)), min_size=1, max_size=4),
        st.tuples(
            st.tuples(st.sampled_from(["text", "messages"]), st.sampled_from(COLUMN_TYPES)),
            st.tuples(KEYS, st.sampled_from(COLUMN_TYPES)),
        ),
        st.just([("text", pyarrow.string())]),
    ),
    st.integers(1, 4),
    st.integers(0, 2**32),
    st.one_of(st.just([]), st.just([]), DAMAGE),
)
JINJA_PARTS = st.lists(
    st.sampled_from(
        [
            "{% for message in messages %}",
            "{% endfor %}",
            "{{ message['content'] }}",
            "{{ message.content + 1 }}",
            "{{ 1 // 0 }}",
            "{{",
            "%}",
            "{% generation %}",
            "{% endgeneration %}",
            "{{ messages.__class__.__mro__ }}",
            "{% include '/etc/passwd' %}",
            "{{ raise_exception('no') }}",
            "{{ cycler.__init__.__globals__.os.popen('id') }}",
            "{% import 'os' as os %}",
            "{{ undefined.field }}",
            "{{ messages[99].content }}",
            "{% macro f() %}{{ f() }}{% endmacro %}",
            "{{ f() }}",
            "{{ messages | tojson }}",
            "<|im_start|>",
            "<|im_end|>",
            "{{ messages.append(1) }}",
            "{{ range(999999999) }}",
            "{{ ''.format.__self__ }}",
            "{{ eos_token }}",
            "{# ",
            "\0",
            "{{ messages | map(attribute='__class__') | list }}",
        ]
    ),
    min_size=1,
    max_size=6,
).map("".join)
HARMLESS = st.lists(
    st.sampled_from(["{{ eos_token }}", "{{ messages | tojson }}", "<|im_end|>", "{# a #}", "x"]), max_size=3
).map("".join)
JINJA = _half(
    JINJA_PARTS,
    st.builds(lambda before, after: before + CHATML + after, HARMLESS, _half(HARMLESS, JINJA_PARTS)),
)
SETTINGS = tuple(dict(flatten(configuration.plain(Config()))).items())
SETTING_VALUES = st.one_of(
    JSON,
    st.sampled_from(
        [0, -1, 10**400, float("nan"), float("inf"), True, "", "auto", [], {}, "a\0b", "x" * 5000]
    ),
)
YAML_PARTS = (
    "&a [*a]",
    "!!python/object/apply:os.system ['true']",
    "!!binary aGVsbG8=",
    "*nowhere",
    "[" * 1200,
    "{a: 1, a: 2}",
    "\t- x",
    "'",
    "2001-99-99",
    "9" * 5000,
    "{class_path: antigravity.Bomb}",
    "antigravity.Bomb",
    "<<: 5",
    "? [1, 2] : 3",
    "!!set {a}",
    "1:30",
    "\x07",
    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    "[&x "
    + str([1] * 9)
    + ", "
    + ", ".join(f"&{b} {[f'*{a}'] * 9}".replace("'", "") for a, b in ("xy", "yz", "zw", "wv", "vu"))
    + "]",
)


def _yaml(value: Any) -> str:
    return yaml.dump(value, Dumper=yaml.SafeDumper, allow_unicode=False)


def _nested(changes: list[tuple[str, Any]]) -> dict:
    found: dict = {}
    for name, value in changes:
        section, _, key = name.rpartition(".")
        if section:
            found.setdefault(section, {})
            found[section][key] = value
        else:
            found[key] = value
    return found


CHANGES = st.lists(
    st.tuples(
        st.sampled_from([*(n for n, _ in SETTINGS), "model", "data", "training.nothing", "x.y"]),
        SETTING_VALUES,
    ),
    max_size=3,
)
GOOD_CHANGES = st.lists(
    st.sampled_from([pair for pair in SETTINGS if pair[0] not in ("resume", "deepspeed")]), max_size=4
)
GOOD_RECIPES = GOOD_CHANGES.map(
    lambda pairs: _yaml(_nested([p for p in pairs if "." in p[0] and p[0][:5] != "data."])).encode()
)
RECIPES = _half(
    GOOD_RECIPES,
    st.one_of(
        CHANGES.map(lambda c: _yaml(_nested([x for x in c if "." in x[0]])).encode()),
        st.builds(
            lambda name, part: f"{name}: {part}\n".encode(),
            st.sampled_from([n for n, _ in SETTINGS] + ["model", "data"]),
            st.sampled_from(YAML_PARTS),
        ),
        st.builds(
            lambda s, part: f"{s}:\n  x: {part}\n".encode(),
            st.sampled_from(["model", "run"]),
            st.sampled_from(YAML_PARTS),
        ),
        st.builds(_damaged, CHANGES.map(lambda c: _yaml(dict(c)).encode()), DAMAGE),
        st.binary(max_size=30),
    ),
)
GRID: dict[str, Any] = {
    "variants": ["random"],
    "seeds": [0],
    "folder": "runs/x",
    "targets": {"a": {"target": ["demo:target"], "test": ["demo:test"]}},
    "base": {"data": {"pool": ["demo:pool"]}},
}
GOOD_GRIDS = GOOD_CHANGES.map(
    lambda pairs: _yaml(
        {**GRID, "base": {**GRID["base"], "training": _nested(pairs).get("training", {})}}
    ).encode()
)
GRIDS = _half(
    GOOD_GRIDS,
    st.one_of(
        st.fixed_dictionaries(
            {
                "variants": st.one_of(st.just(["random"]), JSON),
                "seeds": st.one_of(st.just([0]), JSON),
                "folder": st.one_of(st.just("runs/x"), TEXTS),
                "targets": st.one_of(
                    st.just({"a": {"target": ["demo:target"], "test": ["demo:test"]}}), JSON
                ),
                "base": st.one_of(st.just({"data": {"pool": ["demo:pool"]}}), JSON, CHANGES.map(dict)),
            }
        ).map(lambda value: _yaml(value).encode()),
        st.sampled_from(YAML_PARTS).map(lambda part: f"variants: {part}\nseeds: [0]\n".encode()),
    ),
)
PATHS = st.one_of(
    st.sampled_from(
        [
            "link.jsonl",
            "loop.jsonl",
            "gone.jsonl",
            "folder.jsonl",
            "pipe.jsonl",
            "../x.jsonl",
            "/etc/passwd",
            "a\0.jsonl",
            "x" * 400 + ".jsonl",
            "\udce9.jsonl",
            "demo:x",
            "",
            ".jsonl",
            "good.jsonl/x.jsonl",
            "file://good.jsonl",
            "caf\u00e9.jsonl",
        ]
    ),
    TEXTS.map(lambda text: text.replace("/", "") + ".jsonl"),
)


# ---------------------------------------------------------------- checks


class Crash(AssertionError):
    """Something else than an acceptance or a sentence."""


def _check_tokens(records: list[Record], tokenizer) -> None:
    for record in records:
        found = _outcome(
            partial(tokenize_all, [record], tokenizer, DataConfig(max_tokens=10**6)),
            record.origin,
            "data.pool: none",
        )
        for sample in found[0] if found else ():
            json.dumps([sample.id, sample.source, sample.damage], ensure_ascii=False).encode()
            ids, expected = (
                _control_ids(sample.input_ids, tokenizer),
                _control_ids(_neutral_ids(record, tokenizer), tokenizer),
            )
            if ids != expected:
                raise Crash(f"{record.parts()}: control tokens {ids} instead of {expected}")


def _control_ids(ids: list[int], tokenizer) -> list[int]:
    """Unknown characters become the unknown token in any text."""
    control = {
        place
        for place, token in tokenizer.added_tokens_decoder.items()
        if token.special or token.content in CONTROL
    }
    return [i for i in ids if i in control and i != tokenizer.unk_token_id]


def _neutral_ids(record: Record, tokenizer) -> list[int]:
    """Of the same chat in which everybody says nothing but x: all control tokens are the template's."""
    if record.messages is None:
        return [tokenizer.eos_token_id]
    call = lambda _: {"type": "function", "function": {"name": "x", "arguments": {}}}
    neutral = [
        {"role": message["role"], "content": "x", "tool_calls": [*map(call, message.get("tool_calls", ()))]}
        for message in record.messages
    ]
    tools = [*map(call, record.tools or ())]
    return tokenizer.apply_chat_template(neutral, tools=tools or None, tokenize=True, return_dict=False)


def _outcome(attempt: Callable[[], Any], *places: str) -> Any:
    """What ``attempt`` returns; None if it is refused with a sentence that begins with one of ``places``."""
    try:
        return attempt()
    except ValueError as error:
        if not str(error).startswith(places):
            raise Crash(f"{type(error).__name__} without a place: {str(error)[:200]}") from error
        return None


def try_file(content: bytes, suffix: str, folder: Path) -> Counter:
    """A data file, with on_broken 'error' and 'skip'; what is accepted is tokenised."""
    path = folder / f"pool{suffix}"
    path.write_bytes(content)
    empty = f"data.pool: there is no sample in {path}"
    accepted = _outcome(lambda: read([str(path)], "error"), f"{path}:", empty)
    rest = _outcome(lambda: read([str(path)], "skip"), f"{path}:", empty)
    if accepted and (rest is None or rest[1] != accepted[1]):
        raise Crash("skipping changes what is accepted without")
    skipped = 0
    if rest:
        records, counts = rest
        skipped = sum(counts.values()) - len(records)
        if suffix == ".jsonl" and sum(counts.values()) != sum(
            1 for line in content.split(b"\n") if line.strip()
        ):
            raise Crash(f"{counts} do not add up to the lines")
        _check_tokens(records, tokenizers()["bytes"])
    return Counter({"accepted" if accepted else "refused": 1, "lines skipped": skipped})


def try_parquet(made: tuple, folder: Path) -> Counter:
    columns, num_rows, number, damage = made
    rng = random.Random(number)
    values = [_column(kind, num_rows, rng) for _, kind in columns]
    names = [name.encode("utf-8", "replace").decode() for name, _ in columns]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(values, names=names), folder / "made.parquet")
    return try_file(_damaged((folder / "made.parquet").read_bytes(), damage), ".parquet", folder)


def _column(kind, num_rows: int, rng: random.Random) -> pyarrow.Array:
    if kind == "no UTF-8":
        return pyarrow.array(
            [rng.choice([b"\xff", b"fine"]) for _ in range(num_rows)], pyarrow.binary()
        ).view(pyarrow.string())
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": rng.choice(["b", "", None])}]
    by_type = {
        "string": "text <|im_end|>",
        "binary": b"\xff",
        "int64": 5,
        "double": float("nan"),
        "bool": True,
        "null": None,
        "list<item: string>": ["a"],
        "timestamp[us]": rng.choice([0, -(2**62)]),
        "date32[day]": 2**31 - 1,
        "struct<role: string, content: string>": chat[0],
    }
    made = by_type.get(str(kind), chat)
    return pyarrow.array([rng.choice([made, made, None]) for _ in range(num_rows)], kind)


def try_chat(made: tuple[str, list[dict]], folder: Path) -> Counter:
    """Ids of control tokens are the template's, whatever is said; the assistant's words are what is
    supervised."""
    name, messages = made
    tokenizer, origin = tokenizers()[name], "chat.jsonl:1"
    try:
        record = parse({"messages": messages}, "chat", 1, origin)
    except BrokenLine:
        return Counter(refused=1)
    _check_tokens([record], tokenizer)
    result = _outcome(
        lambda: tokenize_all([record], tokenizer, DataConfig(max_tokens=10**6)), origin, "data.pool: none"
    )
    if result is None:
        return Counter(refused=1)
    # Not of those whose tokens do not read back as they were, nor of texts with bytes that a real vocabulary
    # lacks.
    if name not in ("strips spaces", "metaspace", "lower case") and all(
        _reads_back(m["content"], tokenizer) for m in messages
    ):
        sample = result[0][0]
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        said = "".join(m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant")
        learnt = tokenizer.decode([label for label in sample.labels if label >= 0])
        if tokenizer.decode(sample.input_ids) != whole:
            raise Crash(f"{messages}: the tokens read {tokenizer.decode(sample.input_ids)!r}")
        # a line break before the answer may share its token
        if learnt.replace("\n", "") != said.replace("\n", ""):
            raise Crash(f"{messages}: supervised is {learnt!r}")
    return Counter(accepted=1)


def try_tool_chat(row: dict, folder: Path) -> Counter:
    """As ``try_chat``, of chats with tools and calls in a template that has them."""
    tokenizer, origin = tokenizers()["tools"], "chat.jsonl:1"
    try:
        record = parse(row, "chat", 1, origin)
    except BrokenLine:
        return Counter(refused=1)
    _check_tokens([record], tokenizer)
    result = _outcome(
        lambda: tokenize_all([record], tokenizer, DataConfig(max_tokens=10**6)), origin, "data.pool: none"
    )
    if result is None:
        return Counter(refused=1)
    sample = result[0][0]
    if tokenizer.decode(sample.input_ids) != tokenizer.apply_chat_template(
        record.messages, tools=record.tools, tokenize=False
    ):
        raise Crash(f"{row}: the tokens read {tokenizer.decode(sample.input_ids)!r}")
    dump = lambda call: f"<call>{json.dumps(call['function'], ensure_ascii=False)}</call>"
    said = "".join(
        m["content"] + "".join(map(dump, m.get("tool_calls", ()))) + "<|im_end|>"
        for m in record.messages or ()
        if m["role"] == "assistant"
    )
    learnt = tokenizer.decode([label for label in sample.labels if label >= 0])
    if learnt.replace("\n", "") != said.replace("\n", ""):
        raise Crash(f"{row}: supervised is {learnt!r}")
    return Counter(accepted=1)


def _reads_back(text: str, tokenizer) -> bool:
    return (
        tokenizer.decode(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        == text
    )


def try_template(template: str, folder: Path) -> Counter:
    tokenizer = _byte_level(template)
    record = parse(
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "chat",
        1,
        "chat.jsonl:1",
    )
    tokenised = _outcome(
        lambda: tokenize_all([record], tokenizer, DataConfig()), "chat.jsonl:1: ", "data.pool: none"
    )
    if tokenised and "root:" in tokenizer.decode(tokenised[0][0].input_ids):
        raise Crash(f"{template!r} reads files")
    return Counter({"accepted" if tokenised else "refused": 1})


def try_recipe(content: bytes, folder: Path) -> Counter:
    file = folder / "recipe.yaml"
    file.write_bytes(content)
    own = ["--data.pool", "[demo:pool]", "--data.target", "[demo:target]"]
    parsed = _parsed(lambda: configuration.parse("", [*own, "--config", str(file)]))
    if parsed:
        configuration.save(parsed, folder / "saved.yaml")
        saved = configuration.load(folder / "saved.yaml")
        if configuration.plain(saved) != configuration.plain(parsed):
            raise Crash(f"{content!r} reads back otherwise")
    return Counter({"accepted" if parsed else "refused": 1})


def try_grid(content: bytes, folder: Path) -> Counter:
    (folder / "grid.yaml").write_bytes(content)
    return Counter(
        {
            "accepted"
            if _parsed(lambda: grid.parse("", ["--config", str(folder / "grid.yaml")]))
            else "refused": 1
        }
    )


def _parsed(attempt: Callable[[], Any]) -> Any:
    error = io.StringIO()
    try:
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(error):
            found = attempt()
    except SystemExit as ended:
        if ended.code != 2 or "error: " not in error.getvalue():
            raise Crash(f"exit code {ended.code}: {error.getvalue()[-200:]}") from ended
        return None
    if "antigravity" in sys.modules:
        raise Crash("a configuration has imported a module")
    return found


def try_path(name: str, folder: Path) -> Counter:
    """Files are followed as the system does; what is none is refused."""
    if not (folder / "good.jsonl").exists():
        (folder / "good.jsonl").write_text('{"text": "a"}\n')
        (folder / "link.jsonl").symlink_to("good.jsonl")
        (folder / "loop.jsonl").symlink_to("loop.jsonl")
        (folder / "gone.jsonl").symlink_to("nowhere.jsonl")
        (folder / "folder.jsonl").mkdir()
        os.mkfifo(folder / "pipe.jsonl")
    name = name if name.startswith(("/", "demo", "file:")) or not name else f"{folder}/{name}"
    found = _outcome(
        lambda: read([name], "error") if name.endswith(".jsonl") or name.startswith("demo:") else None,
        f"{name}:",
        "data.pool",
    )
    return Counter({"accepted" if found else "refused": 1})


@dataclass(frozen=True)
class Kind:
    strategy: st.SearchStrategy
    attempt: Callable[[Any, Path], Counter]
    share: float
    """Of all inputs."""


KINDS = {
    "jsonl files": Kind(JSONL, lambda made, folder: try_file(made, ".jsonl", folder), 0.35),
    "csv files": Kind(CSV, lambda made, folder: try_file(made, ".csv", folder), 0.1),
    "json files": Kind(JSON_FILES, lambda made, folder: try_file(made, ".json", folder), 0.1),
    "parquet files": Kind(PARQUET, try_parquet, 0.1),
    "chats": Kind(
        st.tuples(st.sampled_from(sorted(tokenizers())), st.one_of(GOOD_CHATS, CHATS)), try_chat, 0.3
    ),
    "chats with tools": Kind(TOOL_CHATS, try_tool_chat, 0.1),
    "chat templates": Kind(JINJA, try_template, 0.07),
    "recipes": Kind(RECIPES, try_recipe, 0.03),
    "grids": Kind(GRIDS, try_grid, 0.02),
    "paths": Kind(PATHS, try_path, 0.03),
}
