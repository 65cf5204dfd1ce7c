"""Importance is the sum of log ratios of n-grams, one by one, and the order a draw by it."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from pipeline.data import flat
from pipeline.data.flat import Tokens
from pipeline.data.sample import Sample
from pipeline.proposal.rankings import dsir
from pipeline.proposal.rankings.contract import Context
from tests.proposal.rankings.pools import pool, targets, whole


def bucket(*ids: int) -> int:
    mixed = len(ids)
    for token in ids:
        mixed = (mixed ^ token) * 0x9E3779B97F4A7C15 % 2**64
        mixed ^= mixed >> 29
    return mixed % 10_000


def ngrams(sample: Sample) -> list[int]:
    ids = sample.input_ids
    return [bucket(token) for token in ids] + [bucket(*pair) for pair in pairwise(ids)]


def slow(samples: list[Sample], examples: list[Sample]) -> list[float]:
    raw, target = (Counter(g for one in some for g in ngrams(one)) for some in (samples, examples))

    def log_ratio(gram):
        q, p = target[gram] / target.total(), raw[gram] / raw.total()
        return math.log(q + 1e-8) - math.log(p + 1e-8)

    return [sum(log_ratio(gram) for gram in ngrams(sample)) for sample in samples]


def test_importance_is_a_sum_of_log_ratios():
    samples, examples = pool(), targets()
    np.testing.assert_allclose(dsir.log_importance(samples, examples), slow(samples, examples), rtol=1e-12)


@pytest.mark.parametrize("block", [1, 7, 299])
def test_blocks_equal_the_whole(block, monkeypatch):
    samples, examples = pool(), targets()
    whole_N = dsir.log_importance(samples, examples)
    monkeypatch.setattr(dsir, "token_blocks", lambda some: flat.token_blocks(some, block))
    assert dsir.log_importance(samples, examples).tolist() == whole_N.tolist()


def test_the_first_is_drawn_as_often_as_its_importance_says():
    """Gumbel top-1 is a draw from the softmax of the log ratios."""
    samples = [whole([1, 2]), whole([3]), whole([1])]
    examples = [whole([1]), whole([2]), whole([3, 3, 3])]
    ratio_N = dsir.log_importance(samples, examples)
    expected_N = np.exp(ratio_N) / np.exp(ratio_N).sum()
    first = Counter(int(dsir.rank(samples, examples, Context(seed)).order_N[0]) for seed in range(2000))
    assert max(expected_N) < 0.95
    # four standard deviations of 2000 draws
    np.testing.assert_allclose([first[i] / 2000 for i in range(3)], expected_N, atol=0.045)


def test_another_seed_is_another_draw():
    samples, examples = [whole([i % 3]) for i in range(50)], [whole([1])]
    orders = [dsir.rank(samples, examples, Context(seed)).order_N.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_buckets_are_used_evenly():
    """10,000 pairs in 10,000 buckets leave e^-1 of them empty, as chance does."""
    ids = np.arange(20_000)
    bucket_G, _, _ = dsir._ngrams(Tokens(ids, np.ones(len(ids), dtype=bool), np.full(10_000, 2)))
    pairs = bucket_G[len(ids) :]
    assert len(pairs) == 10_000 and len(np.unique(pairs)) == pytest.approx(
        10_000 * (1 - math.exp(-1)), rel=0.02
    )
