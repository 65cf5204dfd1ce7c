"""SelectionTrainer trains as Trainer does, and selects as SelectionHook does, with DeepSpeed, under DDP and
in one process."""

import os
import re
from importlib.util import find_spec

import pytest

from tests import selected
from tests.integrations.trainer_cases import LR, STEPS, Way
from tests.processes import free_port

WAYS = [Way(), Way(1), Way(2), Way(3)]
OWN_LOOPS = [
    Way(),
    Way(2, gradient_accumulation_steps=1),
    Way(2, gradient_accumulation_steps=1, learned=True),
]
RESUMED = [Way(lora=True), Way(2), Way(learned=True), Way(2, learned=True), Way(1, learned=True)]
LOADED = [Way(learned=True)]
ALONE = [Way(), Way(precision="bf16", gradient_accumulation_steps=1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("trainer"))


@pytest.fixture(scope="module")
def on_two_ranks(request, run_ranks, model_folder, folder):
    """Rank by rank, by what a way was compared with: what was seen, by way."""
    asked = selected.parameters(request)
    ways = {
        name: [way for way in every if any(given.get(name) == way for given in asked)]
        for name, every in {
            "plain": WAYS,
            "own": OWN_LOOPS,
            "resumed": RESUMED,
            "loaded": LOADED,
        }.items()
    }
    arguments = dict(ways=ways, model_folder=model_folder, folder=folder)
    return run_ranks("tests.integrations.trainer_cases:on_two_ranks", 2, **arguments)


@pytest.fixture(scope="module")
def alone(run_ranks, model_folder, folder):
    return run_ranks(
        "tests.integrations.trainer_cases:alone", 1, model_folder=model_folder, folder=folder, own=ALONE
    )[0]


@pytest.mark.parametrize("plain", WAYS, ids=str)
def test_a_trainer_that_keeps_all_candidates_is_the_plain_trainer_on_the_mean_of_the_samples(
    on_two_ranks, plain
):
    """Samples are dealt to other ranks and micro-batches, so sums round otherwise: as in
    test_weighted_step.py."""
    for results in on_two_ranks:
        found = results["plain"][plain]
        assert (
            found["losses"][0] == pytest.approx(found["losses"][1], rel=1e-4)
            and len(found["losses"][0]) == STEPS
        )
        for name, (difference, moved) in found["parameters"].items():
            assert moved > LR, f"{name} moved by {moved:.2e} only in {STEPS} steps of {LR}"
            assert difference < 3e-3 * moved, (
                f"{name}: differs by {difference:.2e} after it moved by {moved:.2e}"
            )


@pytest.mark.parametrize("own", OWN_LOOPS, ids=str)
def test_a_trainer_selects_and_trains_as_the_library_does_in_a_loop_of_ones_own(on_two_ranks, own):
    first, second = (results["own"][own] for results in on_two_ranks)
    assert first["own"] == second["own"]
    for found in (first, second):
        check_own_loop(found)
        assert found.get("plans") == found.get("own plans")
    if own.learned:
        assert {is_scored for is_scored, *_ in first["plans"]} == {True, False}


def test_a_trainer_in_one_process_does_so_too(alone):
    check_own_loop(alone["own"][ALONE[0]])


def check_own_loop(found: dict) -> None:
    assert len(found["selections"]) == len(found["own"]) == STEPS
    for (indices, weights), (own_indices, own_weights) in zip(found["selections"], found["own"]):
        assert indices == own_indices
        assert weights == pytest.approx(own_weights, abs=1e-4)
    assert any(len(set(weights)) > 1 for _, weights in found["selections"]), (
        "every selection was a uniform draw"
    )
    for name, (difference, moved) in found["parameters"].items():
        assert difference < 3e-3 * moved, f"{name}: differs by {difference:.2e} after it moved by {moved:.2e}"


@pytest.mark.parametrize("own", OWN_LOOPS[:1], ids=str)
def test_a_trainer_logs_what_selection_saw(on_two_ranks, own):
    training = [entry for entry in on_two_ranks[0]["own"][own]["log"] if "loss" in entry]
    assert len(training) == STEPS
    for entry in training:
        assert 0 < entry["selection_kept"] <= 4
        assert (
            0 < entry["selection_cosine"] <= 1
            and 0 <= entry["selection_residual"] <= 1
            and entry["selection_seconds"] > 0
        )


@pytest.mark.parametrize("own", OWN_LOOPS[2:], ids=str)
def test_a_trainer_logs_what_the_proposal_is_worth(on_two_ranks, own):
    """``epoch`` counts updates, three in each; ``selection_epoch`` what was read of the order before."""
    found = on_two_ranks[0]["own"][own]
    training, read = [entry for entry in found["log"] if "loss" in entry], 0
    assert len(training) == STEPS
    for step, (entry, (is_scored, _, window, _)) in enumerate(zip(training, found["plans"])):
        assert (entry["selection_scored"], entry["selection_window"]) == (is_scored, window)
        assert entry["epoch"] == pytest.approx((step + 1) / 3, abs=0.01)
        assert entry["selection_epoch"] == pytest.approx(read / 24)
        read += window
    for entry in training:
        for name in ("cosine", "cosine_of_proposed", "cosine_of_explored", "predicted_correlation"):
            assert (f"selection_{name}" in entry) == bool(entry["selection_scored"]), (name, entry)


@pytest.mark.parametrize("resumed", RESUMED, ids=str)
def test_a_trainer_that_resumes_goes_on_bit_for_bit(on_two_ranks, resumed):
    """From the middle of an epoch and from its beginning, with dropout: what is proposed and selected, random
    states, Adam's state and learning rates all come back."""
    for results in on_two_ranks:
        for step in (2, 3) if resumed.learned else (2,):
            found = results["resumed"][resumed][step]
            assert found["plans"][0] == found["plans"][1]
            assert len(found["plans"][0]) == (STEPS - step if resumed.learned else 0)
            assert found["selections"][0] == found["selections"][1]
            assert len(found["selections"][0]) == STEPS - step
            assert found["losses"][0] == found["losses"][1]
            assert not found["differ"]


@pytest.mark.parametrize("resumed", [RESUMED[2]], ids=str)
def test_a_trainer_does_not_go_on_with_other_rows_than_its_checkpoint(on_two_ranks, resumed):
    for results in on_two_ranks:
        message = results["resumed"][resumed]["otherwise"]
        assert "checkpoint-2 has selection_state.pt, and by selection.proposal" in message


@pytest.mark.parametrize("loaded", LOADED, ids=str)
def test_proposals_do_not_depend_on_the_loader(on_two_ranks, loaded):
    for results in on_two_ranks:
        plain, with_workers, dispatched = results["loaded"][loaded]
        assert plain == with_workers == dispatched and len(plain) == STEPS


def test_a_trainer_that_proposes_the_plain_order_is_the_one_that_loads_it(alone):
    """Over two epochs: its sampler's order, its collator, the rotation of the target."""
    found = alone["asked"]
    assert found["loaded"][:2] == found["asked"][:2] and len(found["plans"]) == STEPS
    assert not found["differ"]


def test_selection_takes_no_more_than_its_share_of_the_time(alone):
    """Both kinds of seconds reach the schedule, those of all updates, and of nothing beside them."""
    found = alone["bounded"]
    assert found["scored"] == [True] + [False] * (STEPS - 1)
    selection_seconds, total_seconds = found["seconds"]
    assert 0 < selection_seconds < total_seconds < found["runtime"]


def test_rows_of_a_stream_are_all_scored_by_default(alone):
    assert len(alone["stream"]) == 2 and all(cosine > 0 for cosine in alone["stream"])


def test_a_trainer_under_bf16_autocast_scores_as_it_trains(alone):
    """The self-check has compared factors with autograd; the first update's loss is that of the fp32 run, up
    to rounding."""
    fp32, bf16 = (alone["own"][way] for way in ALONE)
    assert bf16["losses"][0] == pytest.approx(fp32["losses"][0], rel=0.02)
    assert all(0 < entry["selection_cosine"] <= 1.01 for entry in bf16["log"] if "selection_cosine" in entry)
    assert sum("selection_cosine" in entry for entry in bf16["log"]) == STEPS


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"keep": 8},
            "selection.keep_per_step = 8, and one update trains on per_device_train_batch_size x .* = "
            "2 x 2 x 1 = 4 samples",
        ),
        (
            {"candidates": 9},
            "selection.candidates_per_step = 9 is no multiple of gradient_accumulation_steps x world size = "
            "2 x 1",
        ),
        ({"candidates": 2}, "selection.keep_per_step = 4 is more than selection.candidates_per_step = 2"),
        (
            {"has_targets": False},
            "selection.method = filter_then_weight needs examples to aim at: give target_dataset",
        ),
        ({"score_every": 0}, "selection.score_every is 0: the smallest value is 1"),
        (
            {"seed_scores": "scores.parquet"},
            "selection does not go with selection.seed_scores = scores.parquet: leave it out: rows of",
        ),
        (
            {"proposal": "bm25"},
            "selection does not go with selection.proposal = bm25 in a Trainer, .*: give it the rows",
        ),
        (
            {"proposal": "learned", "method": "max_loss"},
            "selection.proposal = learned learns from a Gram, and selection.method = max_loss forms none",
        ),
        (
            {"proposal": "learned", "is_stream": True},
            "selection.proposal = learned asks for rows by their positions, and train_dataset is a stream "
            r"\(Stream\): set it to uniform",
        ),
        (
            {"score_every": 3, "is_stream": True},
            "selection.score_every = 3 asks for rows by their positions, .*: set it to 1",
        ),
        (
            {"proposal": "learned", "num_rows": 6},
            "train_dataset has 6 rows, fewer than selection.candidates_per_step = 8",
        ),
        ({"label_smoothing_factor": 0.1}, "selection does not go with label_smoothing_factor: set it to 0"),
        (
            {"auto_find_batch_size": True},
            "selection does not go with auto_find_batch_size: set per_device_train_batch_size",
        ),
    ],
)
def test_a_trainer_refuses_what_contradicts_selection_and_names_both_places(alone, changes, message):
    assert re.search(message, alone["refused"][str(changes)]), alone["refused"][str(changes)]


