"""The price of a run follows from its schedule, and from what one step of each kind costs."""

import pytest

from pipeline.planning.forecast import Forecast
from pipeline.planning.hardware import BUILT_IN
from pipeline.planning.price import Features, Price, num_scored, price
from pipeline.proposal import features
from pipeline.proposal.schedule import Adaptive
from tests.planning.plan_cases import sizes
from tests.reference import random_samples

H100 = BUILT_IN["h100"]
SCORING, STEP = (Forecast({"forward": seconds}, 0.0, 0.0) for seconds in (0.5, 0.1))


def fewest_of_100() -> int:
    """Step 0, then FACTOR times as far each time until it is LONGEST."""
    found, step, spacing = 0, 0, 1
    while step < 100:
        found, spacing = found + 1, min(Adaptive.LONGEST, spacing * Adaptive.FACTOR)
        step += spacing
    return found


@pytest.mark.parametrize(
    "selection, fewest, most",
    [
        ({"score_every": "auto"}, fewest_of_100(), 100),
        ({"score_every": 8}, 13, 13),  # 0, 8, 16 to 96
        ({"score_every": 1}, 100, 100),
        ({"score_every": "auto", "method": "max_loss"}, 100, 100),  # learns nothing about what scoring yields
        ({"score_every": "auto", "method": "random"}, 0, 0),
    ],
)
def test_scored_steps_are_those_of_the_schedule(selection, fewest, most):
    assert num_scored(sizes(selection)) == (fewest, most)


def test_a_run_costs_its_steps_and_what_is_made_before():
    found = Price(scored=6.0, unscored=1.5, num_steps=10, num_scored=(2, 10), features=5.0)
    assert found.run == pytest.approx(((2 * 6.0 + 8 * 1.5 + 5.0) / 10, (10 * 6.0 + 5.0) / 10))


def test_samples_as_they_come_cost_the_scoring_alone():
    found = price(SCORING, STEP, sizes({"proposal": "uniform", "score_every": 4}), H100)
    assert (found.scored, found.unscored) == pytest.approx((6.0, 1.0), abs=0)
    assert found.run == pytest.approx(((25 * 6.0 + 75) / 100,) * 2)


def test_a_learned_proposal_costs_a_window_in_every_step_and_a_regression_in_scored_ones():
    run = sizes({"proposal": "learned", "pool_share": 0.125, "score_every": 1})
    found = price(SCORING, STEP, run, H100, Features(1000.0, 200, 4))
    d = features.NUM_FEATURES
    window = 2 * d * 2 * 8 / H100.host_flops  # 2 kept of 16
    assert found.unscored == pytest.approx(1 + window / 0.1, rel=1e-12)
    regression = (2 * 4 * d**2 + 2 / 3 * d**3) / H100.host_flops
    assert found.scored == pytest.approx(1 + (0.5 + 2 * window + regression) / 0.1, rel=1e-12)
    assert found.run[0] == pytest.approx(found.scored + 0.2 / 0.1 / 100)


def test_features_take_the_bytes_that_are_said():
    table = features.make(random_samples([9, 4, 7], seed=0), random_samples([5, 6], seed=1))
    assert Features(1.0, 20, 3).num_bytes == table.features_Nd.nbytes
