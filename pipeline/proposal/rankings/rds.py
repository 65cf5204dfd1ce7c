# N samples of the pool, n of a block, M target examples, m of them, H hidden size
"""RDS+: samples whose hidden states are, on average, like those of a target example.

    e = sum_t t h_t / sum_t t  over a sample's tokens, h the last hidden states
    score = cos(e_sample, e_target)

H. Ivison et al., "Large-Scale Data Selection for Instruction Tuning" (arXiv 2503.01807); the weights by
position are those of N. Muennighoff (SGPT, arXiv 2202.08904). Prompt and answer count, and the target
examples take samples in turn, as there. Departure: the model is the one in training, as it is before the
first step.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.data.flat import BLOCK
from pipeline.data.sample import Sample
from pipeline.proposal.rankings.contract import Context, Ranked, Ranking, need_targets
from pipeline.proposal.rankings.round_robin import round_robin


def rank(pool: Sequence[Sample], targets: Sequence[Sample], context: Context) -> Ranked:
    """The samples most like each target example, in turn. Raises ValueError where there is no example."""
    need_targets("rds", targets)
    assert context.model is not None
    target_MH = _to_length_1(context.model.pooled_states(targets))
    score_MN = np.empty((len(targets), len(pool)), dtype=np.float32)
    for first in range(0, len(pool), BLOCK):  # the states of a large pool are more than its scores
        block = [pool[i] for i in range(first, min(first + BLOCK, len(pool)))]
        score_MN[:, first : first + len(block)] = (
            target_MH @ _to_length_1(context.model.pooled_states(block)).T
        )

    def scores_of(examples: range) -> np.ndarray:
        return score_MN[examples.start : examples.stop]

    return Ranked(round_robin(scores_of, len(targets), len(pool)))


def _to_length_1(rows_nH: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    return rows_nH / np.maximum(np.linalg.norm(rows_nH, axis=1, keepdims=True), np.finfo(np.float32).tiny)


RANKING = Ranking("rds", rank, needs_model=True)
