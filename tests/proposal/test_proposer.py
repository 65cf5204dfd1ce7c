# C candidates, K kept
"""Plans of a proposer: the plain order is read without gaps, and state puts it back."""

import pickle

import numpy as np
import pytest

from pipeline.config import SelectionConfig
from pipeline.data.stream import CandidateStream
from pipeline.proposal.features import NUM_FEATURES
from pipeline.proposal.learned import Learned
from pipeline.proposal.proposer import Proposer, cosines
from pipeline.proposal.schedule import Adaptive, Every
from pipeline.proposal.uniform import Uniform
from pipeline.selection.contract import Signals
from pipeline.selection.halves import Halves

N, C, K = 50, 8, 4
RNG = np.random.default_rng(0)
FEATURES_Nd = RNG.normal(size=(N, NUM_FEATURES)).astype(np.float16)
GRADIENTS_Nm, HALF = RNG.normal(size=(N, 5)), RNG.normal(size=5)


def proposer(method="filter_then_weight", proposal=None, schedule=None):
    settings = SelectionConfig(method=method, candidates_per_step=C, keep_per_step=K)
    stream = CandidateStream(range(N), C, seed=3)
    return Proposer(stream, settings, proposal or Uniform(), schedule or Every(1), seed=3)


def learning():
    return proposer(proposal=Learned(FEATURES_Nd, 0.2, True), schedule=Adaptive())


def signals_of(positions_C) -> Signals:
    rows, target = GRADIENTS_Nm[positions_C], np.ones(5)
    return Signals(rows @ rows.T, rows @ target, 5.0)


def walk(one: Proposer, steps: range) -> list:
    plans = []
    for step in steps:
        plan = one.plan(step)
        plans.append((plan.is_scored, plan.turn, plan.epoch, plan.proposed.positions_n.tolist()))
        if plan.is_scored:
            found = signals_of(plan.proposed.positions_n)
            rows, halves_2m = GRADIENTS_Nm[plan.proposed.positions_n], np.array([HALF, 2 - HALF])
            halves = Halves(halves_2m @ rows.T, halves_2m @ halves_2m.T)
            one.observe(plan, found, halves, np.full((2, C), 1 / C))
    return plans


def test_uniform_with_every_step_scored_is_the_stream_of_old():
    one = proposer()
    for step in range(20):
        plan = one.plan(step)
        assert plan.is_scored and plan.proposed.positions_n.tolist() == one.stream.positions(step).tolist()
        assert plan.epoch == step * C / N and plan.proposed.window == C


def test_steps_read_the_plain_order_without_gaps_whatever_they_need():
    one = proposer(schedule=Every(3))
    sizes = [len(one.plan(step).proposed.positions_n) for step in range(7)]
    assert sizes == [C, K, K, C, K, K, C] and one.place == sum(sizes)
    again = proposer(schedule=Every(3))
    found = np.concatenate([again.plan(step).proposed.positions_n for step in range(7)])
    assert found.tolist() == one.stream.order(0, sum(sizes)).tolist()


@pytest.mark.parametrize("method", ["random", "full"])
def test_methods_that_look_at_nothing_get_all_candidates_at_each_step(method):
    one = proposer(method, schedule=Every(4))
    assert [len(one.plan(step).proposed.positions_n) for step in range(6)] == [C] * 6


def test_a_state_taken_anywhere_goes_on_as_if_nothing_had_happened():
    whole = walk(learning(), range(60))
    assert {scored for scored, *_ in whole} == {True, False}
    for cut in (0, 1, 2, 7, 31):
        first, second = learning(), learning()
        before = walk(first, range(cut))
        second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
        assert before + walk(second, range(cut, 60)) == whole, cut


def test_a_state_is_not_changed_by_what_comes_after_it():
    one = learning()
    walk(one, range(5))
    state = one.state_dict()
    frozen = pickle.dumps(state)
    walk(one, range(5, 30))
    assert pickle.dumps(state) == frozen


def test_cosines_are_those_of_the_gradients():
    positions = np.array([4, 9, 0])
    rows, target = GRADIENTS_Nm[positions], np.ones(5)
    wanted = rows @ target / np.linalg.norm(rows, axis=1) / np.linalg.norm(target)
    assert np.allclose(cosines(signals_of(positions)), wanted)


def test_cosines_without_a_meaning_are_no_numbers():
    signals = Signals(np.diag([0.0, np.inf, 1.0]), np.array([0.0, 1.0, 0.5]), 1.0)
    assert np.isnan(cosines(signals)[0]) and cosines(signals)[2] == 0.5


def test_a_proposal_that_has_given_up_is_still_judged():
    one = learning()
    one.proposal.gave_up = True
    plans = walk(one, range(60))
    assert sum(scored for scored, *_ in plans) >= 3


def test_evidence_does_without_candidates_that_are_not_finite():
    one = learning()
    plan = one.plan(0)
    found, rows = signals_of(plan.proposed.positions_n), GRADIENTS_Nm[plan.proposed.positions_n]
    halves_2m = np.array([HALF, 2 - HALF])
    halves = Halves(halves_2m @ rows.T, halves_2m @ halves_2m.T)
    found.gram_CC[2], found.gram_CC[:, 2], halves.alignment_2C[:, 2] = np.nan, np.nan, np.nan
    weights_2C = np.zeros((2, C))
    weights_2C[:, 0] = 1
    assert one._evidence(plan, found.gram_CC, halves, weights_2C) is not None
    halves.alignment_2C[:] = np.nan
    assert one._evidence(plan, found.gram_CC, halves, weights_2C) is None


def test_updates_with_target_examples_take_fewer_from_the_pool():
    one = proposer(schedule=Every(2))
    one.num_mixed = 1
    assert [len(one.plan(step).proposed.positions_n) for step in range(4)] == [C, K - 1, C, K - 1]


def test_a_look_without_signals_counts_as_a_turn_and_teaches_nothing():
    one = learning()
    plan = one.plan(0)
    assert one.observe(plan, None) == []
    assert one.num_scored == 1 and not one.proposal.observed and one.plan(1).turn == 1
