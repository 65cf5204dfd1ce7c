"""One call makes the step that its stages make one by one."""

import pytest

from tests.scoring.engine_cases import Case
from tests.step.train_step_cases import SCORED, STEPS


@pytest.fixture(scope="module")
def ranks(run_ranks, model_folder, tmp_path_factory):
    arguments = dict(model_folder=model_folder, folder=str(tmp_path_factory.mktemp("steps")))
    return run_ranks("tests.step.train_step_cases:stories", 2, case=Case(2, "lora"), **arguments)


def test_one_call_is_its_stages_bit_for_bit(ranks):
    """Positions, selections, hashes, losses, norms and parameters, over scored steps and others, with a
    target example in each update."""
    for found in ranks:
        assert found["one call"][:3] == found["by stages"][:3] and len(found["one call"][0]) == STEPS
    assert ranks[0]["one call"][:3] == ranks[1]["one call"][:3]


def test_the_proposal_observes_the_cosines_of_scored_steps_on_rank_0_alone(ranks):
    assert ranks[0]["one call"][3] == ranks[0]["by stages"][3] and len(ranks[0]["one call"][3]) == len(SCORED)
    assert ranks[1]["one call"][3] == []


def test_targets_rotate_with_the_looks_and_projections_are_drawn_anew_at_each(ranks):
    """A target's turn is not skipped where steps are not scored."""
    asked = set(ranks[0]["one call"][2])
    wanted = [(f"projections of 3 {step}", f"targets of look {turn}") for turn, step in enumerate(SCORED)]
    assert asked == {sentence for pair in wanted for sentence in pair}
