"""What many tests share: ranks, the folder of a tiny random Llama with its tokenizer, and data to fine-tune
it on; and which tests are quick."""

import json
import os
import random

import pytest

from tests import processes

os.environ.update(
    {name: value for name, value in processes.ENVIRONMENT.items() if name != "CUDA_VISIBLE_DEVICES"}
)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


NOT_QUICK = ("distributed", "slow", "gpu", "cluster")


def pytest_addoption(parser):
    parser.addoption(
        "--quick",
        action="store_true",
        help="only tests that start no ranks and take moments: 90 s on one core",
    )


def pytest_configure(config):
    if config.getoption("quick"):
        wanted = [f"({config.option.markexpr})"] if config.option.markexpr else []
        config.option.markexpr = " and ".join([*wanted, *(f"not {name}" for name in NOT_QUICK)])


def pytest_itemcollected(item):
    if {"run_ranks", "launch", "run_program"} & set(item.fixturenames):
        item.add_marker("distributed")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    processes.unmarked_test = "" if item.get_closest_marker("distributed") else item.nodeid


@pytest.fixture(scope="session")
def run_ranks():
    return processes.run_ranks


@pytest.fixture(scope="session")
def launch():
    return processes.launch


@pytest.fixture(scope="session")
def run_program():
    return processes.run_program


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> str:
    """In float32, with its tokenizer."""
    from tests.reference import tiny_llama

    folder = tmp_path_factory.mktemp("tiny_llama")
    tiny_llama().float().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def tokenizer():
    """Knows single characters and ChatML."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    characters = "abcdefghijklmnopqrstuvwxyz0123456789 \n.,:;+-*/=<>()[]?!'\"_#%&@^~"
    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, *characters])}
    assert len(vocabulary) <= 71, len(vocabulary)
    characterwise = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    characterwise.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=characterwise,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
    )
    wrapped.chat_template = CHATML
    return wrapped


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory) -> str:
    """pool.jsonl (48 samples), target.jsonl (5, as chats) and test.jsonl (7): sums of small numbers, some of
    them wrong."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)

    def line(name, i, wrong=False):
        a, b = rng.randint(1, 99), rng.randint(1, 9)
        question, answer = (
            f"{a}+{b}",
            str(a + b + (rng.randint(1, 9) if wrong else 0)) + "." * rng.randint(0, 5),
        )
        about = {"id": f"{name}-{i}", "source": "sums", "corruption": "wrong" if wrong else "none"}
        if name == "target":
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            return {**about, "messages": messages}
        return {**about, "prompt": question, "completion": answer}

    for name, size in (("pool", 48), ("target", 5), ("test", 7)):
        rows = [line(name, i, wrong=name == "pool" and i % 3 == 0) for i in range(size)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)
