"""TF-IDF in blocks is scikit-learn's of the whole, and the dense one in float64."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from pipeline.data import flat
from pipeline.data.sample import Sample
from pipeline.proposal.rankings import tfidf
from pipeline.proposal.rankings.contract import Context
from tests.proposal.rankings.pools import NUM_TOKENS, is_in_turn, pool, targets


def counts(samples: list[Sample]) -> np.ndarray:
    return np.array([np.bincount(one.input_ids, minlength=NUM_TOKENS + 4) for one in samples], dtype=float)


def dense(samples: list[Sample], examples: list[Sample]) -> np.ndarray:
    """Cosines (M, N)."""
    frequency_V = (counts(samples) > 0).sum(axis=0)
    idf_V = 1 + np.log((1 + len(samples)) / (1 + frequency_V))

    def rows(some):
        found = counts(some)
        weight = np.where(found > 0, 1 + np.log(np.maximum(found, 1)), 0) * idf_V
        return weight / np.linalg.norm(weight, axis=1, keepdims=True)

    return rows(examples) @ rows(samples).T


def test_each_example_in_turn_takes_the_largest_dense_cosine():
    samples, examples = pool(), targets()
    score_MN = dense(samples, examples)
    order_N = tfidf.rank(samples, examples, Context()).order_N
    assert is_in_turn(order_N, score_MN, tolerance=1e-6), "more than the rounding to float32 differs"
    assert not is_in_turn(order_N, score_MN[::-1], tolerance=0.05), "nothing to tell apart"


def test_weights_are_those_of_scikit_learn():
    TfidfTransformer = pytest.importorskip("sklearn.feature_extraction.text").TfidfTransformer
    samples, examples = pool(), targets()
    library = TfidfTransformer(sublinear_tf=True).fit(csr_matrix(counts(samples)))
    rows, others = (library.transform(csr_matrix(counts(some))) for some in (samples, examples))
    np.testing.assert_allclose((others @ rows.T).toarray(), dense(samples, examples), rtol=1e-12)


@pytest.mark.parametrize("block", [1, 7, 299])
def test_blocks_equal_the_whole(block, monkeypatch):
    samples, examples = pool(), targets()
    whole = tfidf.rank(samples, examples, Context()).order_N
    monkeypatch.setattr(tfidf, "token_blocks", lambda some: flat.token_blocks(some, block))
    assert tfidf.rank(samples, examples, Context()).order_N.tolist() == whole.tolist()


def test_an_example_that_is_in_the_pool_is_its_own_best():
    samples = pool()
    assert tfidf.rank(samples, [samples[37]], Context()).order_N[0] == 37
