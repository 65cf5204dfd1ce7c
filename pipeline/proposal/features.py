# N samples of the pool, M target examples, n samples of a block, T tokens of a block, V buckets,
# S sketch size, d features
"""Static features of every sample: what a proposal knows before any gradient was measured.

    hashed uni- and bigrams of token ids, prompt and answer apart; first and last tokens of the answer
        -> (1 + ln tf) idf, to length 1 -> signed count sketch to S numbers, and mean and largest cosine
    with the target examples' own
    lengths of sample and answer in logarithms, with their squares

They cost about as much as tokenising, are made once for a pool and a target, and take 2 d bytes a sample.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from pipeline.data.flat import Tokens, token_blocks
from pipeline.data.sample import Sample

BUCKETS, SKETCH, EDGE = 1 << 16, 128, 2
PROMPT, ANSWER, FIRST, LAST, PAIRS = 1, 2, 3, 4, 8
"""Fields, whose n-grams are hashed apart. FIRST and LAST hold ``EDGE`` tokens of the answer each, so that the
form of an answer is seen where its words differ; PAIRS tells bigrams from single tokens."""
SIMILARITIES, LENGTHS = 2, 4
LARGEST = 8.0
"""Deviations that a feature counts at most: one odd sample among very many would be infinite in float16."""
TARGETS_AT_ONCE = 256
NUM_FEATURES = SIMILARITIES + LENGTHS + 1 + SKETCH
MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Table:
    """Features of a pool for one target set."""

    features_Nd: np.ndarray
    """float16 (N, d): the two similarities, z-scored; four numbers of length, z-scored; 1; the sketch."""
    similarity_N: np.ndarray
    """Mean cosine to the target examples, float32 (N,)."""


def make(pool: Sequence[Sample], targets: Sequence[Sample], beat: Callable[[], None] = lambda: None) -> Table:
    """The table of ``pool``; the same on every machine up to rounding.

    Args:
        pool: N samples, gone through twice.
        targets: M examples of what is wanted.
        beat: called as the work goes on.

    Raises:
        ValueError: there is no target example.
    """
    if not targets:
        raise ValueError("features of a pool need target examples to compare it with")
    frequency_V, logs = np.zeros(BUCKETS), list[np.ndarray]()
    for block in token_blocks(pool):
        frequency_V += np.bincount(_counts(block).indices, minlength=BUCKETS)
        logs.append(_lengths(block))
        beat()
    idf_V = np.log((len(pool) + 1) / (frequency_V + 1))
    targets_MV = sp.vstack([_weighted(_counts(block), idf_V) for block in token_blocks(targets)]).tocsr()
    mean_V = np.asarray(targets_MV.mean(axis=0)).ravel()
    sketch_VS = _sketch()
    features_Nd = np.empty((len(pool), NUM_FEATURES), dtype=np.float16)
    similarity_N2, first = np.empty((len(pool), SIMILARITIES), dtype=np.float32), 0
    for block in token_blocks(pool):
        rows_nV, last = _weighted(_counts(block), idf_V), first + len(block.lengths_n)
        similarity_N2[first:last, 0] = rows_nV @ mean_V
        similarity_N2[first:last, 1] = _largest_cosine(rows_nV, targets_MV)
        features_Nd[first:last, -SKETCH:] = (rows_nV @ sketch_VS).toarray()
        first = last
        beat()
    z_N2 = _z_scored(np.concatenate(logs))
    features_Nd[:, :SIMILARITIES] = _z_scored(similarity_N2)
    features_Nd[:, SIMILARITIES : SIMILARITIES + LENGTHS] = np.concatenate([z_N2, np.square(z_N2)], axis=1)
    features_Nd[:, SIMILARITIES + LENGTHS] = 1
    return Table(features_Nd, similarity_N2[:, 0])


def _largest_cosine(rows_nV: sp.csr_matrix, targets_MV: sp.csr_matrix) -> np.ndarray:
    """Of each row to a target, (n,); some targets at a time, as there may be many."""
    found_n = np.zeros(rows_nV.shape[0])
    for first in range(0, targets_MV.shape[0], TARGETS_AT_ONCE):
        some = targets_MV[first : first + TARGETS_AT_ONCE]
        found_n = np.maximum(found_n, (rows_nV @ some.T).toarray().max(1))
    return found_n


def _counts(block: Tokens) -> sp.csr_matrix:
    """How often each sample has an n-gram of each bucket, (n, V)."""
    ids_T, is_answer_T, row_T = block.ids_T.astype(np.uint64), block.is_supervised_T, block.sample_T
    num_samples = len(block.lengths_n)
    field_T = np.where(is_answer_T, np.uint64(ANSWER), np.uint64(PROMPT))
    is_pair_T = (row_T[1:] == row_T[:-1]) & (is_answer_T[1:] == is_answer_T[:-1])
    pairs_T = _hashed(field_T[1:] + np.uint64(PAIRS), ids_T[:-1], ids_T[1:])
    grams, rows = [_hashed(field_T, ids_T), pairs_T[is_pair_T]], [row_T, row_T[1:][is_pair_T]]
    answer_row_T, answer_T = row_T[is_answer_T], ids_T[is_answer_T]
    number_n = np.bincount(answer_row_T, minlength=num_samples)
    place_T = np.arange(len(answer_T)) - np.repeat(np.cumsum(number_n) - number_n, number_n)
    is_last_T = place_T >= np.repeat(number_n, number_n) - EDGE
    for field, is_edge_T in ((FIRST, place_T < EDGE), (LAST, is_last_T)):
        field_of_edge_T = np.full(int(is_edge_T.sum()), field, dtype=np.uint64)
        grams.append(_hashed(field_of_edge_T, answer_T[is_edge_T]))
        rows.append(answer_row_T[is_edge_T])
    column = (np.concatenate(grams) & np.uint64(BUCKETS - 1)).astype(np.int64)
    found = sp.coo_matrix(
        (np.ones(len(column), np.float32), (np.concatenate(rows), column)), shape=(num_samples, BUCKETS)
    )
    return found.tocsr()  # adds up what stands in one place


def _hashed(field_T: np.ndarray, *tokens_T: np.ndarray) -> np.ndarray:
    """A hash of each n-gram in its field, uint64 (T,)."""
    with np.errstate(over="ignore"):
        found_T = field_T * MIX
        for token_T in tokens_T:
            found_T = (found_T ^ token_T) * MIX
            found_T ^= found_T >> np.uint64(29)
    return found_T


def _weighted(counts_nV: sp.csr_matrix, idf_V: np.ndarray) -> sp.csr_matrix:
    """(1 + ln tf) idf, every row of length 1, or 0 where nothing is left of it."""
    found = counts_nV.copy()
    found.data = (1 + np.log(found.data)) * idf_V[found.indices]
    norm_n = np.sqrt(np.asarray(found.multiply(found).sum(axis=1)).ravel())
    return sp.csr_matrix(sp.diags(1 / np.maximum(norm_n, 1e-12)) @ found)


def _sketch() -> sp.csr_matrix:
    """Signs that add every bucket to one of S numbers, (V, S): inner products stay right on average."""
    rng = np.random.default_rng(0)
    slot_V, sign_V = rng.integers(0, SKETCH, BUCKETS), rng.choice([-1.0, 1.0], BUCKETS)
    return sp.csr_matrix((sign_V, (np.arange(BUCKETS), slot_V)), shape=(BUCKETS, SKETCH))


def _lengths(block: Tokens) -> np.ndarray:
    """Logarithms of tokens and of answer tokens, each plus one, (n, 2)."""
    answer_n = np.bincount(block.sample_T[block.is_supervised_T], minlength=len(block.lengths_n))
    return np.log1p(np.stack([block.lengths_n, answer_n], axis=1))


def _z_scored(values_Nk: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and deviation 1, cut at LARGEST; a column that does not vary is 0."""
    deviation_k = values_Nk.std(axis=0)
    found_Nk = (values_Nk - values_Nk.mean(axis=0)) / np.where(deviation_k > 1e-9, deviation_k, np.inf)
    return np.clip(found_Nk, -LARGEST, LARGEST)
