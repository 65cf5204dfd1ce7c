import pytest

from pipeline.config import DataConfig
from pipeline.data.chat import tokenize, tokenize_all
from pipeline.data.record import Record
from tests.data.byte_tokenizer import make_tokenizer, supervised_text, whole

TURN = "'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = "{% for message in messages %}{{ " + TURN + " }}{% endfor %}" + ASK
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ "
    + TURN
    + " }}{% endif %}{% endfor %}"
    + ASK
)
THINKING = CHATML.replace(
    "message['content'] + '<|im_end|>\n'",
    "('<think></think>' if loop.last and message['role'] == 'assistant' else '') + message['content'] + "
    "'<|im_end|>\n'",
)
SHOUTING = CHATML.replace(
    "message['content']", "(message['content'] if loop.last else message['content'] | upper)"
)
STRICT = "{{ raise_exception('roles must alternate') }}"


@pytest.fixture
def tokenizer():
    return make_tokenizer(CHATML)


def record(**form):
    return Record(id="a", source="s", damage="none", origin="pool.jsonl:7", **form)


def chat(*contents, roles=("user", "assistant"), **options):
    messages = [{"role": roles[i % len(roles)], "content": content} for i, content in enumerate(contents)]
    return record(messages=messages, **options)


@pytest.mark.parametrize("template", [CHATML, MARKED, THINKING])
def test_supervised_is_what_the_assistant_says_with_its_end_token(template):
    tokenizer = make_tokenizer(template)
    think = "<think></think>" if template == THINKING else ""
    assert (
        supervised_text(whole(chat("hi", "Hello ü!"), tokenizer), tokenizer) == f"{think}Hello ü!<|im_end|>"
    )
    two_turns = whole(chat("hi", "Hello hi", "hi hi", "hi"), tokenizer)
    assert supervised_text(two_turns, tokenizer) == f"Hello hi<|im_end|>|{think}hi<|im_end|>"
    assert (two_turns.id, two_turns.source, two_turns.damage) == ("a", "s", "none")


def test_system_and_tool_messages_are_not_supervised(tokenizer):
    sample = whole(
        chat(
            "be kind", "hi", "yes", "result", "so", roles=("system", "user", "assistant", "tool", "assistant")
        ),
        tokenizer,
    )
    assert supervised_text(sample, tokenizer) == "yes<|im_end|>|so<|im_end|>"


def test_an_answer_that_merges_with_the_generation_prompt_is_still_covered(tokenizer):
    sample = whole(chat("hi", "\nb"), tokenizer)  # the prompt's line break and the answer's are one token
    assert supervised_text(sample, tokenizer) == "\n\nb<|im_end|>"


def test_a_template_without_end_token_is_supervised_to_the_end_of_the_turn():
    template = (
        "{% for m in messages %}{{ ('Q: ' if m['role'] == 'user' else 'A:') + m['content'] + '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
    )
    tokenizer = make_tokenizer(template)
    assert supervised_text(whole(chat("a", " b", "c", " b"), tokenizer), tokenizer) == " b\n| b\n"


def test_turns_of_a_prompt_are_not_supervised():
    for template in (CHATML, MARKED):
        tokenizer = make_tokenizer(template)
        sample = whole(chat("a", "first", "b", "second", num_context=3), tokenizer)
        assert supervised_text(sample, tokenizer) == "second<|im_end|>"


def test_prompt_and_completion_are_joined_without_template(tokenizer):
    sample = whole(record(prompt="a", completion=" b"), tokenizer)
    assert tokenizer.decode(sample.input_ids) == "a b<|im_end|>"
    assert supervised_text(sample, tokenizer) == " b<|im_end|>"
    # a joint tokenisation would merge the line breaks
    across = whole(record(prompt="a\n", completion="\nb"), tokenizer)
    assert supervised_text(across, tokenizer) == "\nb<|im_end|>"


def test_text_is_supervised_from_start_to_end_token(tokenizer):
    sample = whole(record(text="abc"), tokenizer)
    assert sample.labels == sample.input_ids
    assert tokenizer.decode(sample.input_ids) == "abc<|im_end|>"


def test_a_tokenizer_that_opens_texts_with_bos_does_so_here():
    tokenizer = make_tokenizer(CHATML, bos_token="<|bos|>", add_bos_token=True)
    sample = whole(record(prompt="a", completion="b"), tokenizer)
    assert tokenizer.decode(sample.input_ids) == "<|bos|>ab<|im_end|>"
    assert supervised_text(sample, tokenizer) == "b<|im_end|>"


@pytest.mark.parametrize(
    "form", [{"prompt": "a", "completion": "b"}, {"text": "a"}, {"messages": chat("a", "b").messages}]
)
@pytest.mark.parametrize("template", [CHATML, SHOUTING])
def test_loss_on_all_supervises_every_token(form, template):
    sample = whole(record(**form), make_tokenizer(template), loss_on="all")
    assert sample.labels == sample.input_ids


def test_longer_samples_are_truncated_or_dropped(tokenizer):
    long = record(prompt="abc", completion="def")
    assert len(tokenize(long, tokenizer, 7, "drop", "assistant").input_ids) == 7
    assert tokenize(long, tokenizer, 6, "drop", "assistant") is None
    cut = tokenize(long, tokenizer, 4, "truncate", "assistant")
    assert tokenizer.decode(cut.input_ids) == "abcd" and cut.num_supervised == 1
    assert tokenize(long, tokenizer, 3, "truncate", "assistant").num_supervised == 0


def test_tokenize_all_counts_what_it_changes_and_drops(tokenizer):
    records = [
        record(prompt="a", completion="b"),
        record(prompt="ab", completion="cde"),
        record(prompt="abcdef", completion="g"),
    ]
    samples, counts = tokenize_all(records, tokenizer, DataConfig(max_tokens=4))
    assert counts == {"samples": 2, "truncated": 1, "no supervised token, dropped": 1}
    assert [len(sample.input_ids) for sample in samples] == [3, 4]
    samples, counts = tokenize_all(records, tokenizer, DataConfig(max_tokens=4, on_long="drop"))
    assert counts == {"samples": 1, "too long, dropped": 2}


@pytest.mark.parametrize("on_long, reason", [("truncate", "no supervised token"), ("drop", "too long")])
def test_a_target_set_that_tokenises_to_nothing_is_an_error_with_counts(tokenizer, on_long, reason):
    data = DataConfig(max_tokens=4, on_long=on_long)
    with pytest.raises(
        ValueError,
        match=rf"data\.target: none of the 2 samples is left .*max_tokens = 4.*'{reason}, dropped': 2",
    ):
        tokenize_all([record(prompt="abcdef", completion="g")] * 2, tokenizer, data, "data.target")


def test_what_a_tokenizer_cannot_do_is_said_with_the_line():
    cases = [
        (make_tokenizer(None), chat("a", "b"), "has no chat template"),
        (make_tokenizer(SHOUTING), chat("a", "b", "c", "d"), "renders message 2 of 4 differently"),
        (
            make_tokenizer(STRICT),
            chat("a", "b"),
            "refused by the chat template: TemplateError: roles must alternate",
        ),
        (make_tokenizer(CHATML, eos_token=None), record(text="a"), "no end token"),
    ]
    for tokenizer, broken, details in cases:
        with pytest.raises(ValueError, match=rf"pool\.jsonl:7: .*{details}"):
            tokenize_all([broken], tokenizer, DataConfig())
