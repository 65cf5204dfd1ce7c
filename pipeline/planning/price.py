# w samples of a window, n proposed samples, d features
"""The price of a run that selects: of steps that score, of those that do not, and of what is made before.

The unit is the plain step, an update on as many samples that are taken as they come.
"""

from dataclasses import dataclass
from typing import Optional

from pipeline.config import resolved_proposal
from pipeline.planning.forecast import Forecast
from pipeline.planning.hardware import Hardware
from pipeline.planning.passes import Run
from pipeline.planning.work import Compute, seconds
from pipeline.proposal.features import NUM_FEATURES
from pipeline.proposal.schedule import Evidence, schedule_of

FEATURE_BYTES = 2 * NUM_FEATURES
"""float16, of one sample."""
NARROW = 1 / 32
"""Stands for the share of pool_share: auto, which the pool decides: few have one as narrow, and even then a
window costs little."""


@dataclass(frozen=True)
class Features:
    """What ``learned`` makes of a pool once, with the tokens, and keeps beside them."""

    tokens_per_second: float
    """On one core of rank 0's processor."""
    num_tokens: int
    """Of the whole pool."""
    num_samples: int

    @property
    def seconds(self) -> float:
        return self.num_tokens / self.tokens_per_second

    @property
    def num_bytes(self) -> int:
        """Mapped into the memory of rank 0's node."""
        return FEATURE_BYTES * self.num_samples


@dataclass(frozen=True)
class Price:
    """What steps and a whole run cost, each over a plain one."""

    scored: float
    """A step that scores candidates."""
    unscored: float
    """A step that trains on what is proposed."""
    num_steps: int
    num_scored: tuple[int, int]
    """Steps that score: fewest, where scoring never pays, and most, where it always does."""
    features: float
    """What is made before the first step, in plain steps; 0 for a pool of unknown size."""

    @property
    def run(self) -> tuple[float, float]:
        """The whole run with the fewest scored steps, and with the most."""
        fewest, most = (
            self.unscored + (number * (self.scored - self.unscored) + self.features) / self.num_steps
            for number in self.num_scored
        )
        return fewest, most


def price(
    selection: Forecast, step: Forecast, run: Run, hardware: Hardware, features: Optional[Features] = None
) -> Price:
    """Price of a run.

    Args:
        selection: of one scoring.
        step: of an update, which every step has.
        run: with its schedule.
        hardware: computes the proposal, too.
        features: of the pool, where they are made and its size is known.
    """

    def over_plain(more: float) -> float:
        return 1 + more / step.total

    kept, candidates = run.selection.keep_per_step, run.selection.candidates_per_step
    return Price(
        scored=over_plain(selection.total + _proposing(candidates, run, hardware) + _learning(run, hardware)),
        unscored=over_plain(_proposing(kept, run, hardware)),
        num_steps=run.training.steps,
        num_scored=num_scored(run),
        features=features.seconds / step.total if features else 0.0,
    )


def num_scored(run: Run) -> tuple[int, int]:
    """Fewest and most steps that score; the same where ``selection.score_every`` is a number.

    The schedule itself is asked: once it is told after every scored step that scoring did not pay, and once
    that it did.
    """
    return _num_scored(run, pays=False), _num_scored(run, pays=True)


def most_scored_share(run: Run) -> float:
    """Largest share of a run's steps that score."""
    return num_scored(run)[1] / run.training.steps


def learns(run: Run) -> bool:
    """Whether features of the pool are made."""
    return resolved_proposal(run.selection) == "learned"


def _num_scored(run: Run, pays: bool) -> int:
    if not run.method.looks_at_candidates:
        return 0
    schedule, found = schedule_of(run.selection), 0
    for step in range(run.training.steps):
        if schedule.is_scored(step):
            found += 1
            if run.method.needs_target:  # without a Gram nothing tells what scoring yields
                schedule.observe(step, Evidence(float(pays), float(not pays)))
    return found


def _proposing(num_samples: int, run: Run, hardware: Hardware) -> float:
    """Seconds in which rank 0 predicts a window of w samples: w d products."""
    if not learns(run):
        return 0.0
    share = NARROW if run.selection.pool_share == "auto" else run.selection.pool_share
    return seconds([Compute(flops=2.0 * num_samples / share * NUM_FEATURES, rate="host")], hardware, 1)


def _learning(run: Run, hardware: Hardware) -> float:
    """Seconds of the regression after a scored step: n d^2 products, then d equations."""
    if not learns(run):
        return 0.0
    flops = 2.0 * run.selection.candidates_per_step * NUM_FEATURES**2 + 2 / 3 * NUM_FEATURES**3
    return seconds([Compute(flops=flops, rate="host")], hardware, 1)
