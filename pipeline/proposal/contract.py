# n proposed samples
"""The contract of a proposal: the next positions of a seeded order in, those worth a step's time out.

A proposal reads what was known before the run and what scored steps have observed; it takes no forward. It
lives on rank 0 alone, and its positions are sent to the others (pipeline/proposal/proposer.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional, Protocol

import numpy as np

Upcoming = Callable[[int], np.ndarray]
"""``upcoming(count)`` is the next ``count`` positions of the plain order, int64; each is handed out once."""


@dataclass(frozen=True)
class Proposed:
    """Samples that a step scores or trains on."""

    positions_n: np.ndarray
    """Positions in the pool, int64 (n,); distinct, unless an epoch of the plain order ends among them."""
    window: int
    """Positions of the plain order that were read for them; 0 where an earlier step has read for this one."""
    predicted_n: Optional[np.ndarray] = None
    """Predicted relevance, float64 (n,), in root mean squares of the observed cosines; None where nothing is
    predicted."""
    is_explored_n: Optional[np.ndarray] = None
    """Whether a sample was taken at random instead of for its prediction, bool (n,); None like
    ``predicted_n``."""


class Proposal(Protocol):
    """One way to propose."""

    def propose(
        self, upcoming: Upcoming, num_samples: int, is_scored: bool, rng: np.random.Generator
    ) -> Proposed:
        """Samples for one step.

        Args:
            upcoming: gives the next positions.
            num_samples: n, at most as many as the pool has.
            is_scored: whether the step will observe them.
            rng: follows from the run's seed and the step.
        """
        ...

    def observe(self, proposed: Proposed, cosine_n: np.ndarray) -> list[str]:
        """Learn from the cosines (n,) of these samples' updates to the target's; NaN where there is none.

        Returns sentences for the log.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that later proposals depend on and that does not follow from settings and data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the proposal back to where ``state_dict`` was taken."""
        ...
