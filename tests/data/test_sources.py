import json
import re
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from pipeline import config
from pipeline.data.demo import generate
from pipeline.data.record import parse
from pipeline.data.sources import read, records_of

GOOD = {"prompt": "2 + 2 =", "completion": " 4"}


@pytest.fixture
def write(tmp_path):
    def write(content, name="pool.jsonl"):
        path = tmp_path / name
        content = (
            content if isinstance(content, (str, bytes)) else "\n".join(json.dumps(row) for row in content)
        )
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def test_every_format_becomes_one_of_three_forms(write):
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path = write(
        [
            {"messages": chat, "id": 7, "source": "s", "corruption": "truncated"},
            {**GOOD, "damage": "none"},
            {"prompt": chat[:1], "completion": chat[1:]},
            {"instruction": "Add", "input": "1, 2", "output": "3"},
            {"instruction": "Greet", "input": "", "output": "hello"},
            {"text": "plain"},
        ]
    )
    records, counts = read([path], "error")
    assert counts == {"samples": 6}
    first, second, third, fourth, fifth, last = records
    assert (first.messages, first.id, first.source, first.damage) == (chat, "7", "s", "truncated")
    assert (second.prompt, second.completion, second.messages, second.text) == ("2 + 2 =", " 4", None, None)
    assert (second.id, second.source, second.damage, second.origin) == ("pool:2", "pool", "none", f"{path}:2")
    assert (third.messages, third.num_context) == (chat, 1)
    assert [message["content"] for message in fourth.messages] == ["Add\n\n1, 2", "3"]
    assert [message["content"] for message in fifth.messages] == ["Greet", "hello"]
    assert last.text == "plain" and last.messages is None


def test_the_examples_of_the_page_are_samples():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    examples = re.findall(r"\| `(\{.*?\})`", page) + re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 6
    for example in examples:
        assert parse(json.loads(example), "page", 1, "page:1").parts()


def test_blank_lines_are_no_samples_but_count_as_lines(write):
    records, _ = read([write("\n" + json.dumps(GOOD) + "\n  \n" + json.dumps(GOOD) + "\n\n")], "error")
    assert [record.id for record in records] == ["pool:2", "pool:4"]


def test_files_are_read_in_order_and_a_byte_order_mark_is_accepted(write):
    names = [write([GOOD], "b.jsonl"), write(b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "a.jsonl")]
    assert [record.source for record in read(names, "error")[0]] == ["b", "a"]


