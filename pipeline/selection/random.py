"""A uniform draw: the baseline that costs nothing."""

from typing import Optional

import numpy as np

from pipeline.selection.contract import Method, Selection, Settings, Signals


def select(
    signals: Optional[Signals], keep: int, num_candidates: int, rng: np.random.Generator, settings: Settings
) -> Selection:
    """``keep`` candidates drawn without replacement, uniformly weighted; all where there are fewer."""
    indices = rng.choice(num_candidates, size=min(keep, num_candidates), replace=False)
    return Selection(indices, np.full(len(indices), 1 / len(indices)))


METHOD = Method("random", needs="nothing", select=select)
