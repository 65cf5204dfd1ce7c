# K kept
"""Our method: keep by residual matching, then weight by shrunk non-negative least squares."""

import numpy as np

from pipeline.selection.candidates import usable_candidates
from pipeline.selection.contract import Method, Selection, Settings, Signals
from pipeline.selection.nonnegative_weights import nonnegative_weights
from pipeline.selection.residual_filter import residual_filter


def select(
    signals: Signals, keep: int, num_candidates: int, rng: np.random.Generator, settings: Settings
) -> Selection:
    """The few samples, and their weights, whose combined update is nearest to the target's.

    They are fewer than ``keep`` where fewer help: the filter stops when nothing is aligned with what remains
    of the target, and a sample whose weight comes out as 0 is left out. Where nothing is aligned with the
    target at all, the best aligned are kept with uniform weights. Raises ValueError where the target, or
    every candidate, is not finite.

    Source: arXiv 2604.00001. The derivation is our own (docs/method.md): only the abstract was at hand.
    """
    usable = usable_candidates(signals, num_candidates)
    kept_K, scale = residual_filter(usable.signals, keep)
    if len(kept_K) == 0:
        return usable.fallback(keep)
    gram_KK = usable.signals.gram_CC[np.ix_(kept_K, kept_K)]
    weights_K, unweighted = nonnegative_weights(
        gram_KK, usable.signals.alignment_C[kept_K], scale, settings.ridge
    )
    return usable.selection(kept_K, weights_K, fallback=unweighted)


METHOD = Method("filter_then_weight", needs="gram", select=select)
