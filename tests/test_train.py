"""Whole runs of the training program on the tiny model: what they write, that they repeat, and how they
end."""

import csv
import json
from pathlib import Path

import psutil
import pytest
import torch
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config import DataConfig
from pipeline.data import sources
from pipeline.data.chat import tokenize_all
from pipeline.data.stream import CandidateStream
from pipeline.reporting.records import read_run
from tests import selected
from tests.processes import free_port, tails
from tests.reference import sample_loss
from tests.run_arguments import run_arguments
from tests.training.train_cases import SPOILED_TOKEN

ROOT = Path(__file__).parent.parent
STEPS, NUM_CANDIDATES, SPOILED_STEP = 6, 8, 4
RUNS = {
    "lora": [],
    "again": [],
    "zero3-lora": ["--deepspeed", "ds_configs/zero3.json"],
    "full": ["--model.lora_rank", "0", "--training.micro_batch_size", "1", "--training.weight_decay", "0.1"],
    "zero3-full": [
        "--model.lora_rank",
        "0",
        "--deepspeed",
        "ds_configs/zero3.json",
        "--model.gradient_checkpointing",
        "true",
    ],
    "mixture": ["--data.pool", "[demo:pool, demo:target]", "--data.pool_weights", "[1, 3]"],
    "learned": [
        "--selection.proposal",
        "learned",
        "--selection.score_every",
        "2",
        "--selection.keep_per_step",
        "4",
        "--training.precision",
        "bf16",
    ],
}


@pytest.fixture(scope="module")
def arguments(model_folder, data_folder):
    """Function of a run folder and changes: the command line."""

    def build(folder, *changes) -> list[str]:
        return run_arguments(model_folder, data_folder, folder, *changes)

    return build


@pytest.fixture(scope="module")
def folders(request, run_ranks, arguments, tmp_path_factory):
    """Run folders by name, of two ranks, but for `one_rank`. Tests without a name look at several."""
    root = tmp_path_factory.mktemp("runs")
    names = selected.cases(request, "name", [*RUNS, "one_rank"])
    on_two = [arguments(root / name, *RUNS[name]) for name in names if name in RUNS]
    if on_two:
        run_ranks("tests.training.train_cases:runs", 2, all_arguments=on_two)
    if "one_rank" in names:
        run_ranks("tests.training.train_cases:runs", 1, all_arguments=[monitored(arguments, root)])
    return {name: root / name for name in names}


def monitored(arguments, root: Path) -> list[str]:
    """The command line of `one_rank`, whose numbers go to DeepSpeed's monitors too."""
    monitors = {"enabled": True, "output_path": str(root / "monitors")}
    preset = json.loads((ROOT / "ds_configs/zero2.json").read_text())
    preset |= {
        "csv_monitor": {**monitors, "job_name": "csv"},
        "tensorboard": {**monitors, "job_name": "tensorboard"},
    }
    (root / "monitored.json").write_text(json.dumps(preset))
    return arguments(
        root / "one_rank", "--training.micro_batch_size", "4", "--deepspeed", str(root / "monitored.json")
    )


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def steps(folder: Path) -> list[dict]:
    """Step records but for their times and memory."""
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "cpu_seconds", "memory_mib")}
        for line in lines(folder, "steps")
    ]


def kept_ids(folder: Path) -> list[set]:
    kept = [set() for _ in range(STEPS)]
    for line in lines(folder, "kept"):
        kept[line["step"]].add(line["id"])
    return kept


@pytest.mark.parametrize("name", [*RUNS, "one_rank"])
def test_a_run_records_every_step_and_evaluation(folders, name):
    records = steps(folders[name])
    assert [record["step"] for record in records] == list(range(STEPS))
    scored_at = (0, 2, 4) if name == "learned" else range(STEPS)
    assert [record["step"] for record in records if record["scored"]] == list(scored_at)
    assert [record["step"] for record in records if record["warmup"]] == [s for s in scored_at if s < 2]
    assert all(0 < record["num_kept"] <= 4 and record["train_loss"] > 0 for record in records)
    scored = [record for record in records if record["cosine"] is not None]
    assert scored and all(-1 <= record["cosine"] <= 1 and record["dropped"] == [] for record in scored)
    assert [line["step"] for line in lines(folders[name], "evaluations")] == [0, 3, 6]
    sums = [
        sum(line["weight"] for line in lines(folders[name], "kept") if line["step"] == step)
        for step in range(STEPS)
    ]
    assert sums == pytest.approx([1] * STEPS)


