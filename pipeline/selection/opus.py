# C candidates, K kept
"""OPUS: draws by how much the optimizer's update on a candidate would lower the target's loss."""

import numpy as np

from pipeline.selection.candidates import usable_candidates
from pipeline.selection.contract import Method, Selection, Settings, Signals


def select(
    signals: Signals, keep: int, num_candidates: int, rng: np.random.Generator, settings: Settings
) -> Selection:
    """``keep`` draws without replacement, uniformly weighted, with probabilities ~ exp(U_i / temperature).

        U_i = lr <D g_i, g_T> - lr^2 <D g_i, sum_{j kept} D g_j>

    Utilities are first-order changes of the loss, and grow with the learning rate and the number of scored
    parameters: at the same temperature the draws may be greedy in one run and uniform in another. Raises
    ValueError where the target, or every candidate, is not finite.

    Source: S. Wang et al., "OPUS" (arXiv 2602.05400), eq. 23, eq. 26 and algorithm 1, AdamW as in section
    4.3. Departures: D has neither Adam's factor (1 - beta1) / (1 - beta1^t) nor a second learning rate, both
    of which eq. 13 puts into it: with beta1 = 0.9 the lack of the first alone makes utilities up to 10 times
    as large, and draws greedier; v is corrected for the updates done and not decayed by the next; the target
    set stands for the proxy retrieved from the corpus; products are exact, or ``selection.backend`` projects
    in place of CountSketch; samples are whole instead of 512 tokens long.
    """
    usable = usable_candidates(signals, num_candidates)
    gram_CC, learning_rate = usable.signals.gram_CC, settings.learning_rate
    utility_C = learning_rate * usable.signals.alignment_C
    kept: list[int] = []
    for _ in range(min(keep, len(utility_C))):
        # The largest U / temperature + Gumbel noise is a draw from the softmax, without an exponential that
        # could overflow.
        drawn = int(np.argmax(utility_C / settings.temperature + rng.gumbel(size=len(utility_C))))
        kept.append(drawn)
        utility_C -= learning_rate**2 * gram_CC[drawn]
        utility_C[drawn] = -np.inf
    return usable.uniform_selection(np.array(kept))


METHOD = Method("opus", needs="gram", select=select, geometry="update_to_gradient", reads_learning_rate=True)
