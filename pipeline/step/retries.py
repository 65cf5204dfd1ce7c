"""Another attempt at a pass, on all ranks together, after one that lacked memory or overflowed in float16."""

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from deepspeed.accelerator import get_accelerator

from pipeline.step.look import Measured

OVERFLOW_STEP = 16.0
"""A pass whose gradients overflow in float16 is taken again with the loss scale divided by this."""

Outcome = TypeVar("Outcome")


class OutOfMemory(RuntimeError):
    """Memory ran out in the forward of a scoring pass on some rank; raised on all of them."""


class RowsPerPass:
    """The number of a rank's samples in one forward; halved, for good, where memory runs out."""

    def __init__(self, limit: int):
        """``limit`` is at first ``selection.scoring_micro_batch_size``; 0 is all of the rank's."""
        self.limit = limit

    def that_fit(
        self, attempt: Callable[[int], Outcome], num_rows: int, num_tokens: int, step: int
    ) -> tuple[Outcome, list[str]]:
        """The result of ``attempt(rows_per_pass)`` that fits into memory, and a warning for each that did
        not.

        Args:
            attempt: raises OutOfMemory on all ranks together.
            num_rows: samples of this rank, as many as of every other.
            num_tokens: tokens of the longest sample of all ranks; messages name it.
            step: messages name it.

        Raises:
            RuntimeError: a single sample does not fit.
        """
        warnings = list[str]()
        while True:
            rows_per_pass = min(self.limit or num_rows, num_rows)
            try:
                return attempt(rows_per_pass), warnings
            except OutOfMemory as error:
                if rows_per_pass == 1:
                    raise RuntimeError(
                        f"step {step}: a scoring pass of one sample a rank does not fit into memory at "
                        f"{num_tokens} tokens: lower data.max_tokens, selection.logits_mib or "
                        "selection.last_blocks, or take ZeRO-3"
                    ) from error
            self.limit = -(-rows_per_pass // 2)
            warnings.append(
                f"WARNING at step {step}: scoring {rows_per_pass} samples a rank at once ran out of memory; "
                f"from now on it takes {self.limit}. selection.scoring_micro_batch_size = {self.limit} saves "
                "the attempt"
            )
            get_accelerator().empty_cache()


def without_overflow(attempt: Callable[[float], Measured], loss_scale: float) -> Measured:
    """The result of ``attempt(loss_scale)`` with the first loss scale at which no gradient of a finite loss
    overflows, or with 1. All ranks see the same signals, so all go again."""
    while True:
        measured = attempt(loss_scale)
        if loss_scale <= 1 or not _has_overflowed(measured):
            return measured
        loss_scale = max(1.0, loss_scale / OVERFLOW_STEP)
        del measured  # its memory is wanted for the next attempt


def _has_overflowed(measured: Measured) -> bool:
    """Whether a gradient is not finite whose loss is."""
    signals, target_loss = measured.signals, measured.target_loss
    assert signals is not None  # a pass has measured them
    norm_C = signals.squared_norm_C if signals.gram_CC is None else np.diagonal(signals.gram_CC)
    if norm_C is None:
        return False
    lost_target = (
        target_loss is not None
        and math.isfinite(target_loss)
        and not math.isfinite(signals.gram.target_norm_squared)
    )
    return lost_target or bool((np.isfinite(measured.loss_C) & ~np.isfinite(norm_C)).any())
