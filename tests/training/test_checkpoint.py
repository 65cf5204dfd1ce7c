"""A run that was stopped and continued is the run that was not: parameters, Adam state, records, bit for bit."""

import json
import os

import pytest

from benchmarks.kill_resume import compare, records
from pipeline.training import checkpoint_files as files
from pipeline.training.checkpoint_files import Manifest
from tests.ranks import run_ranks
from tests.run_arguments import run_arguments

STEPS, STOPPED_IN = 5, 2
VARIANTS = {
    "zero0-full": ["--deepspeed", "ds_configs/zero0.json", "--model.lora_rank", "0", "--training.weight_decay", "0.1"],
    "zero2-waiting": ["--selection.score_every", "2", "--selection.keep_per_step", "4", "--training.precision", "bf16"],
    "zero3-lora": ["--deepspeed", "ds_configs/zero3.json"],
}  # zero1 and others are killed in tests/test_kill_resume.py


@pytest.fixture(scope="module")
def pairs(model_folder, data_folder, tmp_path_factory):
    """(undisturbed, stopped and continued) by variant; the undisturbed one has written no checkpoint before its last step."""
    root = tmp_path_factory.mktemp("runs")

    def build(name, kind, save_every):
        changes = ["--training.save_every", str(save_every), "--training.steps", str(STEPS)]
        return run_arguments(model_folder, data_folder, root / kind / name, *VARIANTS[name], *changes)

    run_ranks("tests.training.train_cases:runs", 2, all_arguments=[build(name, "undisturbed", STEPS) for name in VARIANTS])
    groups = [(build(name, "continued", STEPS), STOPPED_IN, i % 2) for i, name in enumerate(VARIANTS)]
    codes = run_ranks("tests.training.checkpoint_cases:stopped_and_continued", 2, groups=groups)
    assert codes == [[75] * len(VARIANTS)] * 2
    return {name: (root / "undisturbed" / name, root / "continued" / name) for name in VARIANTS}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_continued_run_equals_the_undisturbed_one(pairs, name):
    undisturbed, continued = pairs[name]
    resumes = [json.loads(line) for line in (continued / "resumes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in resumes] == [STOPPED_IN + 1]
    assert len(records(continued, "steps")) == STEPS
    assert compare(undisturbed, continued) == []


def test_the_newest_good_checkpoint_of_this_run_is_found_and_the_others_are_named(tmp_path):
    """Torn, of other settings, with records that are gone, of more ranks; the same on both ranks."""
    now = {"selection.ridge": 1.0, "training.micro_batch_size": 2}

    def write(run, step, identity=now, records=0, world_size=2):
        partial = tmp_path / run / "checkpoints" / f"checkpoint-{step}.tmp"
        files.make_empty(partial)
        for name in ("a.pt", "b.pt"):
            (partial / name).write_bytes(b"content" * step)
        described = {name: files.describe(partial / name) for name in ("a.pt", "b.pt")}
        (tmp_path / run / "steps.jsonl").write_text("{}\n" * 10)
        return files.commit(partial, Manifest(step, world_size, identity, {"steps": records}, described))

    write("run", 1)
    write("run", 2, {**now, "training.micro_batch_size": 4}, records=30)
    write("run", 3, records=31)
    write("run", 4, {**now, "selection.ridge": 0.5})
    os.truncate(write("run", 6) / "b.pt", 41)
    for step in (1, 2):
        os.remove(write("torn", step) / "a.pt")
    (tmp_path / "empty").mkdir()
    asked = ["auto", str(tmp_path / "torn"), str(tmp_path / "empty"), str(tmp_path / "run/checkpoints/checkpoint-2")]
    results = run_ranks("tests.training.checkpoint_cases:found_in", 2, folder=str(tmp_path / "run"), now=now, asked=asked)
    assert results[0] == results[1]
    (name, unusable, said), torn, empty, older = results[0]
    assert name == "checkpoint-2" and len(unusable) == 3, unusable
    for text, reason in zip(
        unusable, ["b.pt has 41 bytes, and 42 were", "selection.ridge: 0.5 -> 1.0", "has 30 bytes, and 31 were"]
    ):
        assert reason in text and f"CHECKPOINT NOT USED: {text}" in said
    assert "other settings that change rounding alone: training.micro_batch_size: 4 -> 2" in said[-1]
    assert torn[0] == "error" and "none of 2 checkpoints can be used" in torn[1] and "a.pt cannot be read" in torn[1]
    assert empty[0] == "error" and "there is no checkpoint in" in empty[1]
    assert older[0] == "error" and "would lose the steps up to checkpoint-6" in older[1]
