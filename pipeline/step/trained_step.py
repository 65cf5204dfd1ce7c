"""The record of one optimizer step."""

from dataclasses import dataclass

from pipeline.selection.contract import Selection
from pipeline.step.look import Look
from pipeline.step.weighted_step import StepResult


@dataclass(frozen=True)
class TrainedStep:
    """One step: its look, the samples of its update, and its cost."""

    look: Look
    """The look that chose; it serves ``selection.score_every`` steps."""
    selection: Selection
    """This step's part of what it chose."""
    selection_hash: str
    """Hash of that part, 16 hexadecimal digits, the same on every rank."""
    result: StepResult
    """Loss, norm and size of the update."""
    learning_rate: float
    """Learning rate of the update, in the first parameter group."""
    seconds: dict[str, float]
    """Wall time by stage on this rank: reading candidates, update, and the whole step with its look as
    total."""
    peak_bytes: dict[str, int]
    """Memory by stage on this rank (``Stopwatch.peak_bytes``)."""
