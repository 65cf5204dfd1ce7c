"""RHO-LOSS: the candidates that can be learned, are worth learning, and are not learned yet."""

import numpy as np

from pipeline.selection.candidates import largest
from pipeline.selection.contract import Method, Selection, Settings, Signals


def select(
    signals: Signals, keep: int, num_candidates: int, rng: np.random.Generator, settings: Settings
) -> Selection:
    """The ``keep`` largest l_i - l_i(reference), uniformly weighted; the reference learned held-out data.

    Source: S. Mindermann et al., "Prioritized training on points that are learnable, worth learning, and not
    yet learnt" (ICML 2022, arXiv 2206.07137), eq. 3 and algorithm 1. Departure: the irreducible losses are
    computed when a candidate comes up, not for the whole pool beforehand. Raises ValueError where no
    difference is finite.
    """
    assert signals.loss_C is not None and signals.reference_loss_C is not None
    with np.errstate(invalid="ignore"):  # an infinite loss under both models
        reducible_C = signals.loss_C - signals.reference_loss_C
    return largest(reducible_C, keep, "difference of losses")


METHOD = Method("rho_loss", needs="reference_loss", select=select)
