"""LESS: the candidates whose Adam update points where the target's gradient does."""

import numpy as np

from pipeline.selection.candidates import usable_candidates
from pipeline.selection.contract import Method, Selection, Settings, Signals
from pipeline.selection.residual_filter import alignment_scores


def select(
    signals: Signals, keep: int, num_candidates: int, rng: np.random.Generator, settings: Settings
) -> Selection:
    """The ``keep`` largest cos(D g_i, g_T), uniformly weighted, positive or not; a zero gradient scores 0.

    Source: M. Xia et al., "LESS" (ICML 2024, arXiv 2402.04333), definition 3.1 (Adam for the candidate, plain
    gradient for the target). Departures: selection at every step of the run instead of once, on the
    checkpoints of a warm-up run; momentum is left out of the candidate's vector, since it is the same for
    all, and the candidate's own square out of the second moment; one target set, so no maximum over subtasks;
    random projections only with ``selection.backend = projected``. Raises ValueError where the target, or
    every candidate, is not finite.
    """
    usable = usable_candidates(signals, num_candidates)
    return usable.largest(alignment_scores(usable.signals), keep)


METHOD = Method("less", needs="gram", select=select, geometry="update_to_gradient")