def test_a_trainer_evaluates_predicts_and_calls_back_as_it_always_does(alone):
    assert alone["evaluation"]["eval_loss"] == pytest.approx(alone["evaluation"]["plain"], rel=1e-6)
    assert alone["evaluation"]["events"] == ["step_begin", "substep_end", "step_end"] * 2
    assert alone["evaluation"]["epochs"] == [pytest.approx(1.0)], "24 samples are 3 updates of 8 candidates"


EXAMPLE_ENDS = r"20 updates, \d+% of them scored; last cosine [01]\.\d+"
LAUNCHED = ["--module", "tests.integrations.launched"]
LAUNCHERS = {
    "deepspeed": ["deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", "{port}", *LAUNCHED],
    "accelerate": [  # without --multi_gpu it starts one process where there is no GPU
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "{port}",
        *LAUNCHED,
    ],
}


@pytest.mark.parametrize("launcher, stage", [("deepspeed", "2"), ("accelerate", "3")])
def test_the_trainer_example_runs_under_both_launchers(run_program, launcher, stage, tmp_path):
    port = free_port()
    program = [word.format(port=port) for word in LAUNCHERS[launcher]]
    ended = run_program([*program, "examples/trainer.py"], OUTPUT=str(tmp_path), ZERO_STAGE=stage)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    assert len(re.findall(EXAMPLE_ENDS, ended.stdout)) == 1, ended.stdout[-2000:]
    assert not [name for name in os.listdir("/dev/shm") if f"_{port}_" in name]


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed: pip install 'trl>=1.16,<2'")
def test_the_sft_trainer_example_runs(run_program, tmp_path):
    ended = run_program(["tests.integrations.launched", "examples/sft.py"], OUTPUT=str(tmp_path))
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    assert re.search(EXAMPLE_ENDS, ended.stdout), ended.stdout[-2000:]
    assert "mean_token_accuracy" in ended.stdout and "selection_cosine" in ended.stdout


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed: pip install 'trl>=1.16,<2'")
def test_the_sft_trainer_takes_the_step_of_the_plain_trainer(run_ranks, model_folder, folder):
    found = run_ranks("tests.integrations.trainer_cases:sft", 1, model_folder=model_folder, folder=folder)[0]
    assert found["losses"] == pytest.approx(found["plain losses"], rel=1e-4) and len(found["losses"]) == STEPS
    # With proposals that learn: three batches of 8 candidates are two updates, the second a short one.
    assert {is_scored for is_scored, _ in found["learning"]} == {0, 1} and len(found["learning"]) == STEPS
    for step, (is_scored, kept) in enumerate(found["learning"]):
        most = 4 if step % 2 else 8
        assert 0 < kept <= most if is_scored else kept == most, (step, found["learning"])
    for name, (difference, moved) in found["parameters"].items():
        assert difference < 3e-3 * moved, f"{name}: differs by {difference:.2e} after it moved by {moved:.2e}"
    assert found["packing"].startswith("ValueError: selection does not go with packing: set it to False")


def test_a_fused_loss_without_logits_is_refused():
    from pipeline.integrations.trainer import _loss_by_sample

    with pytest.raises(ValueError, match="the model gives loss and no logits"):
        _loss_by_sample({"loss": 1.0}, None)
