# N samples of the pool, V terms of the target examples, T tokens
"""BM25: samples that share the target examples' rarer tokens, as a search engine ranks documents.

    score(d, q) = sum over q's terms: ln(1 + (N - df + 0.5) / (df + 0.5)) tf / (tf + k1 (1 - b + b |d| / avg))

S. Robertson, H. Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009, doi
10.1561/1500000019); in Lucene's form with k1 = 1.5 and b = 0.75, computed by bm25s (X. Lù, arXiv 2407.03618).
A document is a sample, prompt and answer; each target example is a query. Departures: terms are token ids,
neither stemmed nor stopped; the examples take samples in turn.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import bm25s
import numpy as np
from bm25s.tokenization import Tokenized

from pipeline.data.flat import token_blocks
from pipeline.data.sample import Sample
from pipeline.proposal.rankings.contract import Context, Ranked, Ranking, need_targets
from pipeline.proposal.rankings.round_robin import round_robin


class Documents:
    """The pool as bm25s reads it, several times: the numbers of each sample's terms.

    Terms that no query has share one number. They count for a sample's length alone, and an index of them all
    would be several times the pool.
    """

    def __init__(self, pool: Sequence[Sample], term_V: np.ndarray):
        self.pool, self.term_V = pool, term_V

    def __len__(self) -> int:
        return len(self.pool)

    def __iter__(self) -> Iterator[list[int]]:
        for block in token_blocks(self.pool):
            number_T = np.searchsorted(self.term_V, block.ids_T)
            is_known_T = self.term_V.take(number_T, mode="clip") == block.ids_T
            numbers = np.where(is_known_T, number_T, len(self.term_V)).tolist()
            for start, end in pairwise([0, *np.cumsum(block.lengths_n).tolist()]):
                yield numbers[start:end]


def rank(pool: Sequence[Sample], targets: Sequence[Sample], context: Context) -> Ranked:
    """The samples that each target example finds, in turn; those without a common token come last.

    Raises ValueError where there is no target example, or none has a token.
    """
    need_targets("bm25", targets)
    term_V = np.unique([token for target in targets for token in target.input_ids])
    if not len(term_V):
        raise ValueError(f"the ranking bm25 searches for tokens, and the {len(targets)} targets have none")
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75, csc_backend="scipy")
    vocabulary = {str(number): number for number in range(len(term_V) + 1)}
    documents = Tokenized(ids=Documents(pool, term_V), vocab=vocabulary)
    index.index(documents, create_empty_token=False, show_progress=False)
    queries = [np.searchsorted(term_V, target.input_ids).tolist() for target in targets]

    def scores_of(examples: range) -> np.ndarray:
        return np.stack([index.get_scores_from_ids(queries[example]) for example in examples])

    return Ranked(round_robin(scores_of, len(targets), len(pool)))


RANKING = Ranking("bm25", rank)
