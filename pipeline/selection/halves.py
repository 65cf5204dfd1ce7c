# C candidates, K of them with weight, 2 halves of the target
"""A target in two halves, by which a choice that was made for one is judged by the other."""

from dataclasses import dataclass
from typing import Optional

import numpy as np


@dataclass(frozen=True)
class Halves:
    """Products of the rows of two targets T_1 and T_2, float64."""

    alignment_2C: np.ndarray
    """<phi_i, T_h>, (2, C)."""
    products_22: np.ndarray
    """<T_g, T_h>, (2, 2)."""

    def cosine(self, gram_CC: np.ndarray, weights_2C: np.ndarray, mixed: float = 0.0) -> Optional[float]:
        """Cosine to one half of the update that is made for the other, mean of both ways.

        Args:
            gram_CC: products of the candidates' rows.
            weights_2C: of the candidates in the update that is made for each half, each sum 1.
            mixed: share of the update that is the half itself (``training.target_mix``).

        Returns:
            None where an update or a half is zero or not finite.
        """
        found = []
        for own, other in ((0, 1), (1, 0)):
            kept = np.flatnonzero(weights_2C[own])  # of the others nothing need be finite
            weights_K, rest = weights_2C[own, kept], 1 - mixed
            product = rest * weights_K @ self.alignment_2C[other, kept] + mixed * self.products_22[own, other]
            norm_squared = (
                rest**2 * weights_K @ gram_CC[np.ix_(kept, kept)] @ weights_K
                + 2 * rest * mixed * weights_K @ self.alignment_2C[own, kept]
                + mixed**2 * self.products_22[own, own]
            ) * self.products_22[other, other]
            if not (np.isfinite(norm_squared) and norm_squared > 0):
                return None
            found.append(float(product / np.sqrt(norm_squared)))
        return sum(found) / 2
