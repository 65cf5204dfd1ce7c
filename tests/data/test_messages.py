import json

import pytest

from pipeline.data.checks import BrokenLine
from pipeline.data.record import parse

ASK, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
FUNCTION = {"name": "weather", "arguments": {"city": "Paris"}}
CALL = {"type": "function", "function": FUNCTION}
TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def read(**row):
    return parse(row, "pool", 1, "pool.jsonl:1")


def speech(*turns):
    return [{"from": speaker, "value": value} for speaker, value in turns]


def test_sharegpt_speakers_have_the_roles_of_messages():
    turns = speech(
        ("system", "s"),
        ("human", "h"),
        ("gpt", "g"),
        ("user", "u"),
        ("model", "m"),
        ("observation", "o"),
        ("assistant", "a"),
        ("tool", "t"),
        ("function", "f"),
        ("function_response", "r"),
    )
    found = read(conversations=turns).messages
    assert [message["role"] for message in found] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "tool",
        "tool",
    ]
    assert [message["content"] for message in found] == [turn["value"] for turn in turns]
    assert read(messages=turns).messages == found == read(conversations=found).messages
    with pytest.raises(
        BrokenLine,
        match="wrong type: message 2 of 'conversations' is from 'bing', and known are system, human",
    ):
        read(conversations=speech(("human", "h"), ("bing", "b")))
    with pytest.raises(BrokenLine, match="missing field: 'conversations' starts with the assistant"):
        read(conversations=speech(("gpt", "g"), ("human", "h")))


def test_a_sharegpt_call_is_the_assistants():
    turns = speech(
        ("human", "h"),
        ("function_call", '{"name": "weather", "arguments": {"city": "Paris"}}'),
        ("observation", "rain"),
    )
    record = read(conversations=turns, tools='[{"name": "weather"}]', system="be kind")
    assert record.messages[0] == {"role": "system", "content": "be kind"}
    assert record.messages[2] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert record.tools == [{"type": "function", "function": {"name": "weather"}}]


def test_a_system_column_stands_before_the_chat_once():
    system = {"role": "system", "content": "s"}
    assert (
        read(instruction="a", output="b", system="s").messages
        == [system, ASK, ANSWER]
        == read(conversations=[system, ASK, ANSWER], system="s").messages
    )
    with pytest.raises(BrokenLine, match="own system message differ"):
        read(conversations=[system, ASK, ANSWER], system="other")


def test_the_history_of_an_alpaca_row_comes_before_its_question():
    found = read(instruction="q", output="o", history=[["h", "i"]]).messages
    assert [(message["role"], message["content"]) for message in found] == [
        ("user", "h"),
        ("assistant", "i"),
        ("user", "q"),
        ("assistant", "o"),
    ]
    with pytest.raises(BrokenLine, match="'history' must be a list of pairs"):
        read(instruction="q", output="o", history=["h"])


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        FUNCTION,
        {"function": FUNCTION},
        {"type": "function", "function": {**FUNCTION, "arguments": '{"city": "Paris"}'}},
    ],
)
def test_calls_and_tools_come_to_one_form(call):
    for message in (
        {"role": "assistant", "tool_calls": [call]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "content": "", "tool_calls": [call], "function_call": None},
    ):
        assert read(messages=[ASK, message]).messages[1] == {
            "role": "assistant",
            "content": "",
            "tool_calls": [CALL],
        }
    for tools in (
        [TOOL],
        [{"type": "function", "function": TOOL}],
        json.dumps([TOOL]),
    ):
        assert read(messages=[ASK, ANSWER], tools=tools).tools == [{"type": "function", "function": TOOL}]
    assert (
        read(messages=[ASK, ANSWER], functions=[TOOL]).tools
        == read(messages=[ASK, ANSWER], tools=[TOOL]).tools
    )
    assert read(text="def f(): ...", functions=["f"]).text
    for none in (None, [], "", "[]", "null"):
        assert read(messages=[ASK, ANSWER], tools=none).tools is None


