# N samples of the pool, n of a block, V buckets, T tokens, G n-grams
"""DSIR: samples drawn as likely as they are under the target's n-grams in place of the pool's.

    log w = sum over n-grams g of a sample:  log q(bucket of g) - log p(bucket of g)
    order by log w + Gumbel noise: its first k are k draws without replacement

S. Xie et al., "Data Selection for Language Models via Importance Resampling" (NeurIPS 2023, arXiv
2302.03169), with its 10,000 buckets of uni- and bigrams and 1e-8 added to each probability. Departures:
n-grams of token ids in place of words; no smallest length of a sample. All target examples are one
distribution, as there. Of few examples most buckets are empty, and an n-gram in one of these costs about ten
nats: short samples then lead.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.data.flat import Tokens, token_blocks
from pipeline.data.sample import Sample
from pipeline.proposal.rankings.contract import Context, Ranked, Ranking, best_first, need_targets

BUCKETS, FLOOR = 10_000, 1e-8
MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd


def rank(pool: Sequence[Sample], targets: Sequence[Sample], context: Context) -> Ranked:
    """A draw of the whole pool without replacement, by importance; ``context.seed`` decides it.

    Raises ValueError where there is no target example, or none has a token.
    """
    need_targets("dsir", targets)
    ratio_N = log_importance(pool, targets)
    return Ranked(best_first(ratio_N + np.random.default_rng(context.seed).gumbel(size=len(pool))))


def log_importance(pool: Sequence[Sample], targets: Sequence[Sample]) -> np.ndarray:
    """log w of every sample, float64 (N,); 0 without tokens. Raises ValueError for targets without tokens."""
    target_V, pool_V = _bucket_counts(targets), _bucket_counts(pool)
    if not target_V.sum():
        raise ValueError(f"the ranking dsir compares tokens, and the {len(targets)} targets have none")
    ratio_V = np.log(target_V / target_V.sum() + FLOOR) - np.log(pool_V / max(1, pool_V.sum()) + FLOOR)
    return np.concatenate(
        [
            np.bincount(sample_G, ratio_V[bucket_G], minlength=num_samples)
            for bucket_G, sample_G, num_samples in map(_ngrams, token_blocks(pool))
        ]
    )


def _bucket_counts(samples: Sequence[Sample]) -> np.ndarray:
    counts = (np.bincount(_ngrams(block)[0], minlength=BUCKETS) for block in token_blocks(samples))
    return sum(counts, np.zeros(BUCKETS, dtype=np.int64))


def _ngrams(block: Tokens) -> tuple[np.ndarray, np.ndarray, int]:
    """``(bucket_G, sample_G, n)`` of all uni- and bigrams; none reaches into the next sample."""
    sample_T, ids_T = block.sample_T, block.ids_T.astype(np.uint64)
    is_pair_T = sample_T[1:] == sample_T[:-1]
    bucket_G = np.concatenate([_bucket(ids_T), _bucket(ids_T[:-1], ids_T[1:])[is_pair_T]])
    return bucket_G, np.concatenate([sample_T, sample_T[1:][is_pair_T]]), len(block.lengths_n)


def _bucket(*ids_T: np.ndarray) -> np.ndarray:
    """Bucket of each n-gram, by a multiplicative hash (arithmetic modulo 2^64), int64."""
    found_T = np.full(len(ids_T[0]), len(ids_T), dtype=np.uint64)
    for id_T in ids_T:
        found_T = (found_T ^ id_T) * MIX
        found_T ^= found_T >> np.uint64(29)
    return (found_T % np.uint64(BUCKETS)).astype(np.int64)


RANKING = Ranking("dsir", rank)