def test_two_runs_with_one_seed_write_identical_records(folders):
    for name in ("steps", "kept", "passed", "evaluations"):
        first, second = (
            steps(folders[run]) if name == "steps" else lines(folders[run], name) for run in ("lora", "again")
        )
        assert first == second, name


def test_another_stage_and_another_number_of_ranks_see_and_keep_the_same_candidates(folders):
    """fp32 sums come in another order; losses agree to 1e-3 after six steps of 1e-2, and no kept sample
    changes."""
    for name in ("one_rank", "zero3-lora"):
        for mine, other in zip(steps(folders["lora"]), steps(folders[name])):
            for key in (
                "candidate_tokens",
                "num_candidates",
                "num_kept",
                "epoch",
                "trained_tokens",
                "learning_rate",
            ):
                assert mine[key] == other[key], f"{name}, step {mine['step']}: {key}"
            assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
        assert kept_ids(folders["lora"]) == kept_ids(folders[name]), name


def test_a_mixture_is_counted_and_kept_by_its_shares(folders):
    """demo:pool holds 1,200 samples and demo:target 16; three quarters of what the run looks at are from the
    second."""
    folder = folders["mixture"]
    pool = json.loads((folder / "pool.json").read_text())
    assert pool["num_samples"] == 1216 == pytest.approx(sum(pool["by_source"].values()))
    # the kind of all 16, and of 307 in the pool
    assert pool["by_source"]["shelf"] == pytest.approx(912 + 304 * 307 / 1200)
    looked_at = [line["id"] for line in lines(folder, "kept")] + [
        i for line in lines(folder, "passed") for i in line["ids"]
    ]
    assert len(looked_at) == STEPS * NUM_CANDIDATES
    assert 0.55 < sum(i.startswith("target-") for i in looked_at) / len(looked_at) < 0.9
    assert [record["epoch"] for record in steps(folder)] == [
        step * NUM_CANDIDATES / 1216 for step in range(STEPS)
    ]
    identity = json.loads((folder / "finished.json").read_text())["identity"]
    assert identity["data.pool_weights"] == [1.0, 3.0] and identity["samples of each name in data.pool"] == [
        1200,
        16,
    ]


def curves(folder: Path) -> dict[str, list[float]]:
    """Numbers of the records by the names that the report's tables have for them."""
    run = read_run(folder)
    found = {
        name: run.steps[name].dropna().astype(float).tolist()
        for name in run.steps.select_dtypes(["number", "bool"])
    }
    return {**found, "test_loss": run.evaluations["loss"].tolist()}


def test_monitors_get_every_number_of_the_records_under_its_name(folders):
    """DeepSpeed's own CSV and TensorBoard writers; TensorBoard keeps float32."""
    expected, monitors = curves(folders["one_rank"]), folders["one_rank"].parent / "monitors"
    expected = {name: values for name, values in expected.items() if values and name != "step"}
    assert {
        "train_loss",
        "cosine",
        "effective_kept",
        "seconds_update",
        "memory_mib_gram",
        "test_loss",
    } <= expected.keys()
    written = EventAccumulator(str(monitors / "tensorboard")).Reload()
    ours = {tag for tag in written.Tags()["scalars"] if "/" not in tag}  # DeepSpeed's own have one
    assert ours == expected.keys()
    for name, values in expected.items():
        with open(monitors / "csv" / f"{name}.csv") as file:
            (_, header), *rows = csv.reader(file)
        assert header == name and [float(value) for _, value in rows] == pytest.approx(values, rel=1e-12), (
            name
        )
        assert [event.value for event in written.Scalars(name)] == pytest.approx(values, rel=1e-6), name
    assert [event.step for event in written.Scalars("train_loss")] == [
        4 * (step + 1) for step in range(STEPS)
    ]


