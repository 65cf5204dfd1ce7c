"""Turns are taken as one would by hand, however little is held at a time."""

import numpy as np
import pytest

from pipeline.proposal.rankings.round_robin import round_robin
from tests.proposal.rankings.pools import slow_round_robin


@pytest.mark.parametrize("num_targets, num_samples", [(1, 700), (3, 700), (40, 900), (5, 2), (2, 1)])
@pytest.mark.parametrize("held", [1, 300, 5000, 1 << 28])
@pytest.mark.parametrize("levels", [4, 10**9], ids=["ties", "distinct"])
def test_it_is_what_taking_turns_gives_whatever_is_held(num_targets, num_samples, held, levels):
    if held == 1 and num_samples > 100:
        num_samples = 60  # a list of one entry is made anew for each
    rng = np.random.default_rng(num_targets)
    score_MN = rng.integers(levels, size=(num_targets, num_samples)).astype(np.float32)
    if num_samples > 10:
        score_MN[0, 3] = np.nan
    asked = []

    def scores_of(examples):
        asked.append(len(examples))
        return score_MN[examples.start : examples.stop]

    found = round_robin(scores_of, num_targets, num_samples, held)
    assert found.tolist() == slow_round_robin(score_MN)
    assert max(asked) * num_samples <= max(held, num_samples), "more scores at once than may be held"


def test_alike_examples_share_the_head_between_them():
    score_MN = np.array([[9, 8, 7, 6], [9, 8, 7, 6]], dtype=np.float32)
    assert round_robin(lambda examples: score_MN[examples.start : examples.stop], 2, 4).tolist() == [
        0,
        1,
        2,
        3,
    ]


def test_an_example_with_large_scores_gets_no_more_than_its_turns():
    score_MN = np.array([[100, 99, 98, 97, 0, 0], [0, 0, 0, 0, 1, 2]], dtype=np.float32)
    found = round_robin(lambda examples: score_MN[examples.start : examples.stop], 2, 6)
    assert found.tolist() == [0, 5, 1, 4, 2, 3]