BROKEN = {
    "malformed JSON": (b'{"prompt": "a", ', "column"),
    "wrong encoding": ('{"text": "caf\u00e9"}'.encode("latin-1"), "expected UTF-8"),
    "wrong encoding ": (b'{"text": "\\ud800"}', "surrogate"),
    "wrong type": (b"[1, 2]", "expected an object with 'messages'"),
    "wrong type ": (b'{"prompt": "a", "completion": 5}', "'completion' must be a string, got 5"),
    "malformed JSON      ": (b'{"messages": "hello"}', "'messages' is a text, and as JSON: Expecting value"),
    "wrong type  ": (b'{"messages": {"role": "user"}}', "list of objects"),
    "wrong type   ": (b'{"messages": [{"role": "robot", "content": "a"}]}', "'robot'"),
    "wrong type    ": (b'{"messages": []}', "list of objects"),
    "missing field": (b'{"prompt": "a"}', "got the fields ['prompt']"),
    "missing field ": (b'{"prompt": "a", "completion": null}', "'completion'"),
    "missing field  ": (b'{"messages": [{"role": "user"}]}', "needs role and content"),
    "missing field   ": (
        b'{"messages": [{"role": "assistant", "content": "a"}]}',
        "starts with the assistant",
    ),
    "empty answer": (b'{"prompt": "a", "completion": " "}', "'completion'"),
    "empty answer ": (b'{"messages": [{"role": "user", "content": "a"}]}', "no message of the assistant"),
    "empty text": (b'{"text": ""}', "'text'"),
    "malformed JSON ": (b'{"text": ' * 5000, "nested too deeply"),
    "malformed JSON  ": (b'{"id": ' + b"9" * 5000 + b', "text": "a"}', "a number is too long"),
    "malformed JSON   ": (b'{"id": NaN, "text": "a"}', "NaN is no number in JSON"),
    "malformed JSON    ": (b'{"text": "a", "text": "b"}', "the key 'text' stands twice"),
    "malformed JSON     ": (b'{"text": "a\x00b"}', "control character"),
    "wrong encoding  ": (b'{"text": "a", "source": "\\udfff"}', "'source' has an unpaired surrogate"),
    "wrong type     ": (b'{"text": "a", "id": [1]}', "'id' must be a string or a number, got [1]"),
    "tool call": (b'{"tools": [{"name": "f"}], "prompt": "a", "completion": "b"}', "'tools' would be lost"),
    "preference data": (
        b'{"prompt": "a", "chosen": "b", "rejected": "c"}',
        "are a pair, and the weighted loss",
    ),
    "not text": (
        b'{"messages": [{"role": "user", "content": [{"type": "image"}]}, '
        b'{"role": "assistant", "content": "b"}]}',
        "message 1 of 'messages' has a part 'image'",
    ),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_broken_line_is_named_by_file_and_line_or_skipped_and_counted(write, reason):
    line, details = BROKEN[reason]
    good = json.dumps(GOOD).encode()
    path = write(good + b"\n\n" + line + b"\n" + good + b"\n")
    with pytest.raises(ValueError) as error:
        read([path], "error")
    assert f"{path}:3: {reason.strip()}" in str(error.value)
    assert details in str(error.value)
    records, counts = read([path], "skip")
    assert len(records) == 2
    assert counts == {"samples": 2, reason.strip(): 1}


def test_no_sample_at_all_names_the_setting(write):
    with pytest.raises(ValueError, match=r"data\.target is empty"):
        read([], "error", "data.target")
    with pytest.raises(ValueError, match=r"data\.target: there is no sample in .*pool\.jsonl \(0 broken"):
        read([write("\n\n")], "error", "data.target")
    with pytest.raises(ValueError, match=r"data\.pool: there is no sample in .*\(1 broken"):
        read([write([GOOD], "good.jsonl"), write("{")], "skip")
    with pytest.raises(ValueError, match=r"data\.pool: there is no file nowhere\.jsonl"):
        read(["nowhere.jsonl"], "skip")


def test_json_holds_a_list_of_objects(write):
    records, _ = read([write(json.dumps([GOOD, GOOD], indent=1), "list.json")], "error")
    assert [record.id for record in records] == ["list:1", "list:2"]
    with pytest.raises(ValueError, match=r"list of objects, got \{'prompt'"):
        read([write(json.dumps(GOOD), "object.json")], "error")
    with pytest.raises(
        ValueError, match=r"lines\.json: malformed JSON: Extra data at line 2, column 1 .* named \.jsonl"
    ):
        read([write([GOOD, GOOD], "lines.json")], "skip")


def test_parquet_rows_fill_absent_fields_with_nulls(write, tmp_path):
    path = str(tmp_path / "pool.parquet")
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "n"}]},
        {"text": "c"},
    ]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"messages": None, "text": None, **row} for row in rows]), path
    )
    chat, text = read([path], "error")[0]
    assert chat.messages == rows[0]["messages"] and chat.text is None
    assert text.text == "c" and text.messages is None and text.origin == f"{path}:2"
    with pytest.raises(ValueError, match=r"fake\.parquet: not a Parquet file"):
        read([write("nonsense", "fake.parquet")], "error")


