# N samples of the pool
"""Oracle: the undamaged samples of the target examples' kind, where the data say which these are.

No paper's: an upper bound of what a choice by kind and damage can give, for pools that were made with known
damage. It uses what no other ranking may see, the fields ``source`` and ``damage``.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.data.flat import sources_and_damages
from pipeline.data.sample import Sample
from pipeline.proposal.rankings.contract import Context, Ranked, Ranking, need_targets

UNDAMAGED = ("none", "", "duplicate")
"""Values of ``damage`` with a right answer; '' where the pool does not say. A duplicate is right twice."""


def rank(pool: Sequence[Sample], targets: Sequence[Sample], context: Context) -> Ranked:
    """The good samples, equally good, then all others, each in an order that ``context.seed`` decides.

    Raises ValueError where the fields tell no good samples from others.
    """
    need_targets("oracle", targets)
    kinds = {target.source for target in targets}
    is_good_N = np.array(
        [source in kinds and damage in UNDAMAGED for source, damage in sources_and_damages(pool)], dtype=bool
    )
    num_good = int(is_good_N.sum())
    if num_good in (0, len(pool)):
        raise ValueError(
            f"the ranking oracle needs data that say what is good, and {num_good or 'none'} of {len(pool)} "
            f"samples of the pool have a source of the target examples ({', '.join(sorted(kinds)[:5])}) and "
            "no damage: give samples and examples the field source, and damaged samples the field damage"
        )
    shuffled_N = np.random.default_rng(context.seed).permutation(len(pool))
    return Ranked(
        np.concatenate([shuffled_N[is_good_N[shuffled_N]], shuffled_N[~is_good_N[shuffled_N]]]), num_good
    )


RANKING = Ranking("oracle", rank)
