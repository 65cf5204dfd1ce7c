# C candidates, K kept
"""The Filter: which candidates to keep."""

import numpy as np

from pipeline.selection.contract import GramSignals

ROUNDING = 1e-9
"""A score below this share of |phi_T| is the rounding of float64 row sums (what is left of a twin, say), not
a signal."""


def alignment_scores(signals: GramSignals) -> np.ndarray:
    """b_i / sqrt(K_ii) = |phi_T| cos(phi_i, phi_T), (C,): the filter's first score; 0 for a zero gradient."""
    norm_C = np.sqrt(np.maximum(np.diagonal(signals.gram_CC), 0))
    return np.divide(signals.alignment_C, norm_C, out=np.zeros_like(norm_C), where=norm_C > 0)


def smallest_score(signals: GramSignals) -> float:
    """The score that a candidate must exceed to count as positive; infinite for a target of zero."""
    target_norm = np.sqrt(max(signals.target_norm_squared, 0))
    return ROUNDING * target_norm if target_norm > 0 else np.inf


def residual_filter(signals: GramSignals, keep: int) -> tuple[np.ndarray, float]:
    """Greedy residual matching with a line-searched common scale.

    With S kept so far, B = sum_S b_i and Q = sum_SS K_ij, the common scale max(0, B / Q) minimises
    |scale sum_S phi_j - phi_T|. The next to be kept is the candidate that is best aligned with what then
    remains of the target,

        argmax over i not in S of (b_i - scale sum_{j in S} K_ij) / sqrt(K_ii),

    until ``keep`` are kept or no score is positive. Ties go to the lowest index; a zero gradient (K_ii <= 0)
    is never kept. Scaling all gradients, or the target's alone, changes nothing. With running row sums the
    cost is O(C K).

    Args:
        signals: finite; gram_CC symmetric.
        keep: largest number of candidates to keep.
    Returns:
        kept_K in the order of keeping (K <= keep, 0 if nothing is aligned with the target), and the final
        common scale.
    Source:
        Our own derivation, docs/method.md, after the idea of Wang et al., "Filter-then-Weight" (arXiv
        2604.00001), of which only the abstract was at hand.
    """
    gram_CC, alignment_C = signals.gram_CC, signals.alignment_C
    norm_C = np.sqrt(np.maximum(np.diagonal(gram_CC), 0))
    available_C = norm_C > 0
    row_sum_C = np.zeros_like(norm_C)  # sum_{j in S} K_ij
    threshold = smallest_score(signals)
    kept: list[int] = []
    scale = sum_b = sum_gram = 0.0
    while len(kept) < keep:
        residual_C = alignment_C - scale * row_sum_C
        score_C = np.divide(residual_C, norm_C, out=np.full_like(norm_C, -np.inf), where=available_C)
        best = int(np.argmax(score_C))
        if not score_C[best] > threshold:
            break
        kept.append(best)
        available_C[best] = False
        sum_b += alignment_C[best]
        sum_gram += 2 * row_sum_C[best] + gram_CC[best, best]
        row_sum_C += gram_CC[best]
        # Where the kept vectors cancel each other, no common scale brings them nearer to the target.
        scale = max(0.0, sum_b / sum_gram) if sum_gram > 0 else 0.0
    return np.array(kept, dtype=np.int64), float(scale)
