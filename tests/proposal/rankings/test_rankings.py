"""One battery for all rankings: an order of the whole pool, the same again, of lists as of token files."""

import numpy as np
import pytest

from pipeline.data.sample import IGNORED, Sample
from pipeline.proposal.rankings import fit, rds
from pipeline.proposal.rankings.contract import Context
from pipeline.proposal.rankings.registry import RANKINGS, get
from tests.proposal.rankings.pools import as_file, is_in_turn, pool, targets


class Stand:
    """In place of a model: numbers that follow from a sample's tokens."""

    def pooled_states(self, samples):
        return np.array(
            [np.bincount(one.input_ids, minlength=50)[:50] - 0.5 for one in samples], dtype=np.float32
        )

    def losses_around_fit(self, samples, targets):
        before_n = np.array([len(one.input_ids) % 5 for one in samples], dtype=np.float32)
        return before_n, before_n - np.array([one.num_supervised % 4 for one in samples], dtype=np.float32)


CONTEXT = Context(seed=3, model=Stand())
NAMES = list(RANKINGS)


@pytest.mark.parametrize("name", NAMES)
def test_an_order_holds_every_position_once_and_comes_again(name):
    samples, examples = pool(), targets()
    order_N = get(name).rank(samples, examples, CONTEXT).order_N
    assert order_N.dtype == np.int64 and sorted(order_N.tolist()) == list(range(len(samples)))
    assert order_N.tolist() != list(range(len(samples)))
    assert get(name).rank(samples, examples, CONTEXT).order_N.tolist() == order_N.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_token_file_is_ranked_like_the_list_of_its_samples(name, tmp_path):
    samples, examples = pool(700), targets()  # several batches of the file, the last one short
    from_list = get(name).rank(samples, examples, CONTEXT)
    from_file = get(name).rank(as_file(samples, tmp_path), examples, CONTEXT)
    assert from_file.order_N.tolist() == from_list.order_N.tolist()
    assert from_file.num_good == from_list.num_good


@pytest.mark.parametrize("name", NAMES)
def test_a_pool_may_hold_the_examples_and_a_single_kind_of_answer(name):
    """Examples in the pool, copies, samples without an answer or with one token."""
    examples = targets()
    samples = [*examples, *examples, Sample([1, 2], [IGNORED] * 2, source="b"), Sample([3], [3], source="b")]
    order_N = get(name).rank(samples, examples, CONTEXT).order_N
    assert sorted(order_N.tolist()) == list(range(len(samples)))
    if name in ("bm25", "tfidf", "rds"):  # each example takes itself, or its copy
        assert {position % 5 for position in order_N[:5].tolist()} == set(range(5))


@pytest.mark.parametrize("name", NAMES)
def test_no_example_is_refused(name):
    with pytest.raises(ValueError, match=f"the ranking {name} compares the pool with target examples"):
        get(name).rank(pool(20), [], CONTEXT)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="no ranking is called 'bm42'; there are bm25, tfidf, dsir, rds"):
        get("bm42")


def test_rds_takes_turns_by_cosine(monkeypatch):
    monkeypatch.setattr(rds, "BLOCK", 64)
    samples, examples = pool(), targets()
    rows, others = (Stand().pooled_states(some).astype(float) for some in (samples, examples))
    cosine_MN = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in rows] for a in others])
    order_N = rds.rank(samples, examples, CONTEXT).order_N
    assert is_in_turn(order_N, cosine_MN, tolerance=1e-6)
    assert not is_in_turn(order_N, cosine_MN[::-1], tolerance=0.05), "nothing to tell apart"


class Told(Stand):
    """Losses as told."""

    def __init__(self, before, after):
        self.told = np.array(before, dtype=np.float32), np.array(after, dtype=np.float32)

    def losses_around_fit(self, samples, targets):
        return self.told


def test_fit_ranks_by_the_fall_of_the_loss_and_puts_what_is_not_finite_last():
    model = Told([2, 3, np.inf, 1, np.nan, 5], [1, 1, np.inf, 2, 1, 5])
    order_N = fit.rank(pool(6), targets(), Context(model=model)).order_N
    assert order_N.tolist() == [1, 0, 5, 3, 2, 4]


def test_fit_says_when_nothing_is_finite():
    model = Told([1.0] * 6, [np.nan] * 6)
    with pytest.raises(ValueError, match="none of these is finite"):
        fit.rank(pool(6), targets(), Context(model=model))
