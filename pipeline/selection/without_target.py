# C candidates, U usable ones
"""Selection where the target's gradient is not finite: a uniform draw among finite candidates."""

import numpy as np

from pipeline.selection import random
from pipeline.selection.contract import Selection, Settings, Signals


def usable_candidates(signals: Signals) -> np.ndarray:
    """Positions (U,) of candidates with a finite loss and a finite row."""
    assert signals.loss_C is not None
    return np.flatnonzero(np.isfinite(np.diagonal(signals.gram.gram_CC)) & np.isfinite(signals.loss_C))


def draw(
    usable_U: np.ndarray, keep: int, num_candidates: int, rng: np.random.Generator, settings: Settings
) -> Selection:
    """At most ``keep`` of the usable candidates, uniformly weighted; the unusable ones are dropped."""
    drawn = random.METHOD.select(None, min(keep, len(usable_U)), len(usable_U), rng, settings)
    dropped = tuple(np.setdiff1d(np.arange(num_candidates), usable_U).tolist())
    return Selection(usable_U[drawn.indices], drawn.weights, fallback=True, dropped=dropped)
