# N samples of the pool
"""Loss change: samples that a model predicts better once it has been fitted a little to the target.

    score = l(sample) before the fit - l(sample) after it

R. Moore, W. Lewis, "Intelligent Selection of Language Model Training Data" (ACL 2010, P10-2041) rank by the
difference of the cross-entropies per token under a model of all data and one of the target's kind; that the
second is the first, fine-tuned on the target's examples, is D. Iter, D. Grangier (arXiv 2109.07591,
"contrastive data selection"). Departures: the loss is of supervised tokens alone; the fit is a few steps, as
there are a few examples.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.data.sample import Sample
from pipeline.proposal.rankings.contract import Context, Ranked, Ranking, best_first, need_targets


def rank(pool: Sequence[Sample], targets: Sequence[Sample], context: Context) -> Ranked:
    """The samples by how far their loss falls; one without a supervised token counts as unchanged.

    Raises ValueError where there is no target example, or no change is finite.
    """
    need_targets("fit", targets)
    assert context.model is not None
    before_N, after_N = context.model.losses_around_fit(pool, targets)
    with np.errstate(invalid="ignore"):  # infinite before and after
        fall_N = before_N.astype(np.float64) - after_N
    is_finite_N = np.isfinite(fall_N)
    if not is_finite_N.any():
        raise ValueError(
            f"the ranking fit measures how the losses of {len(pool)} samples change in a fit to "
            f"{len(targets)} target examples, and none of these is finite: lower training.learning_rate"
        )
    return Ranked(best_first(np.where(is_finite_N, fall_N, np.nan)))


RANKING = Ranking("fit", rank, needs_model=True)
