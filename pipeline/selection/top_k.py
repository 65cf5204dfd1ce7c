"""The best aligned candidates, each for itself: the filter without its memory of what is already kept."""

import numpy as np

from pipeline.selection.candidates import by_alignment, usable_candidates
from pipeline.selection.contract import Method, Selection, Settings, Signals
from pipeline.selection.residual_filter import alignment_scores, smallest_score


def select(
    signals: Signals, keep: int, num_candidates: int, rng: np.random.Generator, settings: Settings
) -> Selection:
    """The ``keep`` largest b_i / sqrt(K_ii), uniformly weighted; only positive ones, so they may be fewer.

    This is the filter's score with nothing kept yet (docs/method.md), so that the two methods differ in
    redundancy and weights alone. Where no score is positive, the best aligned are kept. Raises ValueError
    where the target, or every candidate, is not finite.
    """
    usable = usable_candidates(signals, num_candidates)
    positive_C = alignment_scores(usable.signals) > smallest_score(usable.signals)
    if not positive_C.any():
        return usable.fallback(keep)
    return usable.uniform_selection(by_alignment(usable.signals)[: min(keep, positive_C.sum())])


METHOD = Method("top_k", needs="gram", select=select)
