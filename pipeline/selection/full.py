"""No selection: the run to compare with when more samples per update are allowed."""

from typing import Optional

import numpy as np

from pipeline.selection.contract import Method, Selection, Settings, Signals


def select(
    signals: Optional[Signals], keep: int, num_candidates: int, rng: np.random.Generator, settings: Settings
) -> Selection:
    """All candidates in order, with weights 1 / C, whatever ``keep`` is: DeepSpeed's plain step on all."""
    return Selection(np.arange(num_candidates), np.full(num_candidates, 1 / num_candidates))


METHOD = Method("full", needs="nothing", select=select)