@pytest.mark.parametrize("name", ["lora", "zero3-lora", "full", "zero3-full"])
def test_the_saved_model_loads_in_peft_or_transformers_and_has_the_recorded_held_out_loss(
    folders, model_folder, data_folder, name
):
    """Losses of single samples in float64 against padded ones in float32: 1e-5 of a loss of 4."""
    final = folders[name] / "final"
    model = AutoModelForCausalLM.from_pretrained(
        model_folder if "lora" in name else final, dtype=torch.float32
    )
    if "lora" in name:
        model = PeftModel.from_pretrained(model, final)
    tokenizer = AutoTokenizer.from_pretrained(final)
    records, _ = sources.read([f"{data_folder}/test.jsonl"], "error")
    samples, _ = tokenize_all(records, tokenizer, DataConfig(max_tokens=60))
    with torch.no_grad():
        loss = sum(sample_loss(model.eval(), sample).item() for sample in samples) / len(samples)
    before, *_, after = (line["loss"] for line in lines(folders[name], "evaluations"))
    assert loss == pytest.approx(after, abs=1e-4)
    assert abs(before - after) > 0.01, "the run changed nothing, so this test could not fail"


def test_a_method_without_gradients_needs_no_target_and_no_warm_up(
    run_ranks, arguments, model_folder, tmp_path
):
    """Against a reference model that is whole on each rank beside a model that ZeRO-3 splits."""
    changes = [
        "--selection.method",
        "rho_loss",
        "--selection.reference_model",
        model_folder,
        "--data.target",
        "[]",
        "--deepspeed",
        "ds_configs/zero3.json",
        "--training.steps",
        "2",
        "--run.save_model",
        "false",
    ]
    run_ranks("tests.training.train_cases:runs", 2, all_arguments=[arguments(tmp_path / "run", *changes)])
    records, kept = steps(tmp_path / "run"), lines(tmp_path / "run", "kept")
    assert [record["warmup"] for record in records] == [False, False] and len(kept) == 8
    assert all(record["candidate_loss"] > 0 and record["target_loss"] is None for record in records)
    assert all(record["cosine"] is None and record["fallback"] == 0 for record in records)
    assert {line["alignment"] for line in kept} == {None} and {line["weight"] for line in kept} == {0.25}


@pytest.fixture
def deepspeed_launcher(run_program):
    """Function of a module and its arguments: how two ranks of it ended."""
    launcher = ["deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(free_port()), "--module"]
    return lambda module, *arguments: run_program([*launcher, module, *arguments])


def test_the_deepspeed_launcher_gives_the_same_records(deepspeed_launcher, folders, arguments, tmp_path):
    ended = deepspeed_launcher("pipeline.train", *arguments(tmp_path / "run"))
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-4000:]
    assert steps(tmp_path / "run") == steps(folders["lora"])
    assert "self-check" in ended.stdout and "FAILED" not in ended.stdout


def test_a_rank_that_raises_alone_ends_the_others_under_the_launcher(deepspeed_launcher, arguments, tmp_path):
    ended = deepspeed_launcher(
        "tests.training.train_cases", "raise_on_one_rank", *arguments(tmp_path / "run")
    )
    assert ended.returncode != 0
    assert "KeyError: 'only here'" in ended.stderr, ended.stderr[-4000:]
    assert [record["step"] for record in steps(tmp_path / "run")] == [0, 1, 2]


def test_a_rank_that_stalls_ends_all_under_the_launcher_and_is_named(deepspeed_launcher, arguments, tmp_path):
    """Within run.timeout_seconds, the ten seconds for notes, and the 30 that DeepSpeed's launcher waits
    before it kills."""
    changed = arguments(tmp_path / "run", "--run.timeout_seconds", "20")
    ended = deepspeed_launcher("tests.training.train_cases", "stall_on_one_rank", *changed)
    assert ended.returncode != 0
    assert "no word from rank 1 in" in ended.stderr, ended.stderr[-4000:]
    assert [record["step"] for record in steps(tmp_path / "run")] == [0, 1, 2]
    left = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(tmp_path / "run") in (process.info["cmdline"] or [])
    ]
    assert left == []


def assert_all_fail(ended, message: str, code: int = 1) -> None:
    assert [end.code for end in ended] == [code] * len(ended), tails(ended)
    assert any(message in " ".join(end.output.split()) for end in ended), (
        f"no rank said '{message}'\n{tails(ended)}"
    )


def test_a_rank_that_raises_alone_ends_the_other_without_a_launcher(launch, arguments, tmp_path):
    ended = launch(
        "tests.processes:train",
        2,
        arguments=arguments(tmp_path / "run"),
        before="tests.training.train_cases:raise_on_one_rank",
    )
    assert [end.code for end in ended] == [1, 1], tails(ended)
    assert "KeyError: 'only here'" in ended[1].output


