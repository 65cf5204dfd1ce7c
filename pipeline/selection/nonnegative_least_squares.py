# C candidates, K kept
"""The Weight without the Filter: what the greedy choice of filter_then_weight is worth."""

import numpy as np

from pipeline.selection.candidates import usable_candidates
from pipeline.selection.contract import Method, Selection, Settings, Signals
from pipeline.selection.nonnegative_weights import nonnegative_weights
from pipeline.selection.residual_filter import alignment_scores


def select(
    signals: Signals, keep: int, num_candidates: int, rng: np.random.Generator, settings: Settings
) -> Selection:
    """The ``keep`` largest of the weights that all candidates get at once, scaled to sum 1.

    The weights are least squares shrunk toward uniform, as in filter_then_weight; uniform is here the best
    common scale of all candidates, and 0 where all of them together do not point to the target. Ties go to
    the better aligned. Where nothing gets a weight, the best aligned are kept with uniform weights. Raises
    ValueError where the target, or every candidate, is not finite.

    The method is our own, an ablation. It costs O(C^3), which is fit for hundreds of candidates.
    """
    usable = usable_candidates(signals, num_candidates)
    gram_CC, alignment_C = usable.signals.gram_CC, usable.signals.alignment_C
    score_C = alignment_scores(usable.signals)
    has_gradient_C = np.diagonal(gram_CC) > 0
    if not (score_C > 0).any():
        return usable.fallback(keep)
    position_C = np.flatnonzero(has_gradient_C)
    gram_CC, alignment_C = gram_CC[np.ix_(position_C, position_C)], alignment_C[position_C]
    total = gram_CC.sum()
    scale = max(0.0, alignment_C.sum() / total) if total > 0 else 0.0
    weights_C, unweighted = nonnegative_weights(gram_CC, alignment_C, scale, settings.ridge)
    best_K = np.lexsort((-score_C[position_C], -weights_C))[:keep]
    best_K = best_K[weights_C[best_K] > 0]
    weights_K = weights_C[best_K] / weights_C[best_K].sum()
    return usable.selection(position_C[best_K], weights_K, fallback=unweighted)


METHOD = Method("nonnegative_least_squares", needs="gram", select=select)
