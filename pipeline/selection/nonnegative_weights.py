# K kept
"""The Weight: how much each kept sample counts."""

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import nnls

ROUNDING = 1e-9
"""Smallest ridge: above the relative error of the eigenvalues of a float64 Gram of a thousand rows, below any
ridge that makes a difference."""


def nonnegative_weights(
    gram_KK: np.ndarray, alignment_K: np.ndarray, scale: float, ridge: float
) -> tuple[np.ndarray, bool]:
    """Non-negative least squares toward the target's update, shrunk toward uniform weights, scaled to sum 1.

        w = argmin over w >= 0 of 1/2 w'Kw - b'w + ridge/2 mean(diag K) |w - scale 1|^2,    then w / sum(w)

    ridge -> infinity gives uniform weights (max(b, 0) where scale = 0), ridge -> 0 plain NNLS. The ridge is
    never taken below 1e-9: that makes the weights of duplicates unique (equal), and is lost in the noise of
    any real target otherwise.

    Args:
        gram_KK, alignment_K: K and b of the kept candidates.
        scale: the filter's final common scale; 0 shrinks toward no weight at all.
        ridge: dimensionless, >= 0; infinity is the limit.
    Returns:
        weights_K >= 0 with sum 1, and whether the least squares wanted no sample at all, that is
        b + ridge mean(diag K) scale <= 0 everywhere: the weights are then uniform. This is not to be expected
        after the filter, whose first b is positive.
    Source:
        Our own derivation, docs/method.md, after the idea of Wang et al., "Filter-then-Weight" (arXiv
        2604.00001), of which only the abstract was at hand.
    """
    num_kept = len(alignment_K)
    mean_diagonal = np.trace(gram_KK) / num_kept
    assert mean_diagonal > 0, (
        f"mean squared norm of the {num_kept} kept is {mean_diagonal:g}; the filter keeps no zero gradient"
    )
    if ridge == np.inf:
        weights_K = np.ones(num_kept) if scale > 0 else np.maximum(alignment_K, 0)
    else:
        weights_K = _least_squares(
            gram_KK / mean_diagonal, alignment_K / mean_diagonal, scale, max(ridge, ROUNDING)
        )
    if not weights_K.any():
        return np.full(num_kept, 1 / num_kept), True
    return weights_K / weights_K.sum(), False


def _least_squares(gram_KK: np.ndarray, alignment_K: np.ndarray, scale: float, ridge: float) -> np.ndarray:
    """The weights up to a common factor; mean(diag K) is 1."""
    # nnls stops at an absolute tolerance, so matrix and right-hand side are brought to size 1; the sum is
    # scaled anyway.
    rhs_K = alignment_K + ridge * scale
    rhs_K = rhs_K / (np.abs(rhs_K).max() or 1.0)
    # nnls wants a root R'R = K + ridge I. An eigenvalue root, not a Cholesky factor: a Gram summed in
    # float32, or with duplicates, has slightly negative eigenvalues; they are cut at zero here, where
    # Cholesky would refuse the matrix.
    eigenvalue_K, eigenvector_KK = eigh(gram_KK)
    root_K = np.sqrt(np.maximum(eigenvalue_K, 0) + ridge)
    return nnls(root_K[:, None] * eigenvector_KK.T, eigenvector_KK.T @ rhs_K / root_K)[0]
