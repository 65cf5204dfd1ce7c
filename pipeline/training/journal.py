# C candidates, K kept
"""What a run writes down as it goes (rank 0): step records, kept samples, evaluations, DeepSpeed's monitors."""

from pathlib import Path
from typing import Optional

import numpy as np

from pipeline.config import Config
from pipeline.data.sample import Sample
from pipeline.hook import Scores
from pipeline.reporting.records import Recorder
from pipeline.selection.contract import Selection
from pipeline.training.guards import Watch
from pipeline.training.weighted_step import StepResult


class Journal:
    def __init__(self, folder: Path, engine, config: Config, pool: list[Sample], watched: Optional[dict] = None):
        """``watched`` is what a checkpoint holds of the watch."""
        self.engine, self.config, self.pool = engine, config, pool
        self.recorder, self.watch = Recorder(folder), Watch(len(pool))
        vars(self.watch).update(watched or {})

    def step(
        self, step: int, epoch: float, positions_C: np.ndarray, chosen: Selection, selection: Selection, scores: Scores,
        result: StepResult, learning_rate: float, seconds: dict[str, float],
    ) -> list[str]:  # fmt: skip
        """Write a step down; warnings about it, in sentences.

        ``positions_C`` are the candidates' in the pool, ``chosen`` is what the scoring pass kept of them for ``score_every`` steps,
        ``selection`` this step's part of it.

        The scoring pass is written down with the first of its steps; the others have its fields empty.
        """
        candidates = [self.pool[i] for i in positions_C]
        scored = scores if step % self.config.selection.score_every == 0 else Scores(is_warmup=scores.is_warmup)
        match = chosen if scored is scores else selection
        finite = scored.loss_C[np.isfinite(scored.loss_C)] if scored.loss_C is not None else []
        record = {
            "step": step,
            "epoch": epoch,
            "method": self.config.selection.method,
            "warmup": scored.is_warmup,
            "num_candidates": len(candidates),
            "num_kept": len(selection.indices),
            "train_loss": result.loss,
            "candidate_loss": float(finite.mean()) if len(finite) else None,
            "target_loss": scored.target_loss,
            "residual": match.residual,
            "cosine": match.cosine,
            "fallback": int(selection.fallback),
            "dropped": [candidates[i].id for i in selection.dropped],
            "target_dropped": int(scored.target_lost),
            "out_of_memory": scored.out_of_memory,
            "learning_rate": learning_rate,
            "grad_norm": result.grad_norm,
            "skipped": int(not result.was_applied),
            "loss_scale": result.loss_scale,
            "zero_moment_share": scored.zero_moment_share,
            "bytes_sent": scored.bytes_sent,
            "candidate_tokens": scored.candidate_tokens,
            "trained_tokens": result.num_tokens,
            "selection_hash": scores.selection_hash,
            "seconds": {**scored.seconds, **seconds},
        }
        record["warnings"] = scored.warnings + self.watch(record, positions_C, chosen.indices, selection.weights)
        self.recorder.step(record)
        self.recorder.kept([
            {"step": step, "id": candidates[i].id, "source": candidates[i].source, "damage": candidates[i].damage,
             "weight": float(weight), "alignment": _alignment(scores, i)}
            for i, weight in zip(selection.indices.tolist(), selection.weights)
        ])  # fmt: skip
        self._monitor(record)
        return record["warnings"]

    def evaluation(self, step: int, loss: float, samples: list[Sample], answers: Optional[dict] = None) -> None:
        """``answers``: accuracy and num_answers, where answers were asked for."""
        num_tokens = sum(sample.num_supervised for sample in samples)
        record = {"step": step, "name": "test", "loss": loss, "num_samples": len(samples), "num_tokens": num_tokens}
        record |= answers or {}
        self.recorder.evaluation(record)

    def _monitor(self, record: dict) -> None:
        """TensorBoard, W&B, CSV: whatever the DeepSpeed file enables, over samples as DeepSpeed's own curves are."""
        if self.engine.monitor.enabled:
            names = ("train_loss", "target_loss", "cosine", "residual", "num_kept", "fallback", "grad_norm")
            events = [
                (f"selection/{name}", record[name], self.engine.global_samples) for name in names if record[name] is not None
            ]
            self.engine.monitor.write_events(events)


def _alignment(scores: Scores, i: int) -> Optional[float]:
    """Cosine of candidate i's row to the target's."""
    if scores.signals is None or scores.signals.gram_CC is None:
        return None
    norms = scores.signals.gram_CC[i, i] * scores.signals.target_norm_squared
    return float(scores.signals.alignment_C[i] / norms**0.5) if norms > 0 else None
