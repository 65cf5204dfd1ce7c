# n proposed samples, C candidates, R proposed samples of this rank
"""What a step gets to work on: whether it scores, and which samples. Decided on rank 0, the same for all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from pipeline.config import SelectionConfig
from pipeline.data.sample import Sample
from pipeline.data.stream import CandidateStream
from pipeline.proposal.contract import Proposal, Proposed
from pipeline.proposal.schedule import Evidence, Schedule
from pipeline.ranks.together import together
from pipeline.selection import registry
from pipeline.selection.contract import Signals
from pipeline.selection.halves import Halves

DRAWS = 8
"""Sets of proposed samples whose cosine stands for that of an unscored step."""


@dataclass(frozen=True)
class Plan:
    """One step's samples."""

    step: int
    """Number of the step, from 0."""
    is_scored: bool
    """Whether they are candidates; otherwise the update trains on all of them alike."""
    proposed: Proposed
    """Positions of its samples in the pool, and what was predicted of them."""
    turn: int
    """Steps that were scored before; the target samples rotate with these."""
    epoch: float
    """Epochs of the plain order that were passed before."""


class Proposer:
    """Hands out the samples of each step. Every rank calls every method in the same order.

    The plain order follows from the seed; how far it has been read, what was learned and when the next step
    is scored are state, and rank 0's alone count.

    Args:
        stream: the plain order of the pool.
        settings: numbers of samples, and the method.
        proposal: which of the next samples are taken; None on all ranks but 0.
        schedule: which steps score.
        seed: of draws.
        group: the ranks; by default all.
        num_mixed: target examples that every update is given besides.
    """

    def __init__(
        self,
        stream: CandidateStream,
        settings: SelectionConfig,
        proposal: Optional[Proposal],
        schedule: Schedule,
        seed: int,
        group: Any = None,
        num_mixed: int = 0,
    ):
        self.stream, self.settings, self.proposal, self.schedule = stream, settings, proposal, schedule
        self.method = registry.get(settings.method)
        self.seed, self.group, self.num_mixed = seed, group, num_mixed
        self.place = self.num_scored = 0

    @property
    def pool(self) -> Sequence[Sample]:
        return self.stream.pool

    def plan(self, step: int) -> Plan:
        """The samples of ``step``: C where it scores, else as many as an update takes from the pool."""
        return together(lambda: self._plan(step), self.group)

    def share(self, plan: Plan, rank: int, world_size: int) -> list[Sample]:
        """This rank's R samples of a plan: shares in the order of ranks are the whole in order."""
        return self.stream.share(plan.proposed.positions_n, rank, world_size)

    def observe(
        self,
        plan: Plan,
        signals: Optional[Signals],
        halves: Optional[Halves] = None,
        weights_2C: Optional[np.ndarray] = None,
    ) -> list[str]:
        """Learn from a scored step, on rank 0.

        Args:
            plan: of the step.
            signals: what was measured; None where the method needs nothing or the target was lost.
            halves: the target in two, where it was judged so.
            weights_2C: of what would be chosen for each half.

        Returns:
            Sentences for the log.
        """
        self.num_scored += 1
        if signals is None or signals.gram_CC is None:
            return []
        gram_CC = signals.gram_CC

        def learn() -> list[str]:
            assert self.proposal is not None  # rank 0's
            evidence = None
            if halves is not None and weights_2C is not None:
                evidence = self._evidence(plan, gram_CC, halves, weights_2C)
            self.schedule.observe(plan.step, evidence)
            return self.proposal.observe(plan.proposed, cosines(signals))

        return together(learn, self.group)

    def _evidence(
        self, plan: Plan, gram_CC: np.ndarray, halves: Halves, weights_2C: np.ndarray
    ) -> Optional[Evidence]:
        """What the step tells about the worth of scoring; None where it tells nothing."""
        is_best_C = np.isfinite(np.diag(gram_CC)) & np.isfinite(halves.alignment_2C).all(0)
        explored_C, keep = plan.proposed.is_explored_n, self.settings.keep_per_step
        if explored_C is not None and not explored_C.all():  # a proposal that gave up takes all at random
            is_best_C &= ~explored_C
        best_C, mixed = np.flatnonzero(is_best_C), self.num_mixed / keep
        if len(best_C) == 0:
            return None
        rng, found = np.random.default_rng((self.seed, plan.step, 3)), []
        for _ in range(DRAWS):  # as an unscored step would have taken: some of what was proposed
            drawn_2C = np.zeros_like(weights_2C)
            rows_K = rng.permutation(best_C)[: keep - self.num_mixed]
            drawn_2C[:, rows_K] = 1 / len(rows_K)
            found.append(halves.cosine(gram_CC, drawn_2C, mixed))
        selected, proposed = halves.cosine(gram_CC, weights_2C, mixed), [c for c in found if c is not None]
        if selected is None or not proposed:
            return None
        return Evidence(selected, sum(proposed) / len(proposed))

    def spend(self, selection_seconds: float, step_seconds: float) -> None:
        """Let the schedule know what a step has taken; it is rank 0's clock that counts."""
        self.schedule.spend(selection_seconds, step_seconds)

    def state_dict(self) -> dict[str, Any]:
        """All that later proposals depend on, besides settings and data."""
        return {
            "place": self.place,
            "num_scored": self.num_scored,
            "proposal": self.proposal.state_dict() if self.proposal else {},
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the proposal back to where ``state_dict`` was taken."""
        self.place, self.num_scored = state["place"], state["num_scored"]
        if self.proposal:
            self.proposal.load_state_dict(state["proposal"])
        self.schedule.load_state_dict(state["schedule"])

    def _plan(self, step: int) -> Plan:
        assert self.proposal is not None  # rank 0's
        is_scored = not self.method.looks_at_candidates or self.schedule.is_scored(step)
        number = self.settings.candidates_per_step
        if not is_scored:
            number = self.settings.keep_per_step - self.num_mixed
        before = self.stream.epochs(self.place)
        rng = np.random.default_rng((self.seed, step, 2))  # apart from orders of epochs and from selections
        proposed = self.proposal.propose(self._upcoming, number, is_scored, rng)
        return Plan(step, is_scored, proposed, self.num_scored, before)

    def _upcoming(self, count: int) -> np.ndarray:
        found = self.stream.order(self.place, count)
        self.place += count
        return found


def cosines(signals: Signals) -> np.ndarray:
    """Cosine of every candidate's update to the target's, float64 (C,); NaN where it has no meaning."""
    gram = signals.gram
    with np.errstate(invalid="ignore", divide="ignore"):
        return gram.alignment_C / np.sqrt(np.diag(gram.gram_CC) * gram.target_norm_squared)
