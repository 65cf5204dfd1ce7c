"""All rankings by name. A new ranking is a file of its own and an entry here."""

from pipeline.proposal.rankings import bm25, dsir, fit, oracle, rds, tfidf
from pipeline.proposal.rankings.contract import Ranking

RANKINGS: dict[str, Ranking] = {
    module.RANKING.name: module.RANKING for module in (bm25, tfidf, dsir, rds, fit, oracle)
}


def get(name: str) -> Ranking:
    """The ranking called ``name``. Raises ValueError, with the known names, where there is none."""
    if name not in RANKINGS:
        raise ValueError(f"no ranking is called {name!r}; there are {', '.join(RANKINGS)}")
    return RANKINGS[name]
