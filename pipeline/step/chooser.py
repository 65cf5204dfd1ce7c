# C candidates, U usable ones
"""Filter, then weight, on rank 0, and the outcome on all: from signals to the selection of a look."""

import math
from collections.abc import Callable
from typing import Optional

import numpy as np

from pipeline.config import SelectionConfig
from pipeline.ranks.collectives import Collectives
from pipeline.ranks.together import together
from pipeline.scoring.engines import Engine
from pipeline.selection.contract import Method, Selection, Settings, Signals
from pipeline.selection.without_target import draw, usable_candidates
from pipeline.step.look import Look, Measured, Moments, Share

MOST_TARGETS_LOST = 3
"""Steps in a row; more are no accident of a few target samples."""


class Chooser:
    """Chooses by one method. Every rank calls every method, with the same signals.

    Args:
        engine: whose learning rate a method may read.
        method: the rule.
        settings: its numbers.
        collectives: over the ranks that hold the same model.
        seed: of draws, the same on all ranks.
    """

    def __init__(
        self, engine: Engine, method: Method, settings: SelectionConfig, collectives: Collectives, seed: int
    ):
        self.engine, self.method, self.settings = engine, method, settings
        self.collectives, self.seed = collectives, seed
        self.num_targets_lost = 0

    def choose(
        self, share: Share, moments: Moments, measured: Measured, step: int, keep: Optional[int] = None
    ) -> Look:
        """The look that ends with this selection.

        Args:
            share, moments, measured: what the earlier stages of the look have given.
            step: seeds random draws.
            keep: most that are kept; by default ``keep_per_step`` x ``score_every`` of the settings.

        Raises:
            ValueError: what the method raises, on all ranks; for one, a target without a finite gradient
                several times in a row.
            RuntimeError: the ranks do not hold the same selection.
        """
        watch, settings, signals = share.watch, self.settings, measured.signals
        target_loss, warnings = measured.target_loss, measured.warnings
        keep = settings.keep_per_step * settings.score_every if keep is None else keep
        keep = min(share.num_candidates, keep)
        with watch("solve"):
            drawn_from_U = self._without_target(signals)
            if drawn_from_U is not None:
                warnings = (*warnings, self._lost_target(step, len(drawn_from_U)))
            rule = self._rule(signals, drawn_from_U, keep, share.num_candidates, step)
            selection = together(rule, self.collectives.group)
            selection_hash = self.agree(selection, step)
        if drawn_from_U is not None:
            signals = target_loss = None
        return Look(
            selection,
            selection_hash,
            is_warmup=moments.is_warmup,
            signals=signals,
            loss_C=measured.signals.loss_C if measured.signals else None,
            target_loss=target_loss,
            target_lost=drawn_from_U is not None,
            zero_moment_share=measured.zero_moment_share,
            candidate_tokens=measured.candidate_tokens,
            out_of_memory=measured.out_of_memory,
            warnings=warnings,
            bytes_sent=self.collectives.bytes_sent - share.bytes_before,
            seconds=watch.read(),
            peak_bytes=watch.peak_bytes(),
        )

    def agree(self, selection: Selection, step: int) -> str:
        """Hash of a step's selection. Raises RuntimeError, on all ranks, where they do not hold the same."""
        # What each rank knows by itself goes in too: a rank at another step, or set differently, is found out
        # here.
        own = repr((step, self.seed, self.settings)).encode()
        what = selection.indices.tobytes() + selection.weights.tobytes() + own
        return self.collectives.assert_same(what, f"the selection of step {step}")

    def _rule(
        self,
        signals: Optional[Signals],
        drawn_from_U: Optional[np.ndarray],
        keep: int,
        num_candidates: int,
        step: int,
    ) -> Callable[[], Selection]:
        """What rank 0 does: the method, or a draw where the target was lost."""

        def select() -> Selection:
            rng = np.random.default_rng(
                (self.seed, step, 1)
            )  # a stream of its own, apart from the order of epochs
            known = Settings(self.settings.ridge, self.settings.temperature, self.engine.get_lr()[0])
            if drawn_from_U is not None:
                return draw(drawn_from_U, keep, num_candidates, rng, known)
            return self.method.select(signals, keep, num_candidates, rng, known)

        return select

    def _without_target(self, signals: Optional[Signals]) -> Optional[np.ndarray]:
        """The usable candidates (U,), where the target's gradient is not finite and the step must do without
        it; else None.

        A method that is given such a target refuses it with a sentence: so it is after MOST_TARGETS_LOST
        steps in a row.
        """
        if signals is None or signals.target_norm_squared is None:
            return None
        if math.isfinite(signals.target_norm_squared):
            self.num_targets_lost = 0
            return None
        self.num_targets_lost += 1
        usable_U = usable_candidates(signals)
        is_hopeless = self.num_targets_lost > MOST_TARGETS_LOST or len(usable_U) == 0
        return None if is_hopeless else usable_U

    def _lost_target(self, step: int, num_usable: int) -> str:
        return (
            f"WARNING at step {step}: the gradient of its target samples is not finite, "
            f"{self.num_targets_lost} in a row; it trains on a uniform draw of {num_usable} usable candidates"
        )
