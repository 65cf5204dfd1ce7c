"""Ordered SGD: the candidates with the largest losses."""

import numpy as np

from pipeline.selection.candidates import largest
from pipeline.selection.contract import Method, Selection, Settings, Signals


def select(
    signals: Signals, keep: int, num_candidates: int, rng: np.random.Generator, settings: Settings
) -> Selection:
    """The ``keep`` largest losses, uniformly weighted.

    Source: K. Kawaguchi, H. Lu, "Ordered SGD" (AISTATS 2020, arXiv 1907.04371), algorithm 1: the mean
    gradient of the q largest losses of a mini-batch. No departure. Raises ValueError where no loss is finite.
    """
    assert signals.loss_C is not None
    return largest(signals.loss_C, keep, "loss")


METHOD = Method("max_loss", needs="loss", select=select)
