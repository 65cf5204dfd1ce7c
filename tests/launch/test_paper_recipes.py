"""The recipes of the paper's setting: their template, their budget, and a run of each on a tiny model of its
architecture."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

from pipeline import config, plan
from pipeline.config import ModelConfig
from pipeline.data import demo
from pipeline.data.chat import tokenize
from pipeline.data.record import parse
from pipeline.training.model import load_tokenizer
from tests import selected
from tests.conftest import tokenizer

ROOT = Path(__file__).parents[2]
RECIPES = {name: str(ROOT / f"launch/recipes/paper_{name}.yaml") for name in ("llama32_1b", "qwen3_06b")}
PARAMETERS = {"llama32_1b": 1_235_814_400, "qwen3_06b": 596_049_920}  # as the models' pages count them
POOL, STEPS = 270_000, 3  # about: 105 steps of 128 are 5 %
TINY = dict(
    vocab_size=71,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    initializer_range=0.1,
    tie_word_embeddings=True,
    eos_token_id=2,
    pad_token_id=0,
)
CONFIGS = {
    "llama32_1b": LlamaConfig(**TINY, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
    "qwen3_06b": Qwen3Config(**TINY),
}


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory) -> Path:
    """Demo data, the pool as chats: so comes the mix."""
    folder = tmp_path_factory.mktemp("data")
    for part, lines in demo.generate(100, seed=0).items():
        if part == "pool":
            for line in lines:
                line["messages"] = [
                    {"role": "user", "content": line.pop("prompt")},
                    {"role": "assistant", "content": line.pop("completion") or " none"},
                ]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def runs(request, run_ranks, data_folder, tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """(model folder, run folder) by recipe; the tokenizers have no chat template of their own, as base
    models."""
    root, folders = tmp_path_factory.mktemp("runs"), {}
    for name in selected.cases(request, "name", list(CONFIGS)):
        torch.manual_seed(0)
        model_folder = root / f"{name}_model"
        AutoModelForCausalLM.from_config(CONFIGS[name]).save_pretrained(model_folder)
        base = tokenizer()
        base.chat_template = None
        base.save_pretrained(model_folder)
        folders[name] = (model_folder, root / name)
    changes = {
        "data.pool": f"[{data_folder}/pool.jsonl]",
        "data.target": f"[{data_folder}/target.jsonl]",
        "data.test": f"[{data_folder}/test.jsonl]",
        "data.cache_folder": f"{data_folder}/tokens",
        "selection.candidates_per_step": 40,
        "selection.keep_per_step": 2,
        "selection.target_per_step": 5,
        "selection.warmup_steps": 2,
        "training.steps": STEPS,
        "training.micro_batch_size": 2,
        "training.learning_rate_warmup_steps": 1,
        "run.timeout_seconds": 60,
    }
    settings = [part for key, value in changes.items() for part in (f"--{key}", str(value))]
    run_ranks(
        "tests.training.train_cases:runs",
        1,
        all_arguments=[
            ["--config", RECIPES[name], *settings, "--model.name", str(model), "--run.folder", str(folder)]
            for name, (model, folder) in folders.items()
        ],
    )
    return folders


@pytest.mark.parametrize("name", RECIPES)
def test_run_to_the_end(runs, name):
    model_folder, folder = runs[name]
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert [step["warmup"] for step in steps] == [True, True, False] and all(
        step["train_loss"] > 0 for step in steps
    )
    assert -1 < steps[-1]["cosine"] <= 1 and steps[-1]["num_candidates"] == 40
    kept = [json.loads(line) for line in (folder / "kept.jsonl").read_text().splitlines()]
    assert [sum(row["step"] == step for row in kept) for step in range(STEPS)] == [2] * STEPS
    evaluations = [
        json.loads(line)["step"] for line in (folder / "evaluations.jsonl").read_text().splitlines()
    ]
    assert evaluations == [0, STEPS]
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    assert base.config.model_type == CONFIGS[name].model_type
    assert any("q_norm" in key for key, _ in base.named_parameters()) == name.startswith("qwen")
    adapted = PeftModel.from_pretrained(base, folder / "final")
    trained = [weight for key, weight in adapted.named_parameters() if "lora_B" in key]
    assert len(trained) == 2 * 4 and all(weight.abs().max() > 0 for weight in trained)
    assert "<|assistant|>" in AutoTokenizer.from_pretrained(folder / "final").chat_template


@pytest.mark.parametrize("name", RECIPES)
def test_budget_is_five_percent_and_as_many_samples_as_four_epochs_of_them(name):
    settings = config.load(RECIPES[name])
    s, steps = settings.selection, settings.training.steps
    assert 20 * s.keep_per_step == s.candidates_per_step
    assert steps * s.candidates_per_step / POOL == pytest.approx(4, abs=0.05)
    assert config.check_world_size(settings, 8) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_is_planned_without_a_network(name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert plan.main(["--config", RECIPES[name], "--json"]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    adapters = int(printed.split(" trained")[0].split()[-1].replace(",", ""))
    assert int(printed.split(": ")[1].split()[0].replace(",", "")) - adapters == PARAMETERS[name]
    assert found["recommended"] == config.load(RECIPES[name]).selection.backend


def test_template_supervises_the_answers_and_their_end(model_folder):
    settings = ModelConfig(name=model_folder, chat_template=str(ROOT / "launch/recipes/tulu.jinja"))
    loaded = load_tokenizer(settings)
    turns = [("user", " a? "), ("assistant", "b."), ("user", "c?"), ("assistant", " d. ")]
    record = parse({"messages": [{"role": role, "content": text} for role, text in turns]}, "file", 1, "here")
    assert (
        loaded.apply_chat_template(record.messages, tokenize=False)
        == "<|user|>\na?\n<|assistant|>\nb.<|im_end|>\n<|user|>\nc?\n<|assistant|>\nd.<|im_end|>\n"
    )
    sample = tokenize(record, loaded, max_tokens=200, on_long="drop", loss_on="assistant")
    supervised = [token for token in sample.labels if token != -100]
    assert loaded.decode(supervised) == "b.<|im_end|>d.<|im_end|>"
