# O choices
"""The evaluation program on a tiny run: which model it scores, and how it ends when something is missing."""

import json
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline import config as configuration
from pipeline import evaluate, settings
from pipeline.config import Config, ModelConfig
from pipeline.data.demo import generate
from pipeline.data.sample import IGNORED, Sample
from tests.conftest import tokenizer
from tests.reference import add_lora, fill_adapters, sample_loss

needs_lm_eval = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm_eval is not installed (requirements-eval.txt)"
)
NUM_SAMPLES = 24
TASK = """
task: demo_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/test.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""


@pytest.fixture
def offline(monkeypatch, tmp_path, known_tasks):
    monkeypatch.setattr("lm_eval.tasks.TaskManager", known_tasks)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def known_tasks():
    """TaskManager, which reads thousands of files, once for all tests that name the same folders."""
    from lm_eval.tasks import TaskManager

    cached = cache(lambda folders: TaskManager(include_path=list(folders)))
    return lambda include_path: cached(tuple(include_path))


@pytest.fixture(scope="module")
def run_folder(model_folder, tmp_path_factory) -> Path:
    """As pipeline.train leaves it, with adapters that change what the model says."""
    folder = tmp_path_factory.mktemp("run")
    configuration.save(Config(model=ModelConfig(name=model_folder)), folder / "config.yaml")
    save_adapter(model_folder, folder / "final")
    return folder


def save_adapter(model_folder: str, folder: Path) -> None:
    model = add_lora(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32))
    fill_adapters(model)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory) -> Path:
    """A multiple-choice task: which of three answers of the demo data stands behind a prompt."""
    folder = tmp_path_factory.mktemp("task")
    lines = [
        {key: line[key].lower() for key in ("prompt", "completion")} for line in generate(100, seed=0)["test"]
    ]
    rows = [
        {
            "prompt": line["prompt"],
            "choices": [other["completion"] for other in lines[i : i + 3]],
            "answer": 0,
        }
        for i, line in enumerate(lines[:NUM_SAMPLES])
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "demo_choice.yaml").write_text(TASK.format(folder=folder))
    return folder


def accuracy(model, task_folder: Path) -> float:
    """One choice at a time: is the sum of log p(token) highest for the right one?"""
    encode = lambda text: tokenizer()(text, add_special_tokens=False)["input_ids"]
    hits = []
    for row in map(json.loads, (task_folder / "test.jsonl").read_text().splitlines()):
        prompt, scores_O = encode(row["prompt"]), []
        for choice in map(encode, row["choices"]):
            sample = Sample(prompt + choice, [IGNORED] * len(prompt) + choice, id="")
            scores_O.append(-len(choice) * sample_loss(model, sample).item())
        hits.append(scores_O.index(max(scores_O)) == row["answer"])
    return sum(hits) / len(hits)


@needs_lm_eval
def test_scores_are_those_of_the_run_with_its_adapter(run_folder, task_folder, model_folder, offline, capsys):
    arguments = ["--tasks", "demo_choice:0", "--include_path", str(task_folder), "--model"]
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    expected_base = accuracy(base, task_folder)
    adapted = add_lora(base)
    fill_adapters(adapted)
    expected = accuracy(adapted, task_folder)
    assert expected != expected_base

    assert evaluate.main([*arguments, str(run_folder)]) == 0
    printed = capsys.readouterr().out
    last = json.loads(printed.splitlines()[-1])
    assert last["tasks"]["demo_choice:0"]["demo_choice"]["acc,none"] == pytest.approx(expected)
    assert "|demo_choice|" in printed.replace(" ", "")
    written = json.loads((run_folder / "evaluation_tasks.json").read_text())
    assert written["tasks"]["demo_choice:0"]["results"]["demo_choice"]["acc,none"] == pytest.approx(expected)
    assert written["model"]["name"] == model_folder and {"lm_eval", "torch", "transformers"} <= set(
        written["versions"]
    )
    assert written["tasks"]["demo_choice:0"]["n-samples"]["demo_choice"]["effective"] == NUM_SAMPLES

    assert evaluate.main([*arguments, model_folder]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["tasks"]["demo_choice:0"]["demo_choice"]["acc,none"] == pytest.approx(expected_base)


@needs_lm_eval
@pytest.mark.parametrize(
    "tasks, message",
    [
        (["tydia"], "--tasks: tydia is none of the"),
        (["mmlu:five"], "--tasks: mmlu:five has 'five' behind the colon"),
        (["mmlu_anatomy"], "--tasks: the data of mmlu_anatomy cannot be loaded"),
    ],
)
def test_tasks_that_cannot_be_had_end_with_a_sentence(
    tasks, message, model_folder, task_folder, offline, capsys
):
    assert (
        evaluate.main(["--model", model_folder, "--tasks", *tasks, "--include_path", str(task_folder)]) == 2
    )
    errors = capsys.readouterr().err
    assert message in errors and ("tydiqa" in errors or tasks != ["tydia"])


@needs_lm_eval
def test_tydiqa_is_known_language_by_language(task_folder, known_tasks):
    manager = known_tasks([settings.TASKS.folder, task_folder])
    assert "tydiqa" in manager.all_groups and "mmlu" in manager.all_groups
    listed = {name for name in manager.all_subtasks if name.startswith("tydiqa_goldp_")}
    written = (settings.TASKS.folder / "tydiqa.yaml").read_text()
    assert len(listed) == 9 and all(f"- {name}\n" in written for name in listed)


def test_missing_lm_eval_names_the_way_out(monkeypatch, model_folder, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert evaluate.main(["--model", model_folder, "--tasks", "mmlu:5"]) == 2
    assert "pip install -r requirements-eval.txt" in capsys.readouterr().err


def test_which_model_is_meant(run_folder, model_folder, tmp_path):
    final = str(run_folder / "final")
    assert evaluate.find_model(str(run_folder)) == evaluate.Model(
        model_folder, None, final, final, is_run=True
    )
    assert evaluate.find_model(final) == evaluate.Model(model_folder, None, final, final)
    assert evaluate.find_model("a/hub-name") == evaluate.Model("a/hub-name")
    configuration.save(Config(), tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=r"has no model in .*final"):
        evaluate.find_model(str(tmp_path))
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "config.json").write_text("{}")
    assert evaluate.find_model(str(tmp_path)) == evaluate.Model(str(tmp_path / "final"), is_run=True)
