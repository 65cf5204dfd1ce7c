"""Dealing kept samples over ranks and micro-steps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.step.deal_over_ranks import deal_over_ranks


@st.composite
def deals(draw):
    world_size, micro_steps, micro_batch_size = (draw(st.integers(1, 4)) for _ in range(3))
    slots = world_size * micro_steps * micro_batch_size
    return (
        draw(st.lists(st.integers(1, 500), min_size=1, max_size=slots)),
        world_size,
        micro_steps,
        micro_batch_size,
    )


def steady(test):
    return settings(max_examples=300, derandomize=True, deadline=None)(given(deals())(test))


@steady
def test_every_sample_is_dealt_exactly_once_within_capacity(arguments):
    tokens, world_size, micro_steps, micro_batch_size = arguments
    dealt = deal_over_ranks(*arguments)
    assert sorted(k for rank in dealt for micro_step in rank for k in micro_step) == list(range(len(tokens)))
    assert len(dealt) == world_size
    assert all(len(rank) == micro_steps for rank in dealt), "ranks must take the same number of micro-steps"
    assert all(len(micro_step) <= micro_batch_size for rank in dealt for micro_step in rank)


@steady
def test_ranks_get_the_same_tokens_up_to_the_longest_sample(arguments):
    tokens = arguments[0]
    per_rank = [
        sum(tokens[k] for micro_step in rank for k in micro_step) for rank in deal_over_ranks(*arguments)
    ]
    assert max(per_rank) - min(per_rank) <= max(tokens), per_rank


@steady
def test_the_deal_is_the_same_on_every_rank_that_computes_it(arguments):
    assert deal_over_ranks(*arguments) == deal_over_ranks(list(arguments[0]), *arguments[1:])


def test_fewer_samples_than_slots_leave_micro_steps_short_or_empty_but_not_missing():
    assert deal_over_ranks([7], 2, 2, 2) == [[[0], []], [[], []]]


def test_more_samples_than_slots_are_refused_with_the_numbers():
    with pytest.raises(ValueError, match="5 kept samples do not fit into 2 ranks x 1 micro-steps x 2"):
        deal_over_ranks([1] * 5, 2, 1, 2)


@pytest.mark.parametrize("world_size, lengths", [(2, [3, 9, 2, 14, 5, 2]), (3, [3, 9, 2, 14, 5, 2, 8, 8, 1])])
def test_every_rank_fetches_the_kept_samples_in_the_order_of_the_selection(run_ranks, world_size, lengths):
    for found, wanted in run_ranks("tests.step.step_cases:fetched", world_size, lengths=lengths, num_kept=5):
        assert found == wanted