def test_parquet_calls_have_no_arguments_that_only_other_rows_have(tmp_path):
    def chat(name, arguments):
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        return [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]

    path = str(tmp_path / "pool.parquet")
    rows = [{"messages": chat("f", {"x": 1, "y": {"z": "a"}})}, {"messages": chat("g", {"y": {"w": True}})}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert (
        pyarrow.parquet.read_table(path).to_pylist()[1]["messages"][1]["tool_calls"][0]["function"][
            "arguments"
        ]["x"]
        is None
    )
    calls = [record.messages[1]["tool_calls"][0]["function"] for record in read([path], "error")[0]]
    assert calls == [
        {"name": "f", "arguments": {"x": 1, "y": {"z": "a"}}},
        {"name": "g", "arguments": {"y": {"w": True}}},
    ]


def test_a_null_that_an_argument_of_a_json_line_has_stays(write):
    call = {"name": "f", "arguments": {"unit": None}}
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    (record,) = read([write([{"messages": chat}])], "error")[0]
    assert record.messages[1]["tool_calls"][0]["function"] == call


def test_columns_may_have_other_names(write):
    path = write([{"question": "q", "answer": "a", "topic": "sums"}])
    columns = {"question": "prompt", "answer": "completion", "topic": "source"}
    (record,) = read([path], "error", columns=columns)[0]
    assert (record.prompt, record.completion, record.source) == ("q", "a", "sums")
    swapped = {"prompt": "completion", "completion": "prompt"}
    assert read([write([GOOD])], "error", columns=swapped)[0][0].prompt == GOOD["completion"]


def test_a_field_that_is_null_does_not_stand_in_the_way_of_a_column(write):
    row = {"question": "a", "prompt": None, "completion": "b"}
    (record,) = read([write([row])], "error", columns={"question": "prompt"})[0]
    assert (record.prompt, record.completion) == ("a", "b")


def test_columns_that_fit_no_row_or_two_columns_are_errors(write):
    path = write([{"question": "q", "completion": "a", "text": "t"}])
    for on_broken in ("error", "skip"):
        with pytest.raises(
            ValueError,
            match=rf"{path}: data\.columns names the column 'topic', which no row has; .*'question'",
        ):
            read([path], on_broken, columns={"question": "prompt", "topic": "source"})
        with pytest.raises(
            ValueError, match=rf"{path}:1: data\.columns gives a second column the name 'text'"
        ):
            read([path], on_broken, columns={"question": "text"})
    with pytest.raises(
        ValueError,
        match=r"data\.columns gives a column the name 'promt', which nothing reads; read are messages",
    ):
        read([path], "skip", columns={"question": "promt"})


def test_columns_come_from_yaml_and_the_command_line(tmp_path):
    expected = {"question": "prompt", "answer": "completion"}
    needed = ["--data.pool", "[demo:pool]", "--data.target", "[demo:target]"]
    (tmp_path / "recipe.yaml").write_text("data:\n  columns: {question: prompt, answer: completion}\n")
    assert config.parse("", [*needed, "--config", str(tmp_path / "recipe.yaml")]).data.columns == expected
    parsed = config.parse("", [*needed, "--data.columns", "{question: prompt, answer: completion}"])
    assert parsed.data.columns == expected
    config.save(parsed, tmp_path / "saved.yaml")
    assert config.load(tmp_path / "saved.yaml").data.columns == expected
    assert config.parse("", needed).data.columns == {}


def test_samples_come_one_at_a_time(write):
    skipped = Counter()
    found = records_of(write([GOOD] * 3 + [{"text": ""}]), "error", "data.pool", skipped)
    assert [next(found).origin.rsplit(":")[-1] for _ in range(3)] == ["1", "2", "3"]
    with pytest.raises(ValueError, match=r"pool\.jsonl:4: empty text"):
        next(found)


def test_a_file_of_pairs_ends_with_the_reason_and_not_with_no_sample_alone(write):
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(
        ValueError,
        match=r"no sample in .*\(2 broken lines skipped; the first: .*:1: preference data: .* weighted loss",
    ):
        read([write([pair, pair])], "skip")
    assert read([write([pair, GOOD])], "skip")[1] == {"samples": 1, "preference data": 1}
    kept = read([write([pair])], "error", columns={"chosen": "completion"})[0]
    assert (kept[0].prompt, kept[0].completion) == ("a", "b")


def test_the_demo_data_can_be_read_without_files():
    for part, lines in generate(1200, seed=0).items():
        records, counts = read([f"demo:{part}"], "error")
        assert counts == {"samples": len(lines)}
        assert [(r.id, r.prompt, r.completion, r.damage) for r in records] == [
            (line["id"], line["prompt"], line["completion"], line["damage"]) for line in lines
        ]
    with pytest.raises(
        ValueError,
        match=r"data.pool: there is no demo:pol; the demo data are demo:pool, demo:target, demo:test",
    ):
        read(["demo:pol"], "error")


def test_a_line_of_10_mb_is_a_sample_or_named_by_its_start(write):
    long = "x" * 10_000_000
    assert len(read([write([{"text": long}])], "error")[0][0].text) == len(long)
    with pytest.raises(ValueError) as error:
        read([write([{"prompt": "a", "completion": [long]}])], "error")
    assert "pool.jsonl:1: wrong type" in str(error.value) and len(str(error.value)) < 400


def test_crlf_and_a_byte_order_mark_inside_are_read(write):
    line = json.dumps(GOOD).encode()
    assert read([write(line + b"\r\n" + b"\xef\xbb\xbf" + line + b"\r\n")], "error")[1] == {"samples": 2}


def test_links_are_followed_and_what_is_no_file_is_refused(write, tmp_path):
    good = write([GOOD], "good.jsonl")
    link = tmp_path / "link.jsonl"
    link.symlink_to(good)
    assert read([str(link)], "error")[1] == {"samples": 1}
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "gone.jsonl").symlink_to("nowhere.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("loop.jsonl", "gone.jsonl", "folder.jsonl", "a\0b.jsonl", "x" * 300 + ".jsonl"):
        with pytest.raises(ValueError, match=r"data\.pool: there is no file"):
            read([str(tmp_path / name)], "error")
    with pytest.raises(ValueError, match=r"is no UTF-8: rename the file"):
        read([str(tmp_path / "\udce9.jsonl")], "error")


def test_a_parquet_row_that_cannot_be_read_is_named(tmp_path):
    path = str(tmp_path / "pool.parquet")
    text = pyarrow.array([b"fine", b"\xff", b"fine"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), path)
    with pytest.raises(ValueError, match=rf"{path}:2: wrong encoding"):
        read([path], "error")
    assert read([path], "skip")[1] == {"samples": 2, "wrong encoding": 1}
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    with pytest.raises(ValueError, match=rf"{path}:1: wrong type: 'text' must be a string, got 1"):
        read([path], "error")
