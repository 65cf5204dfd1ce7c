# N samples of a part, n of a batch, R rows of one rank, W ranks, k features of the Gram backend,
# D features of the file
"""Scores of the samples of a file, batch by batch, each against the same target under the same Adam state.

Samples of a part that are alike in length share a batch: padding is work. A part's scores depend on its own
samples alone, so parts can be made in any order, and again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch

from pipeline.data.sample import IGNORED, Sample
from pipeline.datastore.sketch import CountSketch
from pipeline.hook import SelectionHook
from pipeline.step.look import Measured, TargetRow


@dataclass(frozen=True)
class Scored:
    """Scores of the samples of a part, in order; numbers may be non-finite."""

    loss_N: np.ndarray
    squared_norm_N: np.ndarray
    """|phi_i|^2 in the geometry."""
    alignment_N: np.ndarray
    """<phi_i, phi_T>."""
    features_ND: Optional[np.ndarray]
    """Features, float32, whose inner products are in expectation those of the phi_i."""


@dataclass(frozen=True)
class Target:
    """The row of the target."""

    loss: float
    squared_norm: float
    features_D: Optional[np.ndarray]


class FileScorer:
    """Measures samples of a file against one target. Every rank calls every method, with the same samples.

    Args:
        hook: attached with a target set that gives all its samples at once, and a method that needs a Gram.
        num_features: D; 0 for none. Others need the ``projected`` or ``factored`` backend.
        batch: samples of all ranks in one pass.
        pad_token_id: token of blank rows, where a batch is smaller than the ranks' shares.
        seed: seed of the sketch.
        say: is told the warnings of every pass.
    """

    def __init__(
        self,
        hook: SelectionHook,
        num_features: int,
        batch: int,
        pad_token_id: int,
        seed: int,
        say: Callable[[str], None],
    ):
        self.hook, self.say = hook, say
        self.num_features, self.batch, self.seed = num_features, batch, seed
        self.blank = Sample([pad_token_id] * 2, [IGNORED] * 2)
        self._target_row: Optional[TargetRow] = None
        self._sketch: Optional[CountSketch] = None

    def target(self) -> Target:
        """The target, measured for all later passes, beside blank rows.

        Raises ValueError where its gradient is zero or not finite.
        """
        collectives = self.hook.collectives
        rows = -(-self.batch // collectives.world_size)
        measured = self._measure([self.blank] * rows)
        norm_squared, loss, targets = (
            measured.gram.target_norm_squared,
            measured.target_loss,
            self.hook.targets,
        )
        assert loss is not None and targets is not None  # a method that needs a Gram has measured them
        if not np.isfinite(norm_squared) or norm_squared == 0:
            raise ValueError(
                f"the mean gradient of the {targets.num_per_step} samples of data.target is "
                f"{'zero' if norm_squared == 0 else 'not finite'}: nothing can be measured "
                "against it; look at data.target, or set training.precision to fp32"
            )
        features_D = None
        if self.num_features:
            part_k = _features_Rk(measured)[-1]
            self._sketch = CountSketch(len(part_k), self.num_features, f"{self.seed} features", part_k.device)
            features_D = collectives.sum(self._sketch(part_k[None])[0]).cpu().numpy()
        return Target(loss, norm_squared, features_D)

    def part(self, samples: list[Sample], after_batch: Callable[[int, bool], None]) -> Scored:
        """Scores of ``samples``.

        ``after_batch`` is told how many have been scored since and whether they were the last. It may end the
        work by raising on all ranks.
        """
        order_N = np.argsort([len(sample.input_ids) for sample in samples], kind="stable")
        loss_N, squared_norm_N, alignment_N = (np.empty(len(samples)) for _ in range(3))
        features_ND = np.empty((len(samples), self.num_features), np.float32) if self.num_features else None
        for first in range(0, len(samples), self.batch):
            at_n = order_N[first : first + self.batch]
            found = self._score([samples[i] for i in at_n])
            loss_N[at_n], squared_norm_N[at_n], alignment_N[at_n] = (
                found.loss_N,
                found.squared_norm_N,
                found.alignment_N,
            )
            if features_ND is not None:
                features_ND[at_n] = found.features_ND
            after_batch(len(at_n), first + self.batch >= len(samples))
        return Scored(loss_N, squared_norm_N, alignment_N, features_ND)

    def _score(self, samples: list[Sample]) -> Scored:
        """Scores of a batch, dealt over the ranks in turn, so that all get long and short samples."""
        collectives = self.hook.collectives
        rows = -(-len(samples) // collectives.world_size)
        own = samples[collectives.rank :: collectives.world_size]
        measured = self._measure([*own, *[self.blank] * (rows - len(own))])
        turn_n, rank_n = np.divmod(np.arange(len(samples)), collectives.world_size)
        at_n = rank_n * rows + turn_n  # signals come rank by rank
        features_nD = None
        if self._sketch:
            features_WRD = collectives.gather(self._sketch(_features_Rk(measured)[:-1]))
            features_nD = features_WRD.flatten(0, 1)[torch.as_tensor(at_n)].cpu().numpy()
        gram, loss_C = measured.gram, measured.loss_C
        return Scored(loss_C[at_n], np.diagonal(gram.gram_CC)[at_n], gram.alignment_C[at_n], features_nD)

    def _measure(self, own: list[Sample]) -> Measured:
        """One pass; the first brings the target's row, which all later ones take as it is."""
        measured = self.hook.score(own, self._target_row)
        self._target_row = measured.target
        for warning in measured.warnings:
            self.say(warning)
        return measured


def _features_Rk(measured: Measured) -> torch.Tensor:
    """Features of a pass, this rank's part of the target last."""
    assert measured.features_Rk is not None, (
        "the exact backend leaves none, and the settings refuse it with features"
    )
    return measured.features_Rk
