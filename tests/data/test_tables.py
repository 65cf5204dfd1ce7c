import csv

import pytest

from pipeline.data.sources import read


@pytest.fixture
def write(tmp_path):
    def write(content, name="pool.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def test_cells_are_text_and_may_hold_line_breaks_quotes_and_separators(tmp_path):
    rows = [("1", 'a, "b"\nc'), ("True", " 007 "), ("a\r\nb", "ü"), ("", "only a completion")]
    for name, dialect in (("pool.csv", "excel"), ("pool.tsv", "excel-tab")):
        with open(tmp_path / name, "w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file, dialect).writerows([("prompt", "completion"), *rows])
        records, counts = read([str(tmp_path / name)], "skip")
        assert [(record.prompt, record.completion) for record in records] == rows[:3]
        assert counts == {"samples": 3, "empty prompt": 1}
        # lines where rows begin
        assert [record.origin.rsplit(":")[-1] for record in records] == ["2", "4", "5"]


def test_blank_rows_are_no_samples_and_line_ends_of_all_kinds_are_read(write):
    for end in ("\n", "\r\n", "\r"):
        records, counts = read([write(end.join(["text", "a", "", '""', "b", ""]))], "error")
        assert [record.text for record in records] == ["a", "b"] and counts == {"samples": 2}


def test_messages_conversations_and_tools_are_json_in_a_cell(write):
    chat = '[{""role"": ""user"", ""content"": ""a""}, {""role"": ""assistant"", ""content"": ""b""}]'
    (record,) = read([write(f'id,messages,tools\n7,"{chat}",\n')], "error")[0]
    assert (
        [message["content"] for message in record.messages] == ["a", "b"]
        and record.id == "7"
        and record.tools is None
    )
    with pytest.raises(
        ValueError,
        match=r"pool.csv:2: malformed JSON: 'messages' is a text, and as JSON: Expecting property name",
    ):
        read([write("messages\n\"[{'role': 'user'}]\"\n")], "error")  # as str() writes a list


def test_a_chat_in_a_cell_of_prompt_or_completion_is_refused(write):
    """Its brackets would be trained on."""
    chat = '[{""role"": ""assistant"", ""content"": ""b""}]'
    for row, key in ((f'a,"{chat}"', "completion"), (f'"{chat}",a', "prompt")):
        with pytest.raises(
            ValueError,
            match=rf"pool.csv:2: wrong type: '{key}' is the JSON text of messages: put the whole chat",
        ):
            read([write(f"prompt,completion\n{row}\n")], "error")
    (record,) = read([write('prompt,completion\n"[1, 2]","[{""a"": 1}]"\n')], "error")[0]
    assert (record.prompt, record.completion) == ("[1, 2]", '[{"a": 1}]'), "other JSON is text"


BROKEN = {
    "too few": (b"x", "wrong number of cells: 1, and the header names 2 columns: ['prompt', 'completion']"),
    "too many": (b"x,y,z", "wrong number of cells: 3"),
    "Latin-1": (b"x,caf\xe9", "wrong encoding: expected UTF-8, found byte 0xe9 in the column 'completion'"),
    "text behind a quote": (b'"x"y,z', "malformed CSV: ',' expected after '\"', in the row up to line 4"),
    "no answer": (b"x, ", "empty answer: 'completion' has no text"),
    "a surrogate": (b"x,\xed\xa0\x80", "wrong encoding: expected UTF-8, found byte 0xed"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_named_by_file_and_line_or_skipped_and_counted(write, name):
    line, details = BROKEN[name]
    path = write(b'prompt,completion\n"a\nb",c\n' + line + b"\nd,e\n")
    with pytest.raises(ValueError) as error:
        read([path], "error")
    assert f"{path}:4: {details}" in str(error.value)
    records, counts = read([path], "skip")
    assert [record.prompt for record in records] == ["a\nb", "d"]
    assert counts == {"samples": 2, details.split(":")[0]: 1}


def test_a_quote_that_nobody_closes_is_found_and_says_how_far_it_reaches(write):
    path = write('prompt,completion\na,"b\nc,d\ne,f\n')
    with pytest.raises(
        ValueError, match=r"pool.csv:2: malformed CSV: unexpected end of data, in the row up to line 4"
    ):
        read([path], "error")
    with pytest.raises(
        ValueError, match=r"no sample in .* \(1 broken lines skipped; the first: .*:2: malformed CSV"
    ):
        read([path], "skip")


def test_a_header_that_cannot_be_read_is_an_error_of_the_file(write):
    for content, details in (
        (b"", "there is no sample in"),
        (b"prompt,completion\n", "there is no sample in"),
        (b"text,id,text\na,b,c\n", "the column 'text' is there twice"),
        (b"caf\xe9\na\n", ":1: wrong encoding: expected UTF-8, found the column"),
        ("text\na\n".encode("utf-16"), ":1: wrong encoding"),
        (b'"a"b\nc\n', ":1: malformed CSV"),
        (b"a;b\nc;d\n", ":2: missing field: expected .* got the fields \\['a;b'\\]"),
    ):
        with pytest.raises(ValueError, match=details):
            read([write(content)], "error")


def test_a_cell_of_10_mb_is_a_sample_or_named_by_its_start(write):
    long = "x" * 10_000_000
    assert len(read([write(f"text\n{long}\n")], "error")[0][0].text) == len(long)
    with pytest.raises(ValueError) as error:
        read([write(f"messages\n{long}\n")], "error")
    assert "pool.csv:2: malformed JSON" in str(error.value) and len(str(error.value)) < 400


def test_columns_of_a_csv_file_may_have_other_names(write):
    path = write("question,answer\n1 + 1,2\n")
    (record,) = read([path], "error", columns={"question": "prompt", "answer": "completion"})[0]
    assert (record.prompt, record.completion) == ("1 + 1", "2")
    with pytest.raises(
        ValueError, match=r"pool.csv:2: missing field: .*data\.columns gives them other names"
    ):
        read([path], "error")
