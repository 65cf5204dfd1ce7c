# C candidates, U usable ones
"""Filter, then weight, on rank 0, and the outcome on all: from signals to the selection of a look."""

import math
from collections.abc import Callable
from dataclasses import replace
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
            keep: most that are kept; by default ``keep_per_step`` of the settings.

        Raises:
            ValueError: what the method raises, on all ranks; for one, a target without a finite gradient
                several times in a row.
            RuntimeError: the ranks do not hold the same selection.
        """
        watch, settings, signals = share.watch, self.settings, measured.signals
        target_loss, warnings = measured.target_loss, measured.warnings
        keep = settings.keep_per_step if keep is None else keep
        keep = min(share.num_candidates, keep)
        with watch("solve"):
            drawn_from_U = self._without_target(signals)
            if drawn_from_U is not None:
                warnings = (*warnings, self._lost_target(step, len(drawn_from_U)))
            rule = self._rule(measured, drawn_from_U, keep, share.num_candidates, step)
            selection, weights_2C = together(rule, self.collectives.group)
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
            halves=None if drawn_from_U is not None else measured.halves,
            weights_2C=weights_2C,
            target_lost=drawn_from_U is not None,
            zero_moment_share=measured.zero_moment_share,
            candidate_tokens=measured.candidate_tokens,
            out_of_memory=measured.out_of_memory,
            warnings=warnings,
            bytes_sent=self.collectives.bytes_sent - share.bytes_before,
            seconds=watch.read(),
            peak_bytes=watch.peak_bytes(),
        )

    def take(self, num_samples: int, step: int) -> Look:
        """The look of a step that scores nothing: all of its samples, at equal weights.

        Raises RuntimeError where the ranks are not at the same step.
        """
        selection = Selection(np.arange(num_samples), np.full(num_samples, 1 / num_samples))
        return Look(selection, self.agree(selection, step))

    def agree(self, selection: Selection, step: int) -> str:
        """Hash of a step's selection. Raises RuntimeError, on all ranks, where they do not hold the same."""
        # What each rank knows by itself goes in too: a rank at another step, or set differently, is found out
        # here.
        own = repr((step, self.seed, self.settings)).encode()
        what = selection.indices.tobytes() + selection.weights.tobytes() + own
        return self.collectives.assert_same(what, f"the selection of step {step}")

    def _rule(
        self,
        measured: Measured,
        drawn_from_U: Optional[np.ndarray],
        keep: int,
        num_candidates: int,
        step: int,
    ) -> Callable[[], tuple[Selection, Optional[np.ndarray]]]:
        """What rank 0 does: the method, or a draw where the target was lost; and the method for each half."""

        def rng() -> np.random.Generator:
            return np.random.default_rng((self.seed, step, 1))  # apart from the order of epochs

        def select() -> tuple[Selection, Optional[np.ndarray]]:
            known = Settings(self.settings.ridge, self.settings.temperature, self.engine.get_lr()[0])
            if drawn_from_U is not None:
                return draw(drawn_from_U, keep, num_candidates, rng(), known), None

            def of(signals: Optional[Signals]) -> Selection:
                return self.method.select(signals, keep, num_candidates, rng(), known)

            return of(measured.signals), _for_halves(measured, of)

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


def _for_halves(measured: Measured, select: Callable[[Signals], Selection]) -> Optional[np.ndarray]:
    """Weights (2, C) of what is chosen for each half of the target; None where a half is not finite."""
    halves, signals = measured.halves, measured.signals
    if halves is None or signals is None or not np.isfinite(halves.products_22).all():
        return None
    weights_2C = np.zeros_like(halves.alignment_2C)
    for half, weights_C in enumerate(weights_2C):
        alone = replace(
            signals,
            alignment_C=halves.alignment_2C[half],
            target_norm_squared=float(halves.products_22[half, half]),
        )
        selection = select(alone)
        weights_C[selection.indices] = selection.weights
    return weights_2C
