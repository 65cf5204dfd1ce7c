"""What proposals were worth: how much better samples match that were taken for their prediction."""

from dataclasses import dataclass
from typing import Optional

from pipeline.reporting.records import Run

GAVE_UP = "the proposal does not help"
"""Words of the sentence with which a proposal goes back to samples as they come
(pipeline/proposal/learned.py)."""
FEW_STEPS = 3
"""Scored steps, at least, for a judgement."""


@dataclass(frozen=True)
class Enrichment:
    """Means over the scored steps that have taken some samples for their prediction and some at random."""

    num_steps: int
    proposed: float
    """Observed cosine to the target of samples taken for their prediction."""
    explored: float
    """The same of samples taken at random from the rest of the window."""
    error: Optional[float]
    """Standard error of the difference, step by step; None with one step alone."""
    correlation: Optional[float]
    """Of predicted and observed cosines within a step; None where all predictions were alike."""

    @property
    def is_known(self) -> bool:
        """Whether there are steps enough to tell."""
        return self.num_steps >= FEW_STEPS

    @property
    def is_real(self) -> bool:
        """Whether the difference is over twice its standard error."""
        return self.error is not None and self.proposed - self.explored > 2 * self.error


def enrichment_of(run: Run) -> Optional[Enrichment]:
    """The enrichment of a run; None where nothing was taken for its prediction and observed."""
    steps = run.steps.dropna(subset=["cosine_of_proposed", "cosine_of_explored"])
    if steps.empty:
        return None
    proposed, explored = (steps[f"cosine_of_{name}"].astype(float) for name in ("proposed", "explored"))
    correlation = steps["predicted_correlation"].astype(float)
    return Enrichment(
        num_steps=len(steps),
        proposed=float(proposed.mean()),
        explored=float(explored.mean()),
        error=float((proposed - explored).sem()) if len(steps) > 1 else None,
        correlation=float(correlation.mean()) if correlation.notna().any() else None,
    )


def back_to_uniform(run: Run) -> Optional[int]:
    """The step after which the proposal took samples as they come; None where it never gave up."""
    for step, sentences in zip(run.steps["step"], run.steps["warnings"]):
        if isinstance(sentences, list) and any(GAVE_UP in str(sentence) for sentence in sentences):
            return int(step)
    return None


def words(label: str, run: Run) -> list[str]:
    """Sentences on the proposal of a run and what to do about it; none where it had none."""
    found = enrichment_of(run)
    if found is None:
        return []
    sentences = [f"{label}: {_window(run)} {_samples(run)}", _judgement(found)]
    step = back_to_uniform(run)
    if step is not None:
        sentences.append(f"After step {step} it went back to samples as they come: {GAVE_UP}.")
    return [" ".join(sentences)]


def _window(run: Run) -> str:
    """A step's share of its window, while the proposal was in use."""
    steps = run.steps[run.steps["window"] > run.steps["num_candidates"]]
    if steps.empty:
        return "steps take all of their window."
    share = (steps["num_candidates"] / steps["window"]).median()
    last = steps.iloc[-1]
    return (
        f"a step takes {share:.1%} of its window of data.pool (the last one {last['num_candidates']:.0f} of "
        f"{last['window']:.0f} positions)."
    )


def _samples(run: Run) -> str:
    different = run.kept["id"].nunique()
    times = len(run.kept) / max(different, 1)
    return f"It has trained on {different:,} different samples, {times:.1f} times each on average."


def _judgement(found: Enrichment) -> str:
    steps = "1 scored step" if found.num_steps == 1 else f"{found.num_steps} scored steps"
    correlation = (
        ""
        if found.correlation is None
        else f"; predicted and observed cosines correlate at {found.correlation:.2f}"
    )
    observed = (
        f"Over {steps} samples taken for their prediction have a mean cosine of {found.proposed:.2f} to the "
        f"target, those taken at random {found.explored:.2f}{correlation}."
    )
    if not found.is_known:
        return f"{observed} These are too few steps to judge by."
    if found.is_real:
        return f"{observed} So the proposal helps."
    return (
        f"{observed} That is no difference beyond chance: set selection.proposal to uniform, or give "
        "data.target examples that say better what is wanted."
    )
