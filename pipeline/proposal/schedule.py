"""Which steps score candidates, and which train on what is proposed."""

from dataclasses import dataclass
from typing import Any, Optional, Protocol

from pipeline.config import SelectionConfig


@dataclass(frozen=True)
class Evidence:
    """What a scored step tells about the worth of scoring."""

    cosine_of_selected: float
    """Cosine of the selection's update to the target's, by target samples that the selection was not made
    for."""
    cosine_of_proposed: float
    """The same for what an unscored step would have trained on."""


class Schedule(Protocol):
    """One rule. Its decisions are the same in a run that is continued."""

    def is_scored(self, step: int) -> bool:
        """Whether ``step`` scores candidates."""
        ...

    def observe(self, step: int, evidence: Optional[Evidence]) -> None:
        """Take what a scored step has told; None where it told nothing."""
        ...

    def spend(self, selection_seconds: float, step_seconds: float) -> None:
        """Take what a step has cost by the clock."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that later decisions depend on, besides the settings."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the rule back to where ``state_dict`` was taken."""
        ...


class Every:
    """The first step, then every ``spacing``-th; a spacing of 1 scores all."""

    def __init__(self, spacing: int):
        self.spacing = spacing
        """Steps from one that scores to the next."""

    def is_scored(self, step: int) -> bool:
        """Whether ``step`` scores candidates."""
        return step % self.spacing == 0

    def observe(self, step: int, evidence: Optional[Evidence]) -> None:
        """The spacing stays."""

    def spend(self, selection_seconds: float, step_seconds: float) -> None:
        """The clock changes nothing."""

    def state_dict(self) -> dict[str, Any]:
        """All that later decisions depend on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to put back."""


class Adaptive:
    """Spaces scored steps by what they have been seen to yield.

    At equal length, an update brings the target's loss down in proportion to its cosine with the target's
    own. So a scored step pays where the selection's cosine is WORTH times that of what is proposed anyway, as
    much as it costs with two candidates for each kept. Both cosines are summed with decay, as single ones are
    noisy and that of the proposal may be near 0 or below; the distance to the next scored step grows
    FACTOR-fold where scoring does not pay, and shrinks as much where it does.
    """

    WORTH, FACTOR, LONGEST, WITHOUT_EVIDENCE, DECAY = 2.5, 8, 32, 8, 0.5

    def __init__(self):
        self.spacing, self.next = 1, 0
        self.selected = self.proposed = 0.0

    def is_scored(self, step: int) -> bool:
        """Whether ``step`` scores candidates."""
        return step >= self.next

    def observe(self, step: int, evidence: Optional[Evidence]) -> None:
        """Take what a scored step has told."""
        if evidence is None:
            self.spacing = self.WITHOUT_EVIDENCE
        else:
            self.selected = self.DECAY * self.selected + evidence.cosine_of_selected
            self.proposed = self.DECAY * self.proposed + evidence.cosine_of_proposed
            pays = self.selected > 0 and self.selected >= self.WORTH * self.proposed
            spacing = self.spacing / self.FACTOR if pays else self.spacing * self.FACTOR
            self.spacing = int(min(self.LONGEST, max(1, spacing)))
        self.next = step + self.spacing

    def spend(self, selection_seconds: float, step_seconds: float) -> None:
        """The clock changes nothing."""

    def state_dict(self) -> dict[str, Any]:
        """All that later decisions depend on."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the rule back to where ``state_dict`` was taken."""
        vars(self).update(state)


class Bounded:
    """Puts off a scored step until selection has taken no more than a share of the time so far."""

    def __init__(self, inner: Schedule, time_share: float):
        self.inner, self.time_share = inner, time_share
        self.selection_seconds = self.total_seconds = 0.0

    def is_scored(self, step: int) -> bool:
        """Whether ``step`` scores candidates."""
        is_within = self.selection_seconds <= self.time_share * self.total_seconds
        return is_within and self.inner.is_scored(step)

    def observe(self, step: int, evidence: Optional[Evidence]) -> None:
        """Take what a scored step has told."""
        self.inner.observe(step, evidence)

    def spend(self, selection_seconds: float, step_seconds: float) -> None:
        """Take what a step has cost by the clock."""
        self.selection_seconds += selection_seconds
        self.total_seconds += step_seconds

    def state_dict(self) -> dict[str, Any]:
        """All that later decisions depend on."""
        seconds = {"selection": self.selection_seconds, "total": self.total_seconds}
        return {"inner": self.inner.state_dict(), **seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the rule back to where ``state_dict`` was taken."""
        self.inner.load_state_dict(state["inner"])
        self.selection_seconds, self.total_seconds = state["selection"], state["total"]


def schedule_of(settings: SelectionConfig) -> Schedule:
    """The rule that ``selection.score_every`` and ``time_share`` ask for."""
    if settings.score_every != "auto":
        return Every(int(settings.score_every))
    return Adaptive() if settings.time_share is None else Bounded(Adaptive(), settings.time_share)
