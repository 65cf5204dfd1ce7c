# C candidates, K kept
"""GREATS: greedy, by how much one more sample in a plain gradient step lowers the target's loss, to second
order."""

import numpy as np

from pipeline.selection.candidates import usable_candidates
from pipeline.selection.contract import Method, Selection, Settings, Signals


def select(
    signals: Signals, keep: int, num_candidates: int, rng: np.random.Generator, settings: Settings
) -> Selection:
    """``keep`` candidates, uniformly weighted: in each turn the one with the largest gain, positive or not.

        gain_i = lr <g_i, g_T> - lr^2 sum_{j kept} <g_i, g_j>

    with the target's Hessian taken as the identity. Ties go to the lowest index. Raises ValueError where the
    target, or every candidate, is not finite.

    Source: J. T. Wang et al., "GREATS" (NeurIPS 2024), and its published code (lr for the product, lr^2 for
    the interaction). Departure: the kept take a step under Adam with weights 1/K, as in all methods here; the
    gain is that of their sum under plain descent, as published.
    """
    usable = usable_candidates(signals, num_candidates)
    gram_CC, learning_rate = usable.signals.gram_CC, settings.learning_rate
    gain_C = usable.signals.alignment_C.copy()  # over lr, which changes no order
    kept = []
    for _ in range(min(keep, len(gain_C))):
        best = int(np.argmax(gain_C))
        kept.append(best)
        gain_C -= learning_rate * gram_CC[best]
        gain_C[best] = -np.inf
    return usable.uniform_selection(np.array(kept))


METHOD = Method("greats", needs="gram", select=select, geometry="identity", reads_learning_rate=True)