def test_names_of_calls_and_content_beside_them_stay():
    message = {"role": "assistant", "content": "let me see", "tool_calls": [{"id": "abc123def", **CALL}]}
    assert read(messages=[ASK, message]).messages[1] == message
    old = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    assert read(messages=[ASK, old]).messages[1]["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": {}}}
    ]


def test_a_turn_that_is_not_to_be_learnt_is_refused():
    """OpenAI's weight and others' train: trained on, it would be learnt without a word."""
    assert (
        read(messages=[{**ASK, "weight": 0}, {**ANSWER, "weight": 1, "train": True}]).messages[1]["content"]
        == "b"
    )
    for mark in ({"weight": 0}, {"weight": 0.0}, {"train": False}):
        with pytest.raises(
            BrokenLine, match="not to be learnt: message 2 of 'messages' has weight 0 or train false"
        ):
            read(messages=[ASK, {**ANSWER, **mark}, ASK, ANSWER])
        with pytest.raises(BrokenLine, match="not to be learnt: message 2 of 'conversations'"):
            read(conversations=[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", **mark}])
        assert read(prompt=[ASK, {**ANSWER, **mark}, ASK], completion=[ANSWER]).num_context == 3


def test_openais_older_results_are_a_tools():
    result = {"role": "function", "name": "weather", "content": "rain"}
    found = read(
        messages=[ASK, {"role": "assistant", "function_call": FUNCTION}, result, ANSWER], functions=[TOOL]
    )
    assert found.messages[2] == {**result, "role": "tool"}


@pytest.mark.parametrize(
    "message, details",
    [
        (
            {"role": "user", "content": "a", "tool_calls": [CALL]},
            "message 2 of 'messages' calls a tool, and its role is 'user'",
        ),
        (
            {"role": "assistant", "tool_calls": [{}]},
            "a tool call of message 2 of 'messages' must be an object with a name",
        ),
        ({"role": "assistant", "tool_calls": ["f"]}, "must be an object with a name, got 'f'"),
        ({"role": "assistant", "tool_calls": [{"function": "f"}]}, "must be an object with a name"),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "parameters": {}}]},
            r"needs name and arguments, has \['name', 'parameters'\]",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]},
            r"must be an object or its JSON text, got \[1\]",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "x=1"}]},
            "malformed JSON: the arguments of a call in message 2",
        ),
        ({"role": "assistant", "tool_calls": {"name": "f"}}, "must be a list"),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": "\ud800"}}]},
            "unpaired surrogate",
        ),
        ({"role": "assistant", "content": None}, "needs role and content"),
        ({"role": "assistant", "content": "", "tool_calls": []}, "empty answer"),
        (
            {"role": "assistant", "content": [{"type": "image", "image": "x"}]},
            "not text: message 2 of 'messages' has a part 'image'",
        ),
        ({"role": "assistant", "content": ["b"]}, "not text: message 2 of 'messages' has a part 'b'"),
        ({"role": "assistant", "content": []}, "empty answer"),
    ],
)
def test_what_is_no_message_is_named(message, details):
    with pytest.raises(BrokenLine, match=details):
        read(messages=[ASK, message])


def test_tools_that_are_none_are_refused():
    for tools, details in (
        ([{"type": "function"}], "tool 1 must be an object with a name"),
        ({"name": "f"}, "'tools' must be a list"),
        ("weather", "malformed JSON: 'tools' is a text"),
        ([{"name": "\ud800"}], "'tools' has an unpaired surrogate"),
    ):
        with pytest.raises(BrokenLine, match=details):
            read(messages=[ASK, ANSWER], tools=tools)
    with pytest.raises(BrokenLine, match="tool call: 'tools' would be lost"):
        read(text="a", tools=[TOOL])


def test_text_parts_are_one_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]
    found = read(
        messages=[{"role": "user", "content": parts}, {"role": "assistant", "content": parts[:1]}]
    ).messages
    assert [message["content"] for message in found] == ["a b", "a"]


def test_calls_and_tools_are_among_the_texts_that_are_shown():
    messages = [
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "rain"},
        ANSWER,
    ]
    record = read(messages=messages, tools=[{"name": "weather"}])
    assert record.parts() == ["a", 'weather({"city": "Paris"})', "rain", "b", '{"name": "weather"}']
