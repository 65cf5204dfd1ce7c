# C candidates
"""What a scored step tells about the proposal."""

from typing import Optional

import numpy as np

from pipeline.proposal.contract import Proposed
from pipeline.proposal.proposer import cosines
from pipeline.selection.contract import Signals


def health(signals: Optional[Signals], proposed: Proposed) -> dict[str, Optional[float]]:
    """Numbers for the records; None where the step tells nothing.

    ``predicted_correlation`` is that of predicted and observed cosines. ``cosine_of_proposed`` and
    ``cosine_of_explored`` are mean observed cosines of samples taken for their prediction and of those taken
    at random.
    """
    found: dict[str, Optional[float]] = {
        "predicted_correlation": None,
        "cosine_of_proposed": None,
        "cosine_of_explored": None,
    }
    if signals is None or signals.gram_CC is None:
        return found
    cosine_C = cosines(signals)
    is_finite_C = np.isfinite(cosine_C)
    predicted_C, is_explored_C = proposed.predicted_n, proposed.is_explored_n
    if predicted_C is None or is_explored_C is None:
        # The plain order is a uniform draw; a ranking takes the best of more.
        is_explored_C = np.full(len(cosine_C), proposed.window == len(cosine_C))
    elif is_finite_C.sum() > 2:
        pair = predicted_C[is_finite_C], cosine_C[is_finite_C]
        if min(values.std() for values in pair) > 0:
            found["predicted_correlation"] = float(np.corrcoef(*pair)[0, 1])
    for name, is_member_C in (("proposed", ~is_explored_C), ("explored", is_explored_C)):
        if (is_member_C & is_finite_C).any():
            found[f"cosine_of_{name}"] = float(cosine_C[is_member_C & is_finite_C].mean())
    return found
