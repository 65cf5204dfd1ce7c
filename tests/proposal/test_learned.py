# N samples, d features
"""The learned proposal on pools whose worth is known."""

import numpy as np
import pytest

from pipeline.data.stream import CandidateStream
from pipeline.proposal.features import NUM_FEATURES, SIMILARITIES
from pipeline.proposal.learned import ENOUGH_EXPLORED, ENOUGH_STEPS, EXPLORED, STEPS_AT_ONCE, Learned

N = 400
RNG = np.random.default_rng(3)
FEATURES_Nd = RNG.normal(size=(N, NUM_FEATURES)).astype(np.float16)
WORTH_N = FEATURES_Nd[:, SIMILARITIES + 10].astype(float)  # a feature that the prior does not know


class Upcoming:
    """Places of a seeded order, read one after the other."""

    def __init__(self, num_samples=N):
        self.stream, self.place = CandidateStream(range(num_samples), 1, seed=7), 0

    def __call__(self, count):
        self.place += count
        return self.stream.order(self.place - count, count)


def rng(step):
    return np.random.default_rng((0, step))


def test_unscored_steps_share_the_most_similar_of_one_window():
    learned, upcoming, again = Learned(FEATURES_Nd, 0.25, has_prior=True), Upcoming(), Upcoming()
    found = [learned.propose(upcoming, 8, False, rng(step)) for step in range(STEPS_AT_ONCE + 1)]
    window = again(32 * STEPS_AT_ONCE)
    likeness = FEATURES_Nd[window, :SIMILARITIES].astype(float).sum(1)
    best = window[np.argsort(-likeness, kind="stable")[: 8 * STEPS_AT_ONCE]]
    dealt = np.concatenate([each.positions_n for each in found[:-1]])
    assert sorted(dealt.tolist()) == sorted(best.tolist()) and dealt.tolist() != best.tolist()
    assert [each.window for each in found] == [len(window), *[0] * (STEPS_AT_ONCE - 1), len(window)]
    assert not any(each.is_explored_n.any() for each in found)
    wanted = FEATURES_Nd[found[0].positions_n, :SIMILARITIES].astype(float).sum(1)
    assert np.allclose(found[0].predicted_n, wanted)


def test_a_narrow_share_of_a_small_pool_is_not_widened_by_planning_ahead():
    """8 of 400 are worth it: one step's, so each step has a window of its own."""
    learned, upcoming = Learned(FEATURES_Nd, 0.02, has_prior=True), Upcoming()
    assert [learned.propose(upcoming, 8, False, rng(step)).window for step in range(3)] == [400] * 3


def test_what_is_observed_ends_the_plan_of_older_weights():
    learned, upcoming = Learned(FEATURES_Nd, 0.25, has_prior=True), Upcoming()
    learned.propose(upcoming, 8, False, rng(0))
    scored = learned.propose(upcoming, 16, True, rng(1))
    assert len(learned.queue) == 8 * (STEPS_AT_ONCE - 1)
    learned.observe(scored, WORTH_N[scored.positions_n])
    assert learned.propose(upcoming, 8, False, rng(2)).window > 0


def test_a_scored_step_takes_some_of_its_samples_at_random_from_the_window():
    learned, window = Learned(FEATURES_Nd, 0.25, has_prior=True), Upcoming()(64)
    found = learned.propose(Upcoming(), 16, True, rng(0))
    explored = found.positions_n[found.is_explored_n]
    assert len(explored) == EXPLORED * 16 and set(explored) <= set(window)
    rest = window[~np.isin(window, explored)]
    likeness = FEATURES_Nd[rest, :SIMILARITIES].astype(float).sum(1)
    best = rest[np.argsort(-likeness, kind="stable")[: 16 - len(explored)]]
    assert found.positions_n[~found.is_explored_n].tolist() == best.tolist()
    others = [tuple(learned.propose(Upcoming(), 16, True, rng(s)).positions_n) for s in range(4)]
    assert len(set(others)) == 4 and tuple(found.positions_n) == others[0]


def test_a_prior_that_knows_nothing_is_overruled_by_what_is_observed():
    for has_prior in (True, False):
        learned, upcoming = Learned(FEATURES_Nd, 0.25, has_prior), Upcoming()
        before = learned.propose(upcoming, 8, False, rng(0)).positions_n
        for step in range(12):
            found = learned.propose(upcoming, 16, True, rng(step))
            assert learned.observe(found, WORTH_N[found.positions_n]) == []
        after = learned.propose(upcoming, 8, False, rng(20)).positions_n
        assert WORTH_N[after].mean() > 0.7 > abs(WORTH_N[before].mean()), has_prior


