"""The model made from scratch: the same each time, loadable as any other, and made once."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config import DataConfig, ModelConfig
from pipeline.data import demo, demo_settings
from pipeline.data.chat import tokenize_all
from pipeline.data.record import Record, parse
from pipeline.training import small_model
from pipeline.training.model import load_model, load_tokenizer

SIZES = dict(hidden_size=32, num_layers=2, vocabulary=300, max_tokens=64, batch_tokens=128, epochs=15)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    chat = [{"role": "user", "content": "Größe?"}, {"role": "assistant", "content": "12 cm"}]
    rows = [{"prompt": f"Add {i}:", "completion": f" {i + 1}"} for i in range(30)] + [{"messages": chat}] * 2
    return [parse(row, "pool", number, f"pool:{number}") for number, row in enumerate(rows)]


@pytest.fixture(scope="module")
def folder(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    loss = small_model.make(records, folder, **SIZES)
    assert loss < 5.2, "untrained it is ln 300 = 5.7"
    return folder


def test_it_is_the_same_each_time_and_leaves_nothing_unfinished(records, folder, tmp_path):
    small_model.make(records, tmp_path / "again", **SIZES)
    first, again = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder, tmp_path / "again")
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_its_tokenizer_covers_every_text_and_formats_chats(records, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "An emoji 🙂, 1234 and\ttabs"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("1234")["input_ids"]) == 4
    samples, _ = tokenize_all(records[-1:], tokenizer, DataConfig(max_tokens=64))
    answer = [token for token, label in zip(samples[0].input_ids, samples[0].labels) if label == token]
    assert tokenizer.decode(answer) == "12 cm<|im_end|>"


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_it_loads_for_full_fine_tuning_and_with_adapters(folder, lora_rank):
    settings = ModelConfig(name=str(folder), lora_rank=lora_rank)
    model, _ = load_model(settings, torch.float32, torch.device("cpu"), seed=0)
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    assert trained == (2 * 7 * 2 if lora_rank else 2 + 2 * 9)
    ids = torch.tensor([load_tokenizer(settings)("Add 1:")["input_ids"]])
    assert model(input_ids=ids).logits.isfinite().all()


def test_the_demo_model_has_seen_no_sample_of_the_targets_kind():
    seen = {record.prompt for record in small_model.demo_records()}
    parts = demo.generate(demo.POOL_SAMPLES, seed=0)
    of_kind = {row["prompt"] for rows in parts.values() for row in rows if row["source"] == demo.TARGET_KIND}
    assert len(of_kind) > 300 and not seen & of_kind and len(seen) > 1000


@pytest.mark.parametrize("setting", demo_settings.SETTINGS)
def test_the_demo_model_has_seen_no_prompt_of_the_target_of_a_setting(setting):
    """In ``behaviour`` it knows the questions, but no options and no letters."""
    seen = {record.prompt for record in small_model.demo_records()}
    parts = demo_settings.generate(setting, seed=0)
    kind = parts["target"][0]["source"]
    wanted = {row["prompt"] for rows in parts.values() for row in rows if row["source"] == kind}
    assert len(wanted) > 300 and not seen & wanted
    assert not any("Route" in prompt or "(A)" in prompt for prompt in seen)


def test_demo_stands_for_a_model_that_is_made_once(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(small_model, "DEMO_FOLDER", tmp_path / "cache" / "model")
    monkeypatch.setattr(
        small_model, "make", lambda records, folder, **sizes: (made.append(folder), folder.mkdir())
    )
    assert [small_model.located("demo"), small_model.located("demo")] == [
        str(tmp_path / "cache" / "model")
    ] * 2
    assert made == [tmp_path / "cache" / "model"]
    assert small_model.located("elsewhere/model") == "elsewhere/model"


def test_a_model_that_is_there_is_not_overwritten(tmp_path, capsys):
    with pytest.raises(SystemExit):
        small_model.main(["--data", "demo:pool", "--output", str(tmp_path)])
    assert "exists; name another folder" in capsys.readouterr().err
