"""What strangers wrote is shown as it is, without what would deceive, and without secrets."""

import pytest

from pipeline.reporting.visible import cut, hide, visible
from pipeline.settings import HIDDEN, without_secrets

ARABIC = "\u0645\u0631\u062d\u0628\u0627"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain \u00e4 \u4e2d \U0001f600\n\ttab", "plain \u00e4 \u4e2d \U0001f600\n\ttab"),
        (ARABIC, ARABIC),
        ("a\x00b\x1b[31m", "a\\x00b\\x1b[31m"),
        ("half \ud800 pair", "half \\ud800 pair"),
        ("pay \u202e001\u202c now", "pay \\u202e001\\u202c now"),
        ("\u2066x\u2069\u200f", "\\u2066x\\u2069\\u200f"),
    ],
)
def test_control_characters_half_pairs_and_turns_are_spelled_out(text, shown):
    assert visible(text) == shown
    visible(text).encode("utf-8")


def test_values_of_secret_variables_are_hidden_and_others_are_not():
    environment = {
        "HF_TOKEN": "abcdefgh12",
        "WANDB_API_KEY": "0123456789",
        "MY_PASSWORD": "kurz",
        "HOME": "/home/someone",
    }
    text = "name: abcdefgh12/model, key 0123456789, kurz, /home/someone"
    assert hide(text, environment) == f"name: {HIDDEN}/model, key {HIDDEN}, kurz, /home/someone"


@pytest.mark.parametrize(
    "secret", ["hf_" + "a1B2" * 8, "ghp_" + "x" * 36, "sk-" + "y" * 40, "AKIA" + "Q" * 16]
)
def test_tokens_of_known_services_and_passwords_in_addresses_are_hidden(secret):
    assert (
        hide(f"url: https://user:{secret}@host/a?b {secret}", {})
        == f"url: https://{HIDDEN}@host/a?b {HIDDEN}"
    )


def test_settings_with_the_name_of_a_secret_are_hidden_and_max_tokens_is_not():
    settings = {
        "comet": {"api_key": "abc", "project": "p"},
        "max_tokens": 64,
        "tokenizer": "t",
        "list": [{"password": "x"}],
        "token": "",
    }
    hidden = {
        "comet": {"api_key": HIDDEN, "project": "p"},
        "max_tokens": 64,
        "tokenizer": "t",
        "list": [{"password": HIDDEN}],
        "token": "",
    }
    assert without_secrets(settings) == hidden
    assert (
        hide("/models/some_tokenizer", {"TOKENIZER_PATH": "/models/some_tokenizer"})
        == "/models/some_tokenizer"
    )


def test_a_cut_says_how_much_is_missing():
    assert cut("x" * 10, 10) == "x" * 10 and cut("x" * 1234, 4) == "xxxx\u2026 (+1,230)"
