"""bm25s over token ids gives the formula's scores, though most terms are left out of its index."""

import math

import numpy as np

from pipeline.proposal.rankings import bm25
from pipeline.proposal.rankings.contract import Context
from tests.proposal.rankings.pools import is_in_turn, pool, targets, whole


def formula(documents: list[list[int]], query: list[int]) -> list[float]:
    """Lucene's BM25, word by word."""
    k1, b = 1.5, 0.75
    average = sum(map(len, documents)) / len(documents)
    found = []
    for document in documents:
        score = 0.0
        for term in query:
            frequency = sum(term in other for other in documents)
            idf = math.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))
            count = document.count(term)
            score += idf * count / (count + k1 * (1 - b + b * len(document) / average))
        found.append(score)
    return found


def test_each_example_in_turn_finds_what_the_formula_finds():
    samples, examples = pool(120), targets()
    score_MN = np.array([formula([one.input_ids for one in samples], one.input_ids) for one in examples])
    order_N = bm25.rank(samples, examples, Context()).order_N
    assert is_in_turn(order_N, score_MN, tolerance=1e-5), "more than sums of float32 differ"
    assert not is_in_turn(order_N, score_MN[::-1], tolerance=0.1), "nothing to tell apart"


def test_a_term_that_an_example_repeats_counts_each_time():
    samples = [whole([1, 5, 5]), whole([2, 6, 6]), whole([7, 7, 7])]
    once, twice = whole([1, 2, 2]), whole([1, 1, 2])
    assert bm25.rank(samples, [once], Context()).order_N.tolist() == [1, 0, 2]
    assert bm25.rank(samples, [twice], Context()).order_N.tolist() == [0, 1, 2]


def test_samples_without_a_common_token_come_last_in_the_order_of_the_pool():
    samples = [whole([9]), whole([8, 8]), whole([1, 9]), whole([7])]
    assert bm25.rank(samples, [whole([1])], Context()).order_N.tolist() == [2, 0, 1, 3]
