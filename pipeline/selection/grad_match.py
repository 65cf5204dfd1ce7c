# C candidates, K kept
"""GRAD-MATCH: orthogonal matching pursuit of the target's gradient."""

import numpy as np

from pipeline.selection.candidates import usable_candidates
from pipeline.selection.contract import Method, Selection, Settings, Signals
from pipeline.selection.nonnegative_weights import nonnegative_weights
from pipeline.selection.residual_filter import smallest_score


def select(
    signals: Signals, keep: int, num_candidates: int, rng: np.random.Generator, settings: Settings
) -> Selection:
    """At most ``keep`` candidates, found one by one, with the weights of the last solve scaled to sum 1.

        add  argmax over i not tried of <g_i, g_T - sum_j w_j g_j>
        w  = argmin over w >= 0 of |sum_j w_j g_j - g_T|^2 + lambda |w|^2

    These two lines take turns until ``keep`` candidates have a positive weight or no product is positive. A
    candidate that gets no weight makes room, and is not tried again. Where nothing is aligned with the
    target, the best aligned are kept with uniform weights. Raises ValueError where the target, or every
    candidate, is not finite.

    Source: K. Killamsetty et al., "GRAD-MATCH" (ICML 2021, arXiv 2103.00123), algorithm 2 (OMP), matching the
    target ("validation") gradient. Departures: weights are non-negative in every solve (the paper's may be
    negative; its code clips them one by one); lambda is ``selection.ridge`` x mean |g_j|^2 of the kept, where
    the paper's is a number with the unit of a squared gradient; no tolerance other than rounding ends the
    pursuit; candidates are selected at every step, where the paper selects anew every 20 epochs.
    """
    usable = usable_candidates(signals, num_candidates)
    gram_CC, alignment_C = usable.signals.gram_CC, usable.signals.alignment_C
    norm_C = np.sqrt(np.maximum(np.diagonal(gram_CC), 0))
    smallest_C = smallest_score(usable.signals) * np.where(norm_C > 0, norm_C, 1.0)
    is_tried_C = norm_C == 0
    kept_K, weights_K = np.zeros(0, dtype=np.int64), np.zeros(0)
    residual_C = alignment_C
    while len(kept_K) < keep:
        product_C = np.where(is_tried_C | (residual_C <= smallest_C), -np.inf, residual_C)
        best = int(np.argmax(product_C))
        if product_C[best] == -np.inf:
            break
        is_tried_C[best] = True
        kept_K = np.append(kept_K, best)
        gram_KK, alignment_K = gram_CC[np.ix_(kept_K, kept_K)], alignment_C[kept_K]
        weights_K, _ = nonnegative_weights(gram_KK, alignment_K, scale=0.0, ridge=settings.ridge)
        kept_K, weights_K, scale = kept_K[weights_K > 0], weights_K[weights_K > 0], 0.0
        if settings.ridge < np.inf:  # the weights come with sum 1; their least-squares length
            shrinkage = settings.ridge * np.trace(gram_KK) / len(gram_KK) * (weights_K @ weights_K)
            curvature = weights_K @ gram_CC[np.ix_(kept_K, kept_K)] @ weights_K + shrinkage
            scale = weights_K @ alignment_C[kept_K] / curvature
        residual_C = alignment_C - scale * (gram_CC[:, kept_K] @ weights_K)
    return usable.selection(kept_K, weights_K) if len(kept_K) else usable.fallback(keep)


METHOD = Method("grad_match", needs="gram", select=select, geometry="identity")