def test_a_loss_that_is_not_finite_ends_every_rank_with_the_step_and_the_remedy(launch, arguments, tmp_path):
    changes = (
        "--training.learning_rate",
        "1e30",
        "--selection.method",
        "random",
        "--training.gradient_clipping",
        "0",
    )
    ended = launch("tests.processes:train", 2, arguments=arguments(tmp_path / "run", *changes))
    assert_all_fail(ended, "no update was made. Lower training.learning_rate")
    assert len(steps(tmp_path / "run")) >= 1


def test_a_bit_that_flips_in_a_replica_ends_every_rank_at_the_next_comparison(launch, arguments, tmp_path):
    """At stage 0, where nothing puts it right: at 1 and 2 a rank gets what others update afresh in every
    step."""
    changes = ("--deepspeed", "ds_configs/zero0.json", "--training.verify_every", "2")
    before = "tests.training.train_cases:flip_a_bit_on_one_rank"
    ended = launch("tests.processes:train", 2, arguments=arguments(tmp_path / "run", *changes), before=before)
    assert_all_fail(ended, "after step 4 ranks [1] hold other parameters than the 1 ranks that agree")
    assert len(steps(tmp_path / "run")) == 4


def test_a_log_that_cannot_be_written_ends_every_rank_with_a_sentence(launch, arguments, tmp_path):
    before = "tests.training.train_cases:fill_the_log"
    ended = launch("tests.processes:train", 2, arguments=arguments(tmp_path / "run"), before=before)
    assert_all_fail(ended, "standard output cannot be written (No space left on device)")
    assert "Traceback" not in ended[0].output, tails(ended)


def test_a_failed_self_check_ends_every_rank_with_code_2_before_the_first_step(launch, arguments, tmp_path):
    before = "tests.training.train_cases:double_factors_on_one_rank"
    ended = launch("tests.processes:train", 2, arguments=arguments(tmp_path / "run"), before=before)
    assert_all_fail(ended, "self-check failed: factors equal autograd, sample by sample: on rank 1", code=2)
    assert not (tmp_path / "run" / "steps.jsonl").exists() or not steps(tmp_path / "run")


def test_a_setting_that_does_not_divide_ends_every_rank(launch, arguments, tmp_path):
    ended = launch(
        "tests.processes:train", 2, arguments=arguments(tmp_path / "run", "--selection.keep_per_step", "3")
    )
    assert_all_fail(
        ended,
        "selection.keep_per_step = 3 is not divisible by world size x training.micro_batch_size = 2 x 2",
    )


def test_a_folder_with_an_earlier_run_is_refused_on_every_rank_and_left_alone(launch, arguments, folders):
    before = (folders["lora"] / "steps.jsonl").read_bytes()
    ended = launch("tests.processes:train", 2, arguments=arguments(folders["lora"]))
    assert_all_fail(ended, "holds an earlier run; name another folder or set run.overwrite")
    assert (folders["lora"] / "steps.jsonl").read_bytes() == before


def test_a_model_that_is_not_there_ends_every_rank(launch, arguments, tmp_path):
    ended = launch(
        "tests.processes:train",
        2,
        arguments=arguments(tmp_path / "run", "--model.name", str(tmp_path / "nothing")),
    )
    assert_all_fail(ended, "nothing")


def test_a_spoiled_candidate_is_dropped_with_its_id_and_training_goes_on(
    run_ranks, arguments, data_folder, tmp_path
):
    rows = [json.loads(line) for line in Path(data_folder, "pool.jsonl").read_text().splitlines()]
    position = int(CandidateStream(rows, NUM_CANDIDATES, seed=0).positions(SPOILED_STEP)[5])
    rows[position]["completion"] = SPOILED_TOKEN * 3
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changed = arguments(tmp_path / "run", "--data.pool", f"[{pool}]")
    run_ranks("tests.training.train_cases:runs", 2, all_arguments=[changed], before="spoil_candidates")
    dropped = {record["step"]: record["dropped"] for record in steps(tmp_path / "run")}
    assert dropped == {step: [rows[position]["id"]] if step == SPOILED_STEP else [] for step in range(STEPS)}
    assert rows[position]["id"] not in kept_ids(tmp_path / "run")[SPOILED_STEP]
