# N samples of the pool, n proposed samples
"""The best of a ranking that was made before the run, in the plain order: retrieval, then random."""

from typing import Any

import numpy as np

from pipeline.proposal.contract import Proposed, Upcoming


class Retrieval:
    """Proposes the first of a ranking alone, each of them once an epoch.

    Args:
        order_N: positions of the pool, int64 (N,), best first.
        num_taken: how many of these are proposed; at least 1.
    """

    def __init__(self, order_N: np.ndarray, num_taken: int):
        self.is_taken_N = np.zeros(len(order_N), dtype=bool)
        self.is_taken_N[order_N[:num_taken]] = True
        self.share = float(self.is_taken_N.mean())

    def propose(
        self, upcoming: Upcoming, num_samples: int, is_scored: bool, rng: np.random.Generator
    ) -> Proposed:
        """The samples of one step, as ``Proposal.propose`` says."""
        found, window = list[int](), 0
        while len(found) < num_samples:
            # No more than are missing, so that no sample is passed over that the next step may take.
            next_n = upcoming(num_samples - len(found))
            window += len(next_n)
            found = list(dict.fromkeys([*found, *next_n[self.is_taken_N[next_n]].tolist()]))  # each once
        return Proposed(np.array(found, dtype=np.int64), window)

    def observe(self, proposed: Proposed, cosine_n: np.ndarray) -> list[str]:
        """The ranking stays as it is."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """All that later proposals depend on, besides settings and data."""
        return {"is_taken": np.packbits(self.is_taken_N)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # A ranking that is made anew may differ by rounding.
        self.is_taken_N = np.unpackbits(state["is_taken"], count=len(self.is_taken_N)).astype(bool)
