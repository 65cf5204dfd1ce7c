# N samples of the pool, w samples of a window, n proposed samples, d features
"""What scored steps have seen of few samples, carried over to all of them by their static features."""

import math
from typing import Any

import numpy as np

from pipeline.proposal.contract import Proposed, Upcoming
from pipeline.proposal.features import NUM_FEATURES, SIMILARITIES
from pipeline.proposal.ridge import FORGETTING, Ridge

EXPLORED = 0.25
"""Share of a scored step's samples that are taken at random, so that a wrong prediction is found out. Those
of other steps are not observed, and are all taken for their prediction."""
STEPS_AT_ONCE = 8
"""Steps between two scored ones that share a window, at most."""
ENOUGH_EXPLORED, ENOUGH_STEPS, SMALLEST_USE = 40, 10, 0.2
"""Observed samples at random, and scored steps, before the proposal is judged; and the advantage over random,
in root mean squares of the observed cosines, below which it is of no use."""
STRENGTH_OF_PRIOR, STRENGTH_WITHOUT = 10.0, 1.0
LOWEST, HIGHEST = -1.0, 2.0
"""Bounds of an observed cosine in units of the batch's root mean square: one odd sample must not turn the
regression."""
SEEDED_AT_ONCE = 4096
"""Samples whose features are widened to float64 together."""
OWN_SHARE = 0.5
"""Weight of a sample's own observation against the prediction from its features."""


