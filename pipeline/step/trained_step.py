"""The record of one optimizer step."""

from dataclasses import dataclass

from pipeline.proposal.proposer import Plan
from pipeline.step.look import Look
from pipeline.step.weighted_step import StepResult


@dataclass(frozen=True)
class TrainedStep:
    """One step: what was proposed, what was chosen of it, and the cost."""

    plan: Plan
    """The samples of the step, and whether they were scored."""
    look: Look
    """What was seen of them, and the selection."""
    learned: list[str]
    """Sentences of the proposal about what it has learned, on rank 0."""
    result: StepResult
    """Loss, norm and size of the update."""
    num_mixed: int
    """Target examples in the update, besides the selection."""
    learning_rate: float
    """Learning rate of the update, in the first parameter group."""
    seconds: dict[str, float]
    """Wall time by stage on this rank: reading candidates, update, and the whole step with its look as
    total."""
    cpu_seconds: float
    """CPU seconds of the whole step, over all ranks."""
    peak_bytes: dict[str, int]
    """Memory by stage on this rank (``Stopwatch.peak_bytes``)."""
