# N samples of the pool, M target examples, m of them, d entries of a list
"""Several target examples' wishes as one order: each takes the best that is left, in turn.

A sum or a maximum over examples would give all places to those with large scores. The result is exact, and
takes bounded memory: of many examples only the head of each list is held, and made anew where one is used up.
"""

from collections.abc import Callable, Iterator

import numpy as np

from pipeline.proposal.rankings.contract import best_first

ScoresOf = Callable[[range], np.ndarray]
"""``scores_of(examples)`` is (m, N): the score of each sample of the pool for these target examples."""
HELD = 1 << 28
"""Scores, and entries of lists, held at a time: 1 GiB each. It is enough for 268 examples over a pool of
1,000,000 at once."""
READ = 256
"""Entries of a list that are looked up together."""


def round_robin(scores_of: ScoresOf, num_targets: int, num_samples: int, held: int = HELD) -> np.ndarray:
    """Positions of the pool, int64 (N,), in the order in which they are taken.

    Example 0 takes its best sample, example 1 its best of the rest, and so on, round after round. Of equal
    scores the first in the pool comes first; NaN comes last.

    Args:
        scores_of: called for ranges of examples, more than once where ``held`` is small.
        num_targets: M; at least 1.
        num_samples: N.
        held: bounds memory, and changes nothing of the result.
    """
    at_once, depth = max(1, held // max(1, num_samples)), max(1, min(num_samples, held // num_targets))
    order_N, num_taken, turn = np.empty(num_samples, dtype=np.int64), 0, 0
    is_taken_N = np.zeros(num_samples, dtype=bool)
    while num_taken < num_samples:
        lists = [
            _untaken(_head(score_N, is_taken_N, depth), is_taken_N)
            for first in range(0, num_targets, at_once)
            for score_N in scores_of(range(first, min(first + at_once, num_targets)))
        ]
        # A list that is used up has had ``depth`` entries taken from the pool, so the loop ends.
        while (position := next(lists[turn], None)) is not None:
            order_N[num_taken], is_taken_N[position] = position, True
            num_taken, turn = num_taken + 1, (turn + 1) % num_targets
    return order_N


def _head(score_N: np.ndarray, is_taken_N: np.ndarray, depth: int) -> np.ndarray:
    """The best ``depth`` positions of those not taken, int32 (d,)."""
    best_N = best_first(score_N)
    return best_N[~is_taken_N[best_N]][:depth].astype(np.int32)


def _untaken(head_d: np.ndarray, is_taken_N: np.ndarray) -> Iterator[int]:
    """Entries of a list one by one, without those that are taken by then."""
    for first in range(0, len(head_d), READ):
        part = head_d[first : first + READ]
        for position in part[~is_taken_N[part]].tolist():
            if not is_taken_N[position]:
                yield position
