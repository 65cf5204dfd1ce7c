"""The candidates that would move the parameters most."""

import numpy as np

from pipeline.selection.candidates import largest
from pipeline.selection.contract import Method, Selection, Settings, Signals


def select(
    signals: Signals, keep: int, num_candidates: int, rng: np.random.Generator, settings: Settings
) -> Selection:
    """The ``keep`` largest |g_i|, uniformly weighted.

    Source: A. Katharopoulos, F. Fleuret, "Not all samples are created equal" (ICML 2018, arXiv 1803.00942).
    Departures: the largest norms (the form in which GREATS compares with the method) instead of draws with
    probability |g_i| and unbiased weights; norms over all scored layers instead of an upper bound from the
    last one. Raises ValueError where no norm is finite.
    """
    assert signals.squared_norm_C is not None
    return largest(signals.squared_norm_C, keep, "gradient norm")


METHOD = Method("grad_norm", needs="norm", select=select, geometry="identity")
