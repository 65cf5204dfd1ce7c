# n observed samples, d features
"""Online ridge regression of observed cosines on static features, with a prior and slow forgetting."""

from typing import Any

import numpy as np

FORGETTING = 0.98


class Ridge:
    """theta = mu + (A + lambda I)^-1 r, where A and r fade by ``FORGETTING`` with every batch.

    The prior's part is never forgotten. All of it is float64.

    Args:
        prior_d: mu, the weights before anything was observed.
        strength: lambda, the number of observations that the prior is worth in each direction.
    """

    def __init__(self, prior_d: np.ndarray, strength: float):
        self.prior_d, self.strength = prior_d, strength
        self.products_dd = np.zeros((len(prior_d), len(prior_d)))
        self.remainder_d = np.zeros(len(prior_d))
        self.weights_d = prior_d.copy()

    def predict(self, features_nd: np.ndarray) -> np.ndarray:
        """Predictions (n,)."""
        return features_nd.astype(np.float64) @ self.weights_d

    def observe(
        self, features_nd: np.ndarray, value_n: np.ndarray, weight: float = 1.0, memory: float = FORGETTING
    ) -> None:
        """Learn from one batch of observed values (n,).

        Each counts for ``weight`` observations, and what was observed before for ``memory`` of what it did.
        """
        features_nd = features_nd.astype(np.float64)
        self.products_dd = memory * self.products_dd + weight * (features_nd.T @ features_nd)
        surprise_n = value_n - features_nd @ self.prior_d
        self.remainder_d = memory * self.remainder_d + weight * (features_nd.T @ surprise_n)
        self._solve()

    def state_dict(self) -> dict[str, Any]:
        """All that later proposals depend on, besides settings and data."""
        return {"products": self.products_dd, "remainder": self.remainder_d}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the proposal back to where ``state_dict`` was taken."""
        self.products_dd, self.remainder_d = state["products"], state["remainder"]
        self._solve()

    def _solve(self) -> None:
        regular_dd = self.products_dd + self.strength * np.eye(len(self.prior_d))
        self.weights_d = self.prior_d + np.linalg.solve(regular_dd, self.remainder_d)
