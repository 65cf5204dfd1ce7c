"""One call makes the step that its stages make one by one."""

import pytest

from tests.scoring.engine_cases import Case
from tests.step.train_step_cases import SCORE_EVERY, STEPS


@pytest.fixture(scope="module")
def ranks(run_ranks, model_folder, tmp_path_factory):
    arguments = dict(model_folder=model_folder, folder=str(tmp_path_factory.mktemp("steps")))
    return run_ranks("tests.step.train_step_cases:stories", 2, case=Case(2, "lora"), **arguments)


def test_one_call_is_its_stages_bit_for_bit(ranks):
    """Selections, hashes, losses, norms and parameters, in and after warm-up, with two steps to a look."""
    for found in ranks:
        assert found["one call"] == found["by stages"] and len(found["one call"][0]) == STEPS
    seen = ranks[0]["one call"][0]
    assert [step[2] for step in seen] == [True, True, False, False], "warm-up lasts for two steps"
    assert len({step[1] for step in seen}) == STEPS, "each step trains on something else"
    assert ranks[0]["one call"] == ranks[1]["one call"]


def test_targets_rotate_with_the_looks_and_projections_are_drawn_anew_at_each(ranks):
    """Looks at steps 0 and 2; a target's turn is not skipped where a look serves two steps."""
    asked = dict.fromkeys(ranks[0]["one call"][2])
    assert list(asked) == [
        "projections of 3 0",
        "targets of look 0",
        "projections of 3 2",
        "targets of look 1",
    ]


def test_a_step_between_two_looks_asks_for_the_latest(ranks):
    wanted = (
        f"step {STEPS + 1} lies between two looks (selection.score_every = {SCORE_EVERY}): give the latest"
    )
    assert ranks[0]["no look"] == ranks[1]["no look"] == wanted