class Learned:
    """Proposes the best predicted of a window, and some of it at random.

    Args:
        features_Nd: of the whole pool (``features.Table``); may be a memory map, few rows are read a step.
        share: of the pool that is worth training on; a window is n / share positions.
        has_prior: whether the similarities to the target examples count before anything was observed.
    """

    def __init__(self, features_Nd: np.ndarray, share: float, has_prior: bool):
        prior_d = np.zeros(NUM_FEATURES)
        prior_d[:SIMILARITIES] = float(has_prior)
        self.features_Nd, self.share = features_Nd, share
        self.ridge = Ridge(prior_d, STRENGTH_OF_PRIOR if has_prior else STRENGTH_WITHOUT)
        self.observed = dict[int, float]()
        self.sums = {name: np.zeros(3) for name in ("proposed", "explored")}  # number, sum, sum of squares
        self.gave_up, self.num_judged = False, 0
        self.queue = np.empty(0, dtype=np.int64)

    def predict(self, positions_n: np.ndarray) -> np.ndarray:
        """Predicted relevance (n,); where a sample itself was observed, half of it is what was seen."""
        found_n = self.ridge.predict(self.features_Nd[positions_n])
        for i, position in enumerate(positions_n.tolist()):
            if position in self.observed:
                found_n[i] += OWN_SHARE * (self.observed[position] - found_n[i])
        return found_n

    def propose(
        self, upcoming: Upcoming, num_samples: int, is_scored: bool, rng: np.random.Generator
    ) -> Proposed:
        """The samples of one step, as ``Proposal.propose`` says."""
        if self.gave_up:
            positions_n = upcoming(num_samples)
            is_explored_n = np.ones(num_samples, dtype=bool)
            return Proposed(positions_n, num_samples, self.predict(positions_n), is_explored_n)
        if not is_scored:
            return self._from_queue(upcoming, num_samples, rng)
        window_w, size = self._window(upcoming, num_samples)
        predicted_w = self.predict(window_w)
        num_best = num_samples - math.ceil(EXPLORED * num_samples)
        explored = rng.permutation(len(window_w))[: num_samples - num_best]
        best_w = np.argsort(-predicted_w, kind="stable")
        chosen_n = np.concatenate([best_w[~np.isin(best_w, explored)][:num_best], explored])
        return Proposed(window_w[chosen_n], size, predicted_w[chosen_n], np.arange(num_samples) >= num_best)

    def _from_queue(self, upcoming: Upcoming, num_samples: int, rng: np.random.Generator) -> Proposed:
        """The next of the best of a window that serves several steps, in random order.

        In windows of one step each the number of good samples would vary by chance, and with it what the
        worst of the chosen is like.
        """
        size = 0
        if len(self.queue) < num_samples:
            # More steps at once than the pool has good samples for would take others too.
            num_steps = int(np.clip(self.share * len(self.features_Nd) / num_samples, 1, STEPS_AT_ONCE))
            number = num_steps * num_samples
            window_w, size = self._window(upcoming, number)
            best_w = np.argsort(-self.predict(window_w), kind="stable")
            self.queue = window_w[rng.permutation(best_w[:number])]
        positions_n, self.queue = self.queue[:num_samples], self.queue[num_samples:]
        is_explored_n = np.zeros(num_samples, dtype=bool)
        return Proposed(positions_n, size, self.predict(positions_n), is_explored_n)

    def seed(self, positions_n: np.ndarray, cosine_n: np.ndarray, batch: int) -> None:
        """Begin with finite cosines (n,), not all 0, that were measured before the run.

        They are one batch, and none of them is forgotten over the others. Together they count for no more
        observations than scored steps of ``batch`` samples would ever add up to, batch / (1 - FORGETTING):
        what the run itself observes takes over in the time in which it would forget its own beginning.
        """
        value_n = _in_root_mean_squares(cosine_n)
        weight = min(1.0, batch / (1 - FORGETTING) / len(value_n))
        for first in range(0, len(value_n), SEEDED_AT_ONCE):
            rows = slice(first, first + SEEDED_AT_ONCE)
            self.ridge.observe(self.features_Nd[positions_n[rows]], value_n[rows], weight, memory=1.0)
        self.observed.update(zip(positions_n.tolist(), value_n.tolist()))

    def observe(self, proposed: Proposed, cosine_n: np.ndarray) -> list[str]:
        """Learn from a scored step, as ``Proposal.observe`` says."""
        is_finite_n = np.isfinite(cosine_n)
        positions_n, cosine_n = proposed.positions_n[is_finite_n], cosine_n[is_finite_n]
        if not np.any(cosine_n):
            return []
        value_n = _in_root_mean_squares(cosine_n)
        self.ridge.observe(self.features_Nd[positions_n], value_n)
        self.queue = self.queue[:0]  # chosen by older weights
        self.observed.update(zip(positions_n.tolist(), value_n.tolist()))
        assert proposed.is_explored_n is not None
        return self._judge(value_n, proposed.is_explored_n[is_finite_n])

    def _window(self, upcoming: Upcoming, num_samples: int) -> tuple[np.ndarray, int]:
        """Distinct positions to choose from, in their order, int64 (w,), and how many were drawn for them."""
        size = min(len(self.features_Nd), max(num_samples, round(num_samples / self.share)))
        drawn_w = upcoming(size)
        window_w = drawn_w[np.sort(np.unique(drawn_w, return_index=True)[1])]  # an epoch may end inside
        while len(window_w) < num_samples:
            more = upcoming(num_samples - len(window_w))
            size += len(more)
            window_w = np.concatenate([window_w, np.setdiff1d(more, window_w)])
        return window_w, size

    def _judge(self, value_n: np.ndarray, is_explored_n: np.ndarray) -> list[str]:
        """Give up for good once it is all but certain that the proposed are hardly better than random."""
        for name, is_member_n in (("proposed", ~is_explored_n), ("explored", is_explored_n)):
            values = value_n[is_member_n]
            self.sums[name] += [len(values), values.sum(), np.square(values).sum()]
        (many, *_), (few, *_) = self.sums["proposed"], self.sums["explored"]
        self.num_judged += 1
        if self.gave_up or few < ENOUGH_EXPLORED or many == 0 or self.num_judged < ENOUGH_STEPS:
            return []
        mean, error = {}, 0.0
        for name, (number, total, squares) in self.sums.items():
            mean[name] = total / number
            error += (squares / number - mean[name] ** 2) / number
        if mean["proposed"] - mean["explored"] + 2 * error**0.5 > SMALLEST_USE:
            return []
        self.gave_up = True
        return [
            f"the proposal does not help: over {int(many)} proposed samples the mean observed cosine is "
            f"{mean['proposed']:.2f}, over {int(few)} at random {mean['explored']:.2f} (in root mean squares "
            "of their step): from here on samples come as they are"
        ]

    def state_dict(self) -> dict[str, Any]:
        """All that later proposals depend on, besides settings and data."""
        sums = {name: values.copy() for name, values in self.sums.items()}
        own = {name: getattr(self, name) for name in ("share", "gave_up", "num_judged", "queue")}
        return {**self.ridge.state_dict(), **own, "observed": dict(self.observed), "sums": sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the proposal back to where ``state_dict`` was taken."""
        self.ridge.load_state_dict(state)
        self.share, self.queue, self.observed = state["share"], state["queue"], dict(state["observed"])
        self.gave_up, self.num_judged = state["gave_up"], state["num_judged"]
        self.sums = {name: values.copy() for name, values in state["sums"].items()}


def _in_root_mean_squares(cosine_n: np.ndarray) -> np.ndarray:
    """Cosines in units of their root mean square, within LOWEST and HIGHEST."""
    return np.clip(cosine_n / float(np.sqrt(np.mean(np.square(cosine_n)))), LOWEST, HIGHEST)
