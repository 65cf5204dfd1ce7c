"""TracIn: the candidates whose plain gradient step lowers the target's loss most."""

import numpy as np

from pipeline.selection.candidates import usable_candidates
from pipeline.selection.contract import Method, Selection, Settings, Signals


def select(
    signals: Signals, keep: int, num_candidates: int, rng: np.random.Generator, settings: Settings
) -> Selection:
    """The ``keep`` largest <g_i, g_T>, uniformly weighted, positive or not.

    Source: G. Pruthi et al., "Estimating training data influence by tracing gradient descent" (NeurIPS 2020,
    arXiv 2002.08484), TracInCP. Departures: the present model is the only checkpoint, so its learning rate
    changes no rank; the influence is the one on the mean of the target samples. Raises ValueError where the
    target, or every candidate, is not finite.
    """
    usable = usable_candidates(signals, num_candidates)
    return usable.largest(usable.signals.alignment_C, keep)


METHOD = Method("grad_dot", needs="gram", select=select, geometry="identity")
