"""A weighted step is DeepSpeed's own step where the weights are uniform, and scoring leaves no trace in
training."""

import pytest

from tests import selected
from tests.scoring.engine_cases import LR, Case
from tests.step.step_cases import STEPS

OFFLOAD = (("offload_optimizer", {"device": "cpu"}),)
PLAIN_CASES = [
    *(
        Case(stage, gradient_accumulation_steps=gas, note=f"accumulation{gas}")
        for stage in (0, 1, 2, 3)
        for gas in (1, 2)
    ),
    Case(1, "lora", note="accumulation1"),
    Case(3, "lora", gradient_accumulation_steps=2, note="accumulation2"),
    Case(2, zero=OFFLOAD, gradient_accumulation_steps=2, note="offload"),
    Case(3, checkpointing=True, note="checkpointing"),
]
BIT_CASES = [
    *(Case(stage, "lora", precision) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")),
    *(Case(stage, "full", gradient_accumulation_steps=2, note="accumulation") for stage in (0, 1, 2, 3)),
    Case(3, "lora", checkpointing=True, note="checkpointing"),
    Case(1, "full", "bf16", top=(("data_types", {"grad_accum_dtype": "fp32"}),), note="bf16_optimizer"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("deepspeed"))


@pytest.fixture(scope="module")
def against_plain(request, run_ranks, model_folder, folder):
    arguments = dict(
        cases=selected.cases(request, "case", PLAIN_CASES), model_folder=model_folder, folder=folder
    )
    return run_ranks("tests.step.step_cases:compare_with_plain", 2, **arguments)


@pytest.fixture(scope="module")
def against_unscored(request, run_ranks, model_folder, folder):
    arguments = dict(
        cases=selected.cases(request, "case", BIT_CASES), model_folder=model_folder, folder=folder
    )
    return run_ranks("tests.step.step_cases:compare_with_unscored", 2, **arguments)


@pytest.mark.parametrize("case", PLAIN_CASES, ids=str)
def test_all_candidates_at_uniform_weights_equal_the_plain_step(against_plain, case):
    """The samples are dealt to other ranks and micro-batches than in the plain loop, so sums round otherwise,
    at 1e-7 of a gradient; the smallest of them over their own roots leave up to 1e-5 of an update of 1e-2."""
    for name, (difference, moved) in against_plain[0][str(case)].items():
        assert moved > 0.5 * LR, f"{name} moved by {moved:.2e} only in {STEPS} steps of {LR}"
        assert difference < 3e-3 * moved, f"{name}: differs by {difference:.2e} after it moved by {moved:.2e}"


@pytest.mark.parametrize("case", BIT_CASES, ids=str)
def test_scoring_before_every_step_changes_no_bit_of_the_parameters(against_unscored, case):
    for rank, results in enumerate(against_unscored):
        found = results[str(case)]
        assert not found["scored"], (
            f"rank {rank}: {len(found['scored'])} parameters differ, first {found['scored'][0]}"
        )
        assert found["seeded otherwise"] != [], (
            "dropout was not at work: random numbers taken by scoring would not have shown"
        )


def test_a_loss_that_is_infinite_on_one_rank_stops_all_before_the_optimizer(run_ranks, model_folder, folder):
    for outcomes in run_ranks(
        "tests.step.step_cases:non_finite", 2, model_folder=model_folder, folder=folder
    ):
        for stage, outcome in enumerate(outcomes):
            assert outcome.startswith("step 0: the weighted loss is "), f"stage {stage}: {outcome}"
            assert "parameters moved" not in outcome and "training.learning_rate" in outcome, (
                f"stage {stage}: {outcome}"
            )
