# N samples of the pool, n of a block, M target examples, m of them, V token ids, T tokens
"""TF-IDF: samples whose weighted token counts point where a target example's do.

    x_t = (1 + ln tf) (1 + ln((1 + N) / (1 + df))),  to length 1;  score = <x_sample, x_target>

G. Salton, C. Buckley, "Term-weighting approaches in automatic text retrieval" (1988, doi
10.1016/0306-4573(88)90021-0), with scikit-learn's smoothed idf. Only the tests import that library: it takes
2.5 seconds to load, a third of what the demo trains at random, and wants the counts of the whole pool at
once. Departures: terms are token ids, of prompt and answer together; counts enter by their logarithm, as the
most frequent tokens are commas and line ends; the examples take samples in turn.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse as sp

from pipeline.data.flat import token_blocks
from pipeline.data.sample import Sample
from pipeline.proposal.rankings.contract import Context, Ranked, Ranking, need_targets
from pipeline.proposal.rankings.round_robin import round_robin


def rank(pool: Sequence[Sample], targets: Sequence[Sample], context: Context) -> Ranked:
    """The samples most like each target example, in turn. Raises ValueError where there is no example."""
    need_targets("tfidf", targets)
    num_ids = 1 + max(
        int(block.ids_T.max(initial=0)) for samples in (pool, targets) for block in token_blocks(samples)
    )
    frequency_V = np.zeros(num_ids, dtype=np.int64)
    for counts_nV in _counts(pool, num_ids):
        frequency_V += np.bincount(counts_nV.indices, minlength=num_ids)
    idf_V = 1 + np.log((1 + len(pool)) / (1 + frequency_V))
    target_MV = sp.vstack([_weighted(counts, idf_V) for counts in _counts(targets, num_ids)], format="csr")

    def scores_of(examples: range) -> np.ndarray:
        score_mN, first = np.empty((len(examples), len(pool)), dtype=np.float32), 0
        some_Vm = target_MV[examples.start : examples.stop].T.tocsr()
        for counts_nV in _counts(pool, num_ids):
            last = first + counts_nV.shape[0]
            score_mN[:, first:last] = (_weighted(counts_nV, idf_V) @ some_Vm).toarray().T
            first = last
        return score_mN

    return Ranked(round_robin(scores_of, len(targets), len(pool)))


def _counts(samples: Sequence[Sample], num_ids: int) -> Iterator[sp.csr_matrix]:
    """How often each token occurs in each sample of a block, (n, V)."""
    for block in token_blocks(samples):
        places = (block.sample_T, block.ids_T)
        ones_T = np.ones(len(block.ids_T))
        yield sp.coo_matrix((ones_T, places), shape=(len(block.lengths_n), num_ids)).tocsr()  # adds them up


def _weighted(counts_nV: sp.csr_matrix, idf_V: np.ndarray) -> sp.csr_matrix:
    """Rows of weights, of length 1; a sample without tokens stays 0."""
    weight = (1 + np.log(counts_nV.data)) * idf_V[counts_nV.indices]
    sample = np.repeat(np.arange(counts_nV.shape[0]), np.diff(counts_nV.indptr))
    norm_n = np.sqrt(np.bincount(sample, weight**2, minlength=counts_nV.shape[0]))
    return sp.csr_matrix((weight / norm_n[sample], counts_nV.indices, counts_nV.indptr), counts_nV.shape)


RANKING = Ranking("tfidf", rank)
