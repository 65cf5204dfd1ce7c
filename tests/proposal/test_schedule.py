import pytest

from pipeline.config import SelectionConfig
from pipeline.proposal.schedule import Adaptive, Bounded, Every, Evidence, schedule_of


def run(schedule, num_steps, evidence_at) -> list[int]:
    """Steps that were scored."""
    scored = []
    for step in range(num_steps):
        if schedule.is_scored(step):
            scored.append(step)
            schedule.observe(step, evidence_at(step))
    return scored


@pytest.mark.parametrize(
    "spacing, scored", [(1, list(range(12))), (3, [0, 3, 6, 9]), (8, [0, 8]), (100, [0])]
)
def test_the_first_then_every_so_many(spacing, scored):
    assert run(Every(spacing), 12, lambda step: Evidence(1.0, 0.1)) == scored


def test_every_step_is_scored_as_long_as_that_pays():
    assert run(Adaptive(), 40, lambda step: Evidence(0.9, 0.1)) == list(range(40))
    assert run(Adaptive(), 40, lambda step: Evidence(0.1, -0.1)) == list(range(40))


def test_scoring_grows_rare_where_the_proposal_is_as_good():
    scored = run(Adaptive(), 150, lambda step: Evidence(0.9, 0.8))
    assert scored == [0, 8, 40, 72, 104, 136]


def test_a_selection_that_only_fits_noise_does_not_pay():
    assert len(run(Adaptive(), 150, lambda step: Evidence(-0.1, -0.5))) < 8


def test_scoring_comes_back_when_the_proposal_fails():
    scored = run(Adaptive(), 400, lambda step: Evidence(0.9, 0.8 if step < 100 else 0.0))
    assert scored[-20:] == list(range(380, 400))


def test_without_evidence_the_distance_is_a_constant():
    assert run(Adaptive(), 30, lambda step: None) == [0, 8, 16, 24]


def test_the_state_comes_back():
    one, other = Adaptive(), Adaptive()
    run(one, 20, lambda step: Evidence(0.9, 0.5))
    other.load_state_dict(one.state_dict())
    later = [[step for step in range(20, 90) if each.is_scored(step)] for each in (one, other)]
    assert later[0] == later[1] and one.state_dict() == other.state_dict()


def test_settings_name_the_rule():
    assert isinstance(schedule_of(SelectionConfig()), Adaptive)
    assert schedule_of(SelectionConfig(score_every=4)).spacing == 4
    assert schedule_of(SelectionConfig(time_share=0.2)).time_share == 0.2


@pytest.mark.parametrize("time_share", [0.1, 0.3, 0.8])
def test_selection_keeps_to_its_share_of_the_time(time_share):
    """A look takes four times what an update takes."""
    bounded, scored, spent = Bounded(Every(1), time_share), 0, [0.0, 0.0]
    for step in range(400):
        is_scored = bounded.is_scored(step)
        scored += is_scored
        bounded.spend(4.0 * is_scored, 1.0 + 4.0 * is_scored)
        spent = [spent[0] + 4.0 * is_scored, spent[1] + 1.0 + 4.0 * is_scored]
    assert bounded.is_scored(0) or scored > 1
    assert spent[0] / spent[1] == pytest.approx(time_share, abs=0.02)
    other = Bounded(Every(1), time_share)
    other.load_state_dict(bounded.state_dict())
    assert vars(other)["selection_seconds"] == spent[0] and other.is_scored(400) == bounded.is_scored(400)


def test_a_bound_never_asks_for_more_looks_than_pay():
    bounded = Bounded(Adaptive(), 1.0)
    scored = run(bounded, 80, lambda step: Evidence(0.9, 0.8))
    assert scored == [0, 8, 40, 72]
