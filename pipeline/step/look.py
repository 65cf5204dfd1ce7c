# C candidates, R candidates of this rank, k features
"""Records of a look at the candidates: those that its stages hand on, and the one at its end."""

from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import torch

from pipeline.data.sample import Sample
from pipeline.scoring.moments import Fragment
from pipeline.scoring.stopwatch import Stopwatch
from pipeline.selection.contract import GramSignals, Selection, Signals
from pipeline.selection.halves import Halves


@dataclass(frozen=True)
class Share:
    """This rank's candidates, and what all ranks know of everybody's."""

    samples: list[Sample]
    """R of them."""
    num_candidates: int
    """C, over all ranks."""
    num_tokens: int
    """Tokens of the longest candidate of all ranks."""
    watch: Stopwatch
    """Clock of the stages of this look."""
    bytes_before: int
    """Bytes that this rank had sent when the look began."""
    turn: Optional[int] = None
    """Looks before this one, which name its target samples; None takes the step."""
    riders: list[Sample] = field(default_factory=list)
    """Target samples that are measured as candidates are, as many on every rank (``step/halves.py``)."""


@dataclass(frozen=True)
class Moments:
    """The Adam state under which candidates are measured."""

    own: dict[str, Fragment]
    """This rank's fragments of the scored weights by name; addresses alone where no moments are read."""
    is_warmup: bool = False
    """The plain gradient is matched: there are no moments yet, or of too few updates."""


@dataclass(frozen=True)
class TargetRow:
    """The target's row as one pass has measured it, for others under the same Adam state and projections."""

    parts: dict[str, torch.Tensor]
    """This rank's part of it for each weight, as the Gram backend has it."""
    loss: float
    """This rank's part of the target's loss."""


@dataclass(frozen=True)
class Measured:
    """Signals of all candidates, the same on every rank; ``target`` and ``features_Rk`` are a rank's own."""

    signals: Optional[Signals] = None
    """Input of the method; None where it needs nothing."""
    halves: Optional[Halves] = None
    """The target in two halves; None where it was measured as a whole."""
    target_loss: Optional[float] = None
    """Mean loss of the target samples; None where the method has no target."""
    zero_moment_share: Optional[float] = None
    """Share of scored elements that never had a gradient, and so no scale yet."""
    candidate_tokens: int = 0
    """Tokens of all candidates, over all ranks, without padding."""
    target: Optional[TargetRow] = None
    """The target's row, where it was to be kept."""
    features_Rk: Optional[torch.Tensor] = None
    """Features (R + 1, k) of this rank's candidates and of its part of the target; None with the exact
    backend, which forms none."""
    out_of_memory: int = 0
    """Attempts that ran out of memory; the next one had half the samples in a forward."""
    warnings: tuple[str, ...] = ()
    """Sentences about the pass."""

    @property
    def gram(self) -> GramSignals:
        """The Gram problem, of a pass that has formed one."""
        assert self.signals is not None, "the method looks at no candidate"
        return self.signals.gram

    @property
    def loss_C(self) -> np.ndarray:
        """Loss of every candidate, float64 (C,), of a pass that has looked at them."""
        assert self.signals is not None and self.signals.loss_C is not None, (
            "the method looks at no candidate"
        )
        return self.signals.loss_C


@dataclass(frozen=True)
class Look:
    """One look at the candidates: what was chosen, everything that was seen, and what it cost."""

    selection: Selection
    """Positions and weights of the kept, the same on every rank."""
    selection_hash: str = ""
    """Hash of the selection, 16 hexadecimal digits, the same on every rank."""
    is_warmup: bool = False
    """The plain gradient was matched: there are no moments yet, or of too few updates."""
    signals: Optional[Signals] = None
    """Input of the method; None where it needs nothing, or where the target was lost."""
    loss_C: Optional[np.ndarray] = None
    """Loss of every candidate, float64 (C,), nats per token; None where none was measured."""
    target_loss: Optional[float] = None
    """Mean loss of the target samples; None where the method has no target, or it was lost."""
    halves: Optional[Halves] = None
    """The target in two halves; None where it was measured as a whole."""
    weights_2C: Optional[np.ndarray] = None
    """Weights of the candidates, float64, in what would be chosen for each half; None without halves."""
    target_lost: bool = False
    """The target's gradient was not finite, and the selection is a uniform draw."""
    zero_moment_share: Optional[float] = None
    """Share of scored elements that never had a gradient, and so no scale yet."""
    candidate_tokens: int = 0
    """Tokens of all candidates, over all ranks, without padding."""
    out_of_memory: int = 0
    """Attempts at scoring that ran out of memory; the next one had half the samples in a forward."""
    warnings: tuple[str, ...] = ()
    """Sentences about this look."""
    bytes_sent: int = 0
    """Bytes that this rank sent to others."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage on this rank."""
    peak_bytes: dict[str, int] = field(default_factory=dict)
    """Memory by stage on this rank (``Stopwatch.peak_bytes``)."""