def test_an_observed_sample_counts_for_itself_when_it_comes_again():
    learned = Learned(np.zeros((N, NUM_FEATURES), np.float16), 0.5, has_prior=False)
    found = learned.propose(Upcoming(), 4, True, rng(0))
    learned.observe(found, np.array([1.0, -1.0, 1.0, 1.0]))
    assert learned.predict(found.positions_n).tolist() == [0.5, -0.5, 0.5, 0.5]
    other = np.setdiff1d(np.arange(N), found.positions_n)
    assert not learned.predict(other).any()


def test_values_are_cosines_over_their_root_mean_square_within_bounds():
    learned = Learned(FEATURES_Nd, 0.5, has_prior=False)
    found = learned.propose(Upcoming(), 8, True, rng(0))
    cosine = np.array([0.4, -0.4, 0.1, 0.0, -0.2, np.nan, 0.1, 0.9])
    learned.observe(found, cosine)
    scale = np.sqrt(np.nanmean(cosine**2))
    wanted = np.clip(cosine / scale, -1, 2)
    known = {p: v for p, v in zip(found.positions_n.tolist(), wanted.tolist()) if np.isfinite(v)}
    assert learned.observed == pytest.approx(known)


def test_all_zero_or_no_finite_cosines_teach_nothing():
    learned = Learned(FEATURES_Nd, 0.5, has_prior=True)
    found = learned.propose(Upcoming(), 4, True, rng(0))
    before = learned.ridge.weights_d.copy()
    for cosine in (np.zeros(4), np.full(4, np.nan)):
        assert learned.observe(found, cosine) == [] and np.array_equal(learned.ridge.weights_d, before)


def test_a_proposal_no_better_than_chance_gives_up_and_says_so():
    learned, upcoming, said, explored = Learned(FEATURES_Nd, 0.25, has_prior=True), Upcoming(), [], 0
    noise = np.random.default_rng(5)
    while not said:
        found = learned.propose(upcoming, 16, True, rng(explored))
        explored += int(found.is_explored_n.sum())
        said = learned.observe(found, noise.normal(size=16))
        assert explored <= 10 * ENOUGH_EXPLORED
    assert explored >= ENOUGH_EXPLORED and len(said) == 1
    assert said[0].startswith("the proposal does not help: over ") and "from here on samples come" in said[0]
    place = upcoming.place
    found = learned.propose(upcoming, 8, False, rng(0))
    assert found.positions_n.tolist() == Upcoming().stream.order(place, 8).tolist() and found.window == 8
    assert found.is_explored_n.all()
    assert learned.observe(found, noise.normal(size=8)) == [], "said once"


def test_samples_at_random_are_a_draw_from_the_whole_window():
    """Not from what the best have left: over many draws their mean prediction is the window's."""
    learned, window = Learned(FEATURES_Nd, 1.0, has_prior=True), np.arange(16)
    found = [learned.propose(lambda count: window[:count], 16, True, rng(step)) for step in range(2000)]
    explored = [each.predicted_n[each.is_explored_n].mean() for each in found]
    assert np.mean(explored) == pytest.approx(learned.predict(window).mean(), abs=0.1)


def test_a_proposal_is_judged_after_ten_scored_steps_at_the_earliest():
    learned, upcoming = Learned(FEATURES_Nd, 0.25, has_prior=True), Upcoming()
    for step in range(ENOUGH_STEPS):
        found = learned.propose(upcoming, 200, True, rng(step))
        said = learned.observe(found, np.random.default_rng(step).normal(size=200))
        assert bool(said) == (step == ENOUGH_STEPS - 1)


def test_a_good_proposal_never_gives_up():
    learned, upcoming = Learned(FEATURES_Nd, 0.25, has_prior=False), Upcoming()
    for step in range(60):
        found = learned.propose(upcoming, 16, True, rng(step))
        assert learned.observe(found, WORTH_N[found.positions_n]) == []


@pytest.mark.parametrize("num_samples, size", [(8, 8), (8, 11), (5, 40)])
def test_no_step_has_a_sample_twice_where_the_pool_is_small(num_samples, size):
    learned, upcoming = Learned(FEATURES_Nd[:size], 0.1, has_prior=True), Upcoming(size)
    for step in range(30):
        found = learned.propose(upcoming, num_samples, step % 2 == 0, rng(step))
        assert len(set(found.positions_n.tolist())) == num_samples == len(found.predicted_n)


def test_the_state_comes_back_bit_for_bit():
    one, other, upcoming = (Learned(FEATURES_Nd, 0.25, True), Learned(FEATURES_Nd, 0.25, True), Upcoming())
    for step in range(5):
        found = one.propose(upcoming, 16, True, rng(step))
        one.observe(found, WORTH_N[found.positions_n])
    other.load_state_dict(one.state_dict())
    found = one.propose(upcoming, 16, True, rng(9))
    for each in (one, other):
        each.observe(found, WORTH_N[found.positions_n])
    assert np.array_equal(one.predict(np.arange(N)), other.predict(np.arange(N)))
    assert {name: values.tolist() for name, values in one.sums.items()} == {
        name: values.tolist() for name, values in other.sums.items()
    }
