# C candidates, U usable candidates (their rows are finite), K kept
"""Steps that methods share: drop non-finite candidates, rank, fall back, and measure how well the outcome
matches the target."""

from dataclasses import dataclass
from typing import Optional

import numpy as np

from pipeline.selection.contract import GramSignals, Selection, Signals
from pipeline.selection.residual_filter import ROUNDING, alignment_scores


@dataclass(frozen=True)
class UsableCandidates:
    """The candidates among which a Gram method chooses: it counts in U, and ``selection`` goes back to C."""

    signals: GramSignals
    position_U: np.ndarray
    """Position of each among the step's C candidates."""
    dropped: tuple[int, ...]

    def selection(self, kept_K: np.ndarray, weights_K: np.ndarray, fallback: bool = False) -> Selection:
        """The method's outcome, without samples of weight 0: they would cost a forward and backward."""
        kept_K, weights_K = kept_K[weights_K > 0], weights_K[weights_K > 0]
        residual, cosine = match(self.signals, kept_K, weights_K)
        return Selection(self.position_U[kept_K], weights_K, fallback, self.dropped, residual, cosine)

    def uniform_selection(self, kept_K: np.ndarray, fallback: bool = False) -> Selection:
        return self.selection(kept_K, np.full(len(kept_K), 1 / len(kept_K)), fallback)

    def largest(self, score_U: np.ndarray, keep: int) -> Selection:
        """The ``keep`` largest scores, uniformly weighted, positive or not; ties go to the lowest index."""
        return self.uniform_selection(np.argsort(-score_U, kind="stable")[:keep])

    def fallback(self, keep: int) -> Selection:
        """The ``keep`` candidates that oppose the target least, uniformly weighted, where none is aligned."""
        return self.uniform_selection(by_alignment(self.signals)[:keep], fallback=True)


def largest(score_C: np.ndarray, keep: int, what: str) -> Selection:
    """The ``keep`` candidates with the largest scores, uniformly weighted; ties go to the lowest index.

    Candidates whose score is not finite are dropped. Raises ValueError where none is left; ``what`` names the
    score in its message.
    """
    finite_C = np.isfinite(score_C)
    if not finite_C.any():
        raise ValueError(
            f"no candidate is usable: none of {len(score_C)} has a finite {what}. Look at the loss of the "
            "model on them"
        )
    indices = np.argsort(-np.where(finite_C, score_C, -np.inf), kind="stable")[: min(keep, finite_C.sum())]
    return Selection(
        indices, np.full(len(indices), 1 / len(indices)), dropped=tuple(np.flatnonzero(~finite_C).tolist())
    )


def by_alignment(signals: GramSignals) -> np.ndarray:
    """Candidates from best to worst aligned, by b_i / sqrt(K_ii), shape (C,); ties go to the lowest index."""
    return np.argsort(-alignment_scores(signals), kind="stable")


def usable_candidates(signals: Signals, num_candidates: int) -> UsableCandidates:
    """The candidates whose numbers are finite; the others, and they alone, are dropped.

    A non-finite phi_i spoils row i and column i of the Gram, so that every clean neighbour shows a non-finite
    entry too. A candidate's own K_ii and b_i tell whether it is clean.

    Raises:
        ValueError: the target's gradient is not finite, or no candidate's is.
    """
    problem = signals.gram
    gram_CC, alignment_C, target = problem.gram_CC, problem.alignment_C, problem.target_norm_squared
    C = num_candidates
    assert gram_CC.shape == (C, C) and alignment_C.shape == (C,), (
        f"{gram_CC.shape}, {alignment_C.shape} for {C} candidates"
    )
    assert gram_CC.dtype == alignment_C.dtype == np.float64, (
        f"{gram_CC.dtype}, {alignment_C.dtype}: the solver wants float64"
    )
    finite_norm_C, finite_alignment_C = np.isfinite(np.diagonal(gram_CC)), np.isfinite(alignment_C)
    if not np.isfinite(target) or (finite_norm_C.any() and not finite_alignment_C.any()):
        raise ValueError(
            f"the target's gradient is not finite: its squared norm is {target}, and "
            f"{finite_alignment_C.sum()} of {C} alignments are finite. Look at the target samples and at the "
            "loss of the model on them"
        )
    position_U = np.flatnonzero(finite_norm_C & finite_alignment_C)
    usable_UU = _rows(gram_CC, position_U)
    while (bad_UU := ~np.isfinite(usable_UU)).any():
        # Finite norms bound <phi_i, phi_j>, so this Gram is damaged; the rows with the most damage go first.
        num_bad_U = bad_UU.sum(0) + bad_UU.sum(1)
        position_U = position_U[num_bad_U < num_bad_U.max()]
        usable_UU = _rows(gram_CC, position_U)
    if len(position_U) == 0:
        raise ValueError(
            f"no candidate is usable: {(~finite_norm_C).sum()} of {C} have a non-finite norm and "
            f"{(~finite_alignment_C).sum()} a non-finite alignment with the target. Look at the loss of the "
            "model on them"
        )
    dropped = tuple(np.setdiff1d(np.arange(C), position_U).tolist())
    return UsableCandidates(GramSignals(usable_UU, alignment_C[position_U], target), position_U, dropped)


def _rows(gram_CC: np.ndarray, position_U: np.ndarray) -> np.ndarray:
    return gram_CC if len(position_U) == len(gram_CC) else gram_CC[np.ix_(position_U, position_U)]


def match(
    signals: GramSignals, kept_K: np.ndarray, weights_K: np.ndarray
) -> tuple[Optional[float], Optional[float]]:
    """Residual and cosine of the combined update u = sum_i w_i phi_i against the target's.

        residual = min over s >= 0 of |s u - phi_T| / |phi_T| = sqrt(1 - max(0, cosine)^2)
        cosine   = b'w / sqrt(w'Kw c)

    The cosine is None where u is zero (its residual is 1), and both are None where the target is zero.
    """
    target = signals.target_norm_squared
    if target <= 0:
        return None, None
    gram_KK = signals.gram_CC[np.ix_(kept_K, kept_K)]
    norm_squared = weights_K @ gram_KK @ weights_K
    # Gradients that cancel leave rounding in w'Kw, and a cosine of rounding says nothing.
    if norm_squared <= ROUNDING * (weights_K**2 @ np.maximum(np.diagonal(gram_KK), 0)):
        return 1.0, None
    cosine = float(
        np.clip(weights_K @ signals.alignment_C[kept_K] / np.sqrt(norm_squared) / np.sqrt(target), -1, 1)
    )
    return float(np.sqrt(1 - max(0.0, cosine) ** 2)), cosine
