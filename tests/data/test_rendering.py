"""Tools, tool calls and several turns in templates of the kinds that models have, written here in their
essentials."""

import copy
import importlib.util
import json
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipeline.config import DataConfig
from pipeline.data.chat import tokenize_all
from pipeline.data.checks import BrokenLine
from pipeline.data.record import parse
from tests.data.byte_tokenizer import make_tokenizer, supervised_text, whole

SMOLLM2 = Path(__file__).parents[2] / ".cache" / "smollm2-135m"

LLAMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}
  {%- set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' + system + '<|eot_id|>' }}
{%- if tools %}
  {{- '<|start_header_id|>user<|end_header_id|>\n\nGiven these functions, answer with a call of one.\n\n' }}
  {%- for tool in tools %}{{ tool | tojson(indent=4) + '\n\n' }}{% endfor %}
  {{- messages[0]['content'] | trim + '<|eot_id|>' }}{% set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
  {%- if message.role == 'tool' %}
    {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + message.content | tojson + '<|eot_id|>' }}
  {%- elif message.tool_calls %}
    {%- if message.tool_calls | length != 1 %}
      {{- raise_exception('This model only supports single tool-calls at once!') }}{% endif %}
    {%- set call = message.tool_calls[0].function %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
    {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}<|eot_id|>' }}
  {%- else %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}
    {{- message.content | trim + '<|eot_id|>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

QWEN = """{%- if tools %}
  {{- '<|im_start|>system\n' + (messages[0].content + '\n\n' if messages[0].role == 'system' else '') }}
  {{- '# Tools\n<tools>' }}
  {%- for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}{{ '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
  {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}
{%- set ns = namespace(last_query=0) %}
{%- for message in messages %}
  {%- if message.role == 'user' %}{% set ns.last_query = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
  {%- if message.role == 'user' %}{{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
  {%- elif message.role == 'assistant' %}
    {{- '<|im_start|>assistant\n' }}
    {%- if THINKS and loop.last and loop.index0 > ns.last_query %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
    {{- message.content }}
    {%- for call in message.tool_calls or [] %}
      {{- '\n' if loop.index0 or message.content else '' }}
      {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
      {{- call.function.arguments | tojson + '}\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
  {%- elif message.role == 'tool' %}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
    {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

MISTRAL = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}
  {%- set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for message in messages %}
  {%- if message.role == 'user' %}
    {%- if tools and message == users[-1] %}
      {{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
    {{- '[INST] ' + (system if loop.first else '') + message.content + '[/INST]' }}
  {%- elif message.tool_calls %}
    {{- '[TOOL_CALLS] [' }}
    {%- for call in message.tool_calls %}
      {%- if call.id is not defined or call.id | length != 9 %}
        {{- raise_exception('Tool call IDs should be 9 characters') }}{% endif %}
      {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
      {{- ', ' if not loop.last else ']' + eos_token }}
    {%- endfor %}
  {%- elif message.role == 'assistant' %}{{ ' ' + message.content | trim + eos_token }}
  {%- elif message.role == 'tool' %}
    {{- '[TOOL_RESULTS] {"content": ' + message.content | tojson }}
    {{- ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
  {%- endif %}
{%- endfor %}"""

MARKED = """{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}
{%- for message in messages %}
  {{- '<|im_start|>' + message.role + '\n' }}
  {%- if message.role == 'assistant' %}
    {%- generation %}{{ message.content }}CALLS{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}
  {%- else %}{{ message.content + '<|im_end|>\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
CALLS = "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"


def llama3():
    return make_tokenizer(
        LLAMA3,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        additional_special_tokens=["<|start_header_id|>", "<|end_header_id|>"],
    )


def qwen(thinks):
    tokenizer = make_tokenizer(QWEN.replace("THINKS", str(thinks).lower()))
    # which are no special tokens there either
    tokenizer.add_tokens(["<tool_call>", "</tool_call>", "<think>", "</think>"])
    return tokenizer


def mistral():
    special = [
        "[INST]",
        "[/INST]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_CALLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    ]
    return make_tokenizer(MISTRAL, bos_token="<s>", eos_token="</s>", additional_special_tokens=special)


def marked():
    return make_tokenizer(MARKED.replace("CALLS", CALLS))


def call(name="weather", **arguments):
    return {"id": "abcdefghi", "type": "function", "function": {"name": name, "arguments": arguments}}


def say(role, content, **more):
    return {"role": role, "content": content, **more}


TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}},
    }
]
DIALOG = [
    say("system", "be kind"),
    say("user", "hi"),
    say("assistant", "hello"),
    say("user", "bye"),
    say("assistant", "so long"),
]
ASKED = [
    say("system", "be kind"),
    say("user", "Rain?"),
    {"role": "assistant", "tool_calls": [call(city="Ulm", days=2)]},
    say("tool", "no\nrain", tool_call_id="abcdefghi"),
    say("assistant", "It is dry."),
]
CALL = '"name": "weather", "arguments": {"city": "Ulm", "days": 2}'
KINDS = {  # tokenizer, what is supervised of DIALOG, and of ASKED
    "llama3": (
        llama3,
        "hello<|eot_id|>|so long<|eot_id|>",
        '{"name": "weather", "parameters": {"city": "Ulm", "days": 2}}<|eot_id|>|It is dry.<|eot_id|>',
    ),
    "qwen": (
        lambda: qwen(False),
        "hello<|im_end|>|so long<|im_end|>",
        f"<tool_call>\n{{{CALL}}}\n</tool_call><|im_end|>|It is dry.<|im_end|>",
    ),
    "qwen that thinks": (
        lambda: qwen(True),
        "hello<|im_end|>|<think>\n\n</think>\n\nso long<|im_end|>",
        f"<tool_call>\n{{{CALL}}}\n</tool_call><|im_end|>|<think>\n\n</think>\n\nIt is dry.<|im_end|>",
    ),
    "mistral": (
        mistral,
        " hello</s>| so long</s>",
        f'[TOOL_CALLS] [{{{CALL}, "id": "abcdefghi"}}]</s>| It is dry.</s>',
    ),
    "generation tags": (
        marked,
        "hello<|im_end|>|so long<|im_end|>",
        f"{{{CALL}}}<|im_end|>|It is dry.<|im_end|>",
    ),
}


def sample_of(messages, tokenizer, tools=None, loss_on="assistant"):
    return whole(parse({"messages": messages, "tools": tools}, "pool", 7, "pool.jsonl:7"), tokenizer, loss_on)


def rendered(messages, tokenizer, tools=None):
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)


def with_content(messages):
    return [{"content": "", **message} for message in messages]


@pytest.mark.parametrize("kind", KINDS)
def test_every_turn_of_the_assistant_is_supervised_its_calls_too(kind):
    make, of_dialog, of_asked = KINDS[kind]
    tokenizer = make()
    for messages, tools, supervised in (
        (DIALOG, None, of_dialog),
        (ASKED, TOOLS, of_asked),
        (ASKED, None, of_asked),
    ):
        sample = sample_of(messages, tokenizer, tools)
        text = rendered(with_content(messages), tokenizer, tools)
        assert tokenizer.decode(sample.input_ids) == text
        assert sample.input_ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert supervised_text(sample, tokenizer) == supervised
        assert sample_of(messages, tokenizer, tools, "all").labels == sample.input_ids


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_spell_special_tokens_stay_text_in_calls_results_and_tools(kind):
    tokenizer = KINDS[kind][0]()
    bad = "x".join(["", *tokenizer.all_special_tokens, "<tool_call></tool_call>", ""])
    messages = copy.deepcopy(ASKED)
    messages[2]["tool_calls"] = [call(city=bad, **{bad: [{"deep": bad}]})]
    messages[3]["content"] = messages[4]["content"] = bad
    tools = [
        {
            "type": "function",
            "function": {"name": "weather", "description": bad, "parameters": {"properties": {bad: {}}}},
        }
    ]
    sample = sample_of(messages, tokenizer, tools)
    assert tokenizer.decode(sample.input_ids) == rendered(with_content(messages), tokenizer, tools)
    control = {
        tokenizer.convert_tokens_to_ids(token)
        for token in (*tokenizer.all_special_tokens, "<tool_call>", "</tool_call>")
    } - {None}
    plain = sample_of(ASKED, tokenizer, TOOLS)
    said_by_assistant = (
        {tokenizer.convert_tokens_to_ids(token) for token in ("<tool_call>", "</tool_call>")}
        if "qwen" in kind
        else set()
    )
    counted = (
        control - said_by_assistant
    )  # an assistant's content may write added tokens that are not special: it is to learn them
    assert [i for i in sample.input_ids if i in counted] == [i for i in plain.input_ids if i in counted]
    for token in said_by_assistant:
        assert sample.input_ids.count(token) == 2 * plain.input_ids.count(token)


def test_several_calls_in_one_turn_and_several_results():
    messages = [
        say("user", "a"),
        say("assistant", "Both:", tool_calls=[call("f", x="1"), call("g", y="2")]),
        say("tool", "3"),
        say("tool", "4"),
        say("assistant", "7"),
    ]
    tokenizer = qwen(True)
    assert supervised_text(sample_of(messages, tokenizer), tokenizer) == (
        'Both:\n<tool_call>\n{"name": "f", "arguments": {"x": "1"}}\n</tool_call>\n<tool_call>\n'
        '{"name": "g", "arguments": {"y": "2"}}\n</tool_call><|im_end|>|<think>\n\n</think>\n\n7<|im_end|>'
    )
    refused = "refused by the chat template: TemplateError: This model only supports single tool-calls"
    with pytest.raises(ValueError, match=refused):
        sample_of(messages, llama3())


def test_a_call_that_belongs_to_the_prompt_is_not_supervised():
    tokenizer = qwen(False)
    row = {"prompt": ASKED[:-1], "completion": ASKED[-1:], "tools": TOOLS}
    sample = whole(parse(row, "pool", 7, "pool.jsonl:7"), tokenizer)
    assert supervised_text(sample, tokenizer) == "It is dry.<|im_end|>"
    assert sample.input_ids == sample_of(ASKED, tokenizer, TOOLS).input_ids


def test_arguments_are_json_text_where_the_template_adds_them_to_a_text():
    added = "{{ '```' + call.function.name + '\n' + call.function.arguments + '```' }}"
    tokenizer = make_tokenizer(
        MARKED.replace("CALLS", "{% for call in message.tool_calls or [] %}" + added + "{% endfor %}")
    )
    supervised = '```weather\n{"city": "Ulm", "days": 2}```<|im_end|>|It is dry.<|im_end|>'
    assert supervised_text(sample_of(ASKED, tokenizer, TOOLS), tokenizer) == supervised


def test_content_is_in_parts_where_the_template_leaves_text_out():
    """As those of models that see do: a loop over the characters of a text finds none that is of type
    text."""
    part = (
        "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
    )
    for seen in (part, "{{ message.content[0].text }}"):
        tokenizer = make_tokenizer(
            MARKED.replace("CALLS", CALLS)
            .replace("{{ message.content }}", seen)
            .replace("{{ message.content + '<|im_end|>\n' }}", seen + "{{ '<|im_end|>\n' }}")
        )
        assert sample_of(DIALOG, tokenizer).input_ids == sample_of(DIALOG, marked()).input_ids
        assert supervised_text(sample_of(ASKED, tokenizer, TOOLS), tokenizer) == KINDS["generation tags"][2]


def test_content_that_a_template_leaves_out_is_found():
    without_system = make_tokenizer(
        MARKED.replace("CALLS", CALLS).replace(
            "message.content + '<|im_end|>\n'",
            "(message.content if message.role != 'system' else '') + '<|im_end|>\n'",
        )
    )
    assert sample_of(DIALOG[1:], without_system).num_supervised
    with pytest.raises(
        ValueError,
        match=r"content left out: the chat template leaves out what message 1 says, .* of the system",
    ):
        sample_of(DIALOG, without_system)
    prints_parts = make_tokenizer(
        "{% for m in messages %}{% if m.content is not string %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(
        ValueError, match="content left out: the chat template leaves out what message 1 says"
    ):
        sample_of(DIALOG, prints_parts)
    beside_a_call = [ASKED[1], say("assistant", "Let me see.", tool_calls=[call(city="Ulm")]), *ASKED[3:]]
    with pytest.raises(
        ValueError, match="content left out: the chat template leaves out what message 2 says"
    ):
        sample_of(beside_a_call, llama3())
    quoted = [*ASKED[:3], say("tool", 'line "one"\nline two', tool_call_id="abcdefghi"), ASKED[4]]
    assert supervised_text(sample_of(quoted, llama3()), llama3()) == KINDS["llama3"][2]


@pytest.mark.parametrize("marks", ["", "{% generation %}"])
def test_a_template_that_writes_the_date_writes_the_same_on_every_day(marks):
    """As Llama 3's, which sets its own date where there is no clock; nothing else of the template changes."""
    answer = f"{marks}{{{{ message.content }}}}</s>{marks.replace('generation', 'endgeneration')}"
    turns = (
        "{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}{% else %}"
        + answer
        + "{% endif %}{% endfor %}"
    )
    llamas = (
        "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}"
        "{% else %}{% set day = '26 Jul 2024' %}{% endif %}"
    )
    messages = [say("user", "a?"), say("assistant", "b")]
    for form, written in (
        ("{{ day }}", "26 Jul 2024"),
        ("{{ strftime_now('%Y-%m-%d %A %H:%M') }}", "2024-07-26 Friday 00:00"),
    ):
        dated = make_tokenizer(f"\n Today: {llamas}{form}\n" + turns, eos_token="</s>")
        fixed = make_tokenizer(f"\n Today: {written}\n" + turns, eos_token="</s>")
        assert sample_of(messages, dated) == sample_of(messages, fixed)
        assert dated.decode(sample_of(messages, dated).input_ids).startswith(f"\n Today: {written}\na?")


def test_a_template_for_tools_is_taken_where_there_are_tools():
    tokenizer = make_tokenizer(
        {"default": marked().chat_template.replace("tools", "nothing"), "tool_use": marked().chat_template}
    )
    assert supervised_text(sample_of(ASKED, tokenizer, TOOLS), tokenizer) == KINDS["generation tags"][2]


NAME_ALONE = "{% for call in message.tool_calls or [] %}{{ call.function.name }}{% endfor %}"
KEYS_ALONE = (
    "{% for call in message.tool_calls or [] %}"
    "{{ call.function.name }}{{ call.function.arguments.keys() | join }}{% endfor %}"
)
FIRST_ALONE = "{% for call in (message.tool_calls or [])[:1] %}{{ call.function | tojson }}{% endfor %}"


@pytest.mark.parametrize("calls", ["", NAME_ALONE, KEYS_ALONE, FIRST_ALONE])
@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_a_template_that_leaves_out_a_part_of_a_call_is_found(calls, loss_on):
    tokenizer = make_tokenizer(MARKED.replace("CALLS", calls))
    messages = [
        ASKED[1],
        say("assistant", "", tool_calls=[call(city="Ulm"), call("weather", city="Ulm")]),
        *ASKED[3:],
    ]
    with pytest.raises(
        ValueError, match="message 2 calls a tool in a field of its own, and the chat template leaves out"
    ):
        sample_of(messages, tokenizer, loss_on=loss_on)


def test_a_name_that_stands_elsewhere_in_the_chat_does_not_count():
    tokenizer = make_tokenizer(MARKED.replace("CALLS", "").replace("tools | tojson", "'nothing'"))
    messages = [say("user", "weather city Ulm"), say("assistant", "weather", tool_calls=[call(city="Ulm")])]
    with pytest.raises(ValueError, match="message 2 calls a tool"):
        sample_of(messages, tokenizer)
    with pytest.raises(ValueError, match="leaves out tool 1 of 'tools': say in a system message"):
        sample_of([say("user", "weather"), say("assistant", "weather")], tokenizer, TOOLS)


def test_a_call_outside_of_the_generation_marks_would_not_be_learnt():
    tokenizer = make_tokenizer(
        MARKED.replace("CALLS", "").replace("{%- generation %}", CALLS + "{% generation %}")
    )
    with pytest.raises(ValueError, match="message 3 calls a tool outside of the chat template's"):
        sample_of(ASKED, tokenizer, TOOLS)
    assert sample_of(ASKED, tokenizer, TOOLS, "all").num_supervised


def test_rows_with_calls_that_the_template_drops_are_named_or_counted():
    tokenizer = make_tokenizer(MARKED.replace("CALLS", ""))
    records = [parse({"messages": messages}, "pool", 7, "pool.jsonl:7") for messages in (ASKED, DIALOG)]
    with pytest.raises(
        ValueError, match=r"pool\.jsonl:7: tool call: message 3 calls a tool .*data\.on_broken = skip"
    ):
        tokenize_all(records, tokenizer, DataConfig())
    assert tokenize_all(records, tokenizer, DataConfig(on_broken="skip"))[1] == {"samples": 1, "tool call": 1}


def test_mistrals_tools_before_the_last_question_are_told_from_one_question_alone():
    """It moves the tools once another question follows: what the model was asked with is not in the chat any
    more."""
    sample_of(ASKED, mistral(), TOOLS)
    with pytest.raises(ValueError, match="answer not told from the rest"):
        sample_of([*DIALOG[:3], *ASKED[1:]], mistral(), TOOLS)
    assert sample_of([*DIALOG[:3], *ASKED[1:]], mistral(), TOOLS, "all").num_supervised


def test_a_special_token_that_begins_a_call_does_not_end_it():
    template = (
        "{% for m in messages %}{{ m.role + ':' + m.content }}"
        "{% for call in m.tool_calls or [] %}"
        "{{ '<|call|>' + call.function.name + ' ' + call.function.arguments | tojson }}{% endfor %}"
        "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    tokenizer = make_tokenizer(template, additional_special_tokens=["<|call|>"])
    sample = sample_of(ASKED[1:3], tokenizer)
    assert supervised_text(sample, tokenizer) == '<|call|>weather {"city": "Ulm", "days": 2}\n'


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="the quickstart has not fetched SmolLM2-135M")
def test_smollm2_has_no_tools_and_says_so():
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    for messages in (DIALOG, DIALOG[1:], [*ASKED[:2], say("assistant", "weather(Ulm)"), *ASKED[3:]]):
        sample = sample_of(messages, tokenizer)
        assert sample.input_ids == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        assert supervised_text(sample, tokenizer) == "|".join(answer + "<|im_end|>" for answer in answers)
    with pytest.raises(ValueError, match="tool call: message 3 calls a tool in a field of its own"):
        sample_of(ASKED, tokenizer)
    with pytest.raises(ValueError, match="tool call: the chat template leaves out tool 1"):
        sample_of(DIALOG, tokenizer, TOOLS)


TRL = importlib.util.find_spec("trl")
TEMPLATES = sorted(Path(TRL.submodule_search_locations[0]).glob("chat_templates/*.jinja")) if TRL else []
HONEST = {"tool call", "content left out", "refused by the chat template", "answer not told from the rest"}


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_real_templates_give_all_that_is_said_or_the_row_is_refused(file):
    """Those that come with TRL."""
    template = file.read_text()
    special = sorted(set(re.findall(r"<\|\w+\|?>|<\w+_of_\w+>|<｜[^｜]+｜>", template)))
    end = next((token for token in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>") if token in special), "</s>")
    tokenizer = make_tokenizer(template, bos_token="<s>", eos_token=end, additional_special_tokens=special)
    for messages, tools in ((DIALOG[1:], None), (ASKED[1:], None), (ASKED[1:], TOOLS)):
        try:
            sample = sample_of(messages, tokenizer, tools)
        except BrokenLine as broken:
            assert broken.reason in (
                HONEST if messages[1:] != DIALOG[2:] else {"answer not told from the rest"}
            ), broken
            continue
        text, learnt = tokenizer.decode(sample.input_ids), supervised_text(sample, tokenizer)
        for message in messages:
            words = (
                ["weather", "city", "Ulm", "days", "2"] if "tool_calls" in message else [message["content"]]
            )
            assert all(word in text or json.dumps(word)[1:-1] in text for word in words), text
            if message["role"] == "assistant":
                assert all(word in learnt for word in words), learnt
        assert "Rain?" not in learnt and "no\nrain" not in learnt
        assert not tools or text.count("city") > 1, text  # of the tool's parameters, and of the call
