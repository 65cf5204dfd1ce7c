"""A run that was stopped and continued is the run that was not: parameters, Adam state, records, bit for
bit."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from pipeline import durable
from pipeline.training import checkpoint_files as files
from pipeline.training.checkpoint_files import Manifest
from tests import selected
from tests.processes import tails
from tests.run_arguments import run_arguments
from tests.same_run import compare, records
from tests.training.test_checkpoint_files import flip_one_bit

STEPS, STOPPED_IN = 6, 2
VARIANTS = {
    "zero2-full": [
        "--model.lora_rank",
        "0",
        "--training.weight_decay",
        "0.1",
        "--selection.proposal",
        "learned",
        "--selection.score_every",
        "2",
    ],
    "zero3-lora": [
        "--deepspeed",
        "ds_configs/zero3.json",
        "--training.precision",
        "bf16",
        "--selection.proposal",
        "learned",
        "--selection.score_every",
        "auto",
        "--training.target_mix",
        "0.25",
    ],
}  # the others are stopped in benchmarks/kill_resume.py


@pytest.fixture(scope="module")
def build(model_folder, data_folder):
    """Function of a variant, a run folder and changes: the command line."""

    def build(name, folder, *changes) -> list[str]:
        return run_arguments(
            model_folder, data_folder, folder, *VARIANTS[name], "--training.steps", str(STEPS), *changes
        )

    return build


@pytest.fixture(scope="module")
def pairs(request, run_ranks, build, tmp_path_factory):
    """(undisturbed, stopped and continued) by variant. The undisturbed one has written no checkpoint before
    its last step; for the other the disk was full at step 2. Tests without a name look at zero2-full."""
    root = tmp_path_factory.mktemp("runs")
    asked = [given.get("name", "zero2-full") for given in selected.parameters(request)]
    names = [name for name in VARIANTS if name in asked]
    undisturbed = [
        build(name, root / "undisturbed" / name, "--training.save_every", str(STEPS)) for name in names
    ]
    run_ranks("tests.training.train_cases:runs", 2, all_arguments=undisturbed)
    continued = [build(name, root / "continued" / name, "--training.save_every", "2") for name in names]
    # the variants' places say which rank gets the signal
    ranks = [list(VARIANTS).index(name) for name in names]
    groups = [(arguments, STOPPED_IN, rank) for arguments, rank in zip(continued, ranks)]
    codes = run_ranks("tests.training.checkpoint_cases:stopped_and_continued", 2, timeout=900, groups=groups)
    assert codes == [[75] * len(names)] * 2
    return {name: (root / "undisturbed" / name, root / "continued" / name) for name in names}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_that_was_stopped_and_continued_equals_the_undisturbed_one(pairs, name):
    """The full fine-tuning is stopped between two scoring passes."""
    undisturbed, continued = pairs[name]
    resumes = [json.loads(line) for line in (continued / "resumes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in resumes] == [STOPPED_IN + 1]
    assert {path.name for path in (continued / "checkpoints").glob("checkpoint*")} == {
        "checkpoint-4",
        "checkpoint-6",
    }
    assert len(records(continued, "steps")) == STEPS
    assert compare(undisturbed, continued) == []


@pytest.mark.parametrize("killed", ["all_ranks_in_a_file_of_a_checkpoint", "one_rank_in_scoring"])
def test_a_run_that_was_killed_and_continued_equals_the_undisturbed_one(
    run_ranks, launch, pairs, build, tmp_path, killed
):
    """The others notice, and end. benchmarks.kill_resume does so by the dozen, at random moments."""
    arguments = build("zero2-full", tmp_path / "run", "--training.save_every", "2", "--resume", "auto")
    before = f"tests.training.checkpoint_cases:kill_{killed}"
    ended = launch("tests.processes:train", 2, arguments=arguments, before=before)
    codes = [end.code for end in ended]
    assert -signal.SIGKILL in codes and set(codes) <= {-signal.SIGKILL, 1}, tails(ended)
    run_ranks("tests.training.train_cases:runs", 2, all_arguments=[arguments])
    (resumed,) = [json.loads(line) for line in (tmp_path / "run/resumes.jsonl").read_text().splitlines()]
    assert resumed["step"] == 2
    assert compare(pairs["zero2-full"][0], tmp_path / "run") == []


def test_a_clock_that_goes_back_and_a_pool_that_is_truncated_meanwhile_change_nothing(
    run_ranks, launch, pairs, build, data_folder, tmp_path
):
    """But what is continued is refused: its data are gone. And what DeepSpeed copies into a checkpoint is
    hashed like the rest."""
    pool = Path(shutil.copy(Path(data_folder) / "pool.jsonl", tmp_path / "pool.jsonl"))
    arguments = build(
        "zero2-full", tmp_path / "run", "--training.save_every", "3", "--data.pool", f"[{pool}]"
    )
    run_ranks("tests.training.train_cases:runs", 2, all_arguments=[arguments], before="change_the_world")
    assert pool.stat().st_size < (Path(data_folder) / "pool.jsonl").stat().st_size
    newest = tmp_path / "run/checkpoints/checkpoint-6"
    for rank in (0, 1):
        name = f"offloaded_tensors/rank{rank}/exp_avg.swp"
        assert files.read_manifest(newest).files[name] == durable.described(newest / name)
    assert compare(pairs["zero2-full"][0], tmp_path / "run") == []
    seconds = [
        json.loads(line)["seconds"] for line in (tmp_path / "run/steps.jsonl").read_text().splitlines()
    ]
    assert len(seconds) == STEPS and all(value >= 0 for line in seconds for value in line.values())
    (tmp_path / "run/finished.json").unlink()
    # without the half line, which would be refused itself
    pool.write_text(pool.read_text().rpartition("\n")[0] + "\n")
    ended = launch("tests.processes:train", 2, arguments=[*arguments, "--resume", "auto"])
    assert [end.code for end in ended] == [1, 1], tails(ended)
    assert (
        "content of data.pool: 48 samples" in ended[0].output
        and "none of 2 checkpoints can be used" in ended[0].output
    )


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(launch, pairs, build, tmp_path):
    undisturbed, continued = pairs["zero2-full"]
    folder = Path(shutil.copytree(continued, tmp_path / "run"))
    (folder / "finished.json").unlink()
    flip_one_bit(next((folder / "checkpoints/checkpoint-6").glob("*optim_states.pt")))
    arguments = build("zero2-full", folder, "--training.save_every", "2", "--resume", "auto")
    ended = launch("tests.processes:train", 2, arguments=arguments)
    assert [end.code for end in ended] == [0, 0], tails(ended)
    said = " ".join(ended[0].output.split())
    assert (
        "CHECKPOINT NOT USED" in said
        and "has changed since it was written" in said
        and "set aside as checkpoint-6.damaged" in said
    )
    assert json.loads((folder / "resumes.jsonl").read_text().splitlines()[-1])["step"] == 4
    assert compare(undisturbed, folder) == []


def test_a_disk_that_is_full_at_a_record_ends_all_ranks_and_the_run_goes_on_from_its_checkpoint(
    run_ranks, launch, pairs, build, tmp_path
):
    arguments = build("zero2-full", tmp_path / "run", "--training.save_every", "2")
    ended = launch(
        "tests.processes:train", 2, arguments=arguments, before="tests.training.train_cases:fill_the_disk"
    )
    assert [end.code for end in ended] == [1, 1], tails(ended)
    assert (
        "steps.jsonl cannot be written: File too large" in ended[0].output
        and "Traceback" not in ended[0].output
    ), tails(ended)
    run_ranks("tests.training.train_cases:runs", 2, all_arguments=[[*arguments, "--resume", "auto"]])
    assert compare(pairs["zero2-full"][0], tmp_path / "run") == []


@pytest.mark.parametrize("before, after, stage", [(2, 1, "zero2"), (1, 2, "zero3")])
def test_a_run_goes_on_with_another_number_of_ranks(run_ranks, pairs, build, tmp_path, before, after, stage):
    """Full fine-tuning has two parameter groups, with and without weight decay. Sums are rounded otherwise:
    losses agree to 1e-3 and no kept sample changes, nor its order."""
    arguments = build("zero2-full", tmp_path / "run", "--deepspeed", f"ds_configs/{stage}.json")
    codes = run_ranks("tests.training.checkpoint_cases:stopped", before, groups=[(arguments, STOPPED_IN, 0)])
    assert codes == [[75]] * before
    run_ranks("tests.training.train_cases:runs", after, all_arguments=[[*arguments, "--resume", "auto"]])
    (resumed,) = [json.loads(line) for line in (tmp_path / "run/resumes.jsonl").read_text().splitlines()]
    assert (resumed["ranks_before"], resumed["ranks"], resumed["step"]) == (before, after, STOPPED_IN + 1)
    undisturbed = pairs["zero2-full"][0]
    mine, theirs = records(tmp_path / "run", "steps"), records(undisturbed, "steps")
    assert len(mine) == STEPS
    for one, other in zip(mine, theirs):
        for key in (
            "step",
            "epoch",
            "candidate_tokens",
            "trained_tokens",
            "num_kept",
            "learning_rate",
            "dropped",
        ):
            assert one[key] == other[key], f"step {one['step']}: {key}"
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)
    kept = [
        [(line["step"], line["id"]) for line in records(run_folder, "kept")]
        for run_folder in (tmp_path / "run", undisturbed)
    ]
    assert kept[0] == kept[1]
    assert not list((tmp_path / "run/checkpoints").glob("*universal*"))


def test_the_newest_good_checkpoint_of_this_run_is_found_and_the_others_are_named(run_ranks, tmp_path):
    """Torn, of other settings, with records that are gone, of more ranks; the same on both ranks."""
    now = {"selection.ridge": 1.0, "training.micro_batch_size": 2, "content of data.pool": "48 samples 0123"}

    def write(run, step, identity=now, records=0, world_size=2):
        partial = tmp_path / run / "checkpoints" / f"checkpoint-{step}.tmp"
        files.make_empty(partial)
        for name in ("a.pt", "b.pt"):
            (partial / name).write_bytes(b"content" * step)
        described = {name: durable.described(partial / name) for name in ("a.pt", "b.pt")}
        (tmp_path / run / "steps.jsonl").write_text("{}\n" * 10)
        return files.commit(partial, Manifest(step, world_size, identity, {"steps": records}, described))

    write("run", 1)
    write("run", 2, {**now, "training.micro_batch_size": 4}, records=30)
    write("run", 3, records=31)
    write("run", 4, {**now, "selection.ridge": 0.5})
    write("run", 5, {**now, "content of data.pool": "47 samples 4567"})  # the file was truncated since
    os.truncate(write("run", 6) / "b.pt", 41)
    for step in (1, 2):
        os.remove(write("torn", step) / "a.pt")
    (tmp_path / "empty").mkdir()
    # checkpoints that are older than a setting are of runs without it
    now = {**now, "data.pool_weights": None}
    asked = [
        "auto",
        str(tmp_path / "torn"),
        str(tmp_path / "empty"),
        str(tmp_path / "run/checkpoints/checkpoint-2"),
    ]
    results = run_ranks(
        "tests.training.checkpoint_cases:found_in", 2, folder=str(tmp_path / "run"), now=now, asked=asked
    )
    assert results[0] == results[1]
    (name, unusable, said), torn, empty, older, replaced = results[0]
    assert name == "checkpoint-2" and len(unusable) == 4, unusable
    reasons = [
        "b.pt has 41 bytes, and 42 were",
        "content of data.pool: 47 samples 4567 -> 48 samples 0123",
        "selection.ridge: 0.5 -> 1.0",
        "has 30 bytes, and 31 were",
    ]
    for text, reason in zip(unusable, reasons):
        assert reason in text and f"CHECKPOINT NOT USED: {text}" in said
    assert "other settings that change rounding alone: training.micro_batch_size: 4 -> 2" in said[-1]
    assert (
        torn[0] == "error"
        and "none of 2 checkpoints can be used" in torn[1]
        and "a.pt cannot be read" in torn[1]
    )
    assert empty[0] == "error" and "there is no checkpoint in" in empty[1]
    assert "the ranks have read different samples from data.pool, was a file replaced" in replaced[1]
    assert older[0] == "error" and "would lose the steps up to checkpoint-6" in older[1]
