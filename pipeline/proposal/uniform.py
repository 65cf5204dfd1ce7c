# n proposed samples
"""The plain order itself: every sample of an epoch once, whatever it is."""

from typing import Any

import numpy as np

from pipeline.proposal.contract import Proposed, Upcoming


class Uniform:
    """Proposes the next samples as they come."""

    def propose(
        self, upcoming: Upcoming, num_samples: int, is_scored: bool, rng: np.random.Generator
    ) -> Proposed:
        """The samples of one step, as ``Proposal.propose`` says."""
        return Proposed(upcoming(num_samples), num_samples)

    def observe(self, proposed: Proposed, cosine_n: np.ndarray) -> list[str]:
        """Nothing is learned."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """All that later proposals depend on, besides settings and data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to put back."""
