"""Dealing one selection over several steps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.selection.contract import Selection
from pipeline.step.deal_over_steps import deal_over_steps


def some_selection(num_kept, **others):
    rng = np.random.default_rng(num_kept)
    return Selection(rng.permutation(100)[:num_kept], rng.dirichlet(np.ones(num_kept)), **others)


def test_cards_go_round_in_filter_order_with_weights_in_their_ratios():
    selection = Selection(np.array([30, 10, 20, 50, 40]), np.array([0.4, 0.3, 0.1, 0.1, 0.1]))
    first, second = deal_over_steps(selection, 2)
    assert first.indices.tolist() == [30, 20, 40] and second.indices.tolist() == [10, 50]
    assert first.weights == pytest.approx([4 / 6, 1 / 6, 1 / 6]) and second.weights == pytest.approx(
        [3 / 4, 1 / 4]
    )


@given(st.integers(1, 20), st.integers(1, 20))
def test_every_step_trains_and_every_sample_is_used(num_kept, num_steps):
    selection = some_selection(num_kept)
    parts = deal_over_steps(selection, num_steps)
    assert len(parts) == num_steps
    assert all(len(part.indices) > 0 and part.weights.sum() == pytest.approx(1) for part in parts)
    dealt = np.concatenate([part.indices for part in parts])
    assert set(dealt) == set(selection.indices) and len(dealt) == max(num_kept, num_steps)
    assert np.ptp([len(part.indices) for part in parts]) <= 1


def test_fewer_samples_than_steps_go_round_again():
    parts = deal_over_steps(Selection(np.array([8, 3]), np.array([0.9, 0.1])), 5)
    assert [part.indices.tolist() for part in parts] == [[8], [3], [8], [3], [8]]
    assert all(part.weights.tolist() == [1.0] for part in parts)


def test_drops_are_counted_once_and_the_match_of_the_whole_is_claimed_by_no_part():
    parts = deal_over_steps(some_selection(4, fallback=True, dropped=(5, 6), residual=0.5, cosine=0.8), 3)
    assert [part.dropped for part in parts] == [(5, 6), (), ()]
    assert all(part.fallback and part.residual is None and part.cosine is None for part in parts)


def test_one_step_gets_the_selection_itself():
    selection = some_selection(4, residual=0.5)
    assert deal_over_steps(selection, 1) == [selection]


def test_no_step_is_an_error():
    with pytest.raises(ValueError, match="over 0 steps"):
        deal_over_steps(some_selection(4), 0)
