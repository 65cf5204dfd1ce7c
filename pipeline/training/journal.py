# C candidates, K kept
"""The records of a run, on rank 0: steps, kept samples, evaluations, DeepSpeed's monitors."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np

from pipeline.config import Config
from pipeline.data.sample import Sample
from pipeline.proposal.health import health
from pipeline.reporting.records import Recorder
from pipeline.step.look import Look
from pipeline.step.trained_step import TrainedStep
from pipeline.training.guards import Watch


class Journal:
    """Writer of the records of one run."""

    def __init__(
        self, folder: Path, engine, config: Config, pool: Sequence[Sample], watched: Optional[dict] = None
    ):
        """Open the records in ``folder``; ``watched`` is the state of the watch from a checkpoint."""
        self.engine, self.config, self.pool = engine, config, pool
        self.recorder, self.watch = Recorder(folder), Watch(len(pool))
        if watched is not None:
            self.watch.load_state_dict(watched)

    def step(self, trained: TrainedStep) -> list[str]:
        """Write a step down. Returns warnings about it, in sentences.

        A step that scored nothing has the fields of a look empty.
        """
        plan, look, result = trained.plan, trained.look, trained.result
        step, positions_C, selection = plan.step, plan.proposed.positions_n, look.selection
        candidates = [self.pool[i] for i in positions_C.tolist()]
        is_look = plan.is_scored
        finite = look.loss_C[np.isfinite(look.loss_C)] if look.loss_C is not None else np.empty(0)
        record = {
            "step": step,
            "epoch": plan.epoch,
            "method": self.config.selection.method,
            "warmup": look.is_warmup,
            "scored": int(look.loss_C is not None),
            "window": plan.proposed.window,
            **health(look.signals, plan.proposed),
            "num_candidates": len(candidates),
            "num_kept": len(selection.indices),
            "effective_kept": 1 / float(np.sum(np.square(selection.weights))),
            "train_loss": result.loss,
            "candidate_loss": float(finite.mean()) if len(finite) else None,
            "target_loss": look.target_loss,
            "residual": selection.residual,
            "cosine": selection.cosine,
            "fallback": int(selection.fallback),
            "dropped": [candidates[i].id for i in selection.dropped],
            "target_dropped": int(look.target_lost),
            "out_of_memory": look.out_of_memory,
            "learning_rate": trained.learning_rate,
            "grad_norm": result.grad_norm,
            "skipped": int(not result.was_applied),
            "loss_scale": result.loss_scale,
            "zero_moment_share": look.zero_moment_share,
            "bytes_sent": look.bytes_sent,
            "candidate_tokens": look.candidate_tokens,
            "trained_tokens": result.num_tokens,
            "target_mixed": trained.num_mixed,
            "selection_hash": look.selection_hash,
            "cpu_seconds": trained.cpu_seconds,
            "seconds": {**look.seconds, **trained.seconds},
            "memory_mib": {
                stage: round(size / 2**20, 1)
                for stage, size in {**look.peak_bytes, **trained.peak_bytes}.items()
            },
        }
        record["warnings"] = [
            *look.warnings,
            *_warnings(trained),
            *self.watch(record, positions_C, look.selection.indices),
        ]
        self.recorder.step(record)
        self.recorder.kept(
            [
                {
                    "step": step,
                    "id": candidates[i].id,
                    "source": candidates[i].source,
                    "damage": candidates[i].damage,
                    "weight": float(weight),
                    "alignment": _alignment(look, i),
                }
                for i, weight in zip(selection.indices.tolist(), selection.weights)
            ]
        )
        passed = np.setdiff1d(np.arange(len(candidates)), look.selection.indices).tolist() if is_look else []
        if passed:
            found = [_alignment(look, i) for i in passed]
            alignment = [value and round(value, 4) for value in found] if set(found) != {None} else None
            self.recorder.passed(
                {"step": step, "ids": [candidates[i].id for i in passed], "alignment": alignment}
            )
        self._monitor({name: value for name, value in record.items() if name != "step"})
        return record["warnings"]

    def evaluation(
        self, step: int, loss: float, samples: Sequence[Sample], answers: Optional[dict] = None
    ) -> None:
        """Write an evaluation down; ``answers`` holds accuracy and num_answers, if answers were asked."""
        num_tokens = sum(sample.num_supervised for sample in samples)
        record = {
            "step": step,
            "name": "test",
            "loss": loss,
            "num_samples": len(samples),
            "num_tokens": num_tokens,
        }
        record |= answers or {}
        self.recorder.evaluation(record)
        self._monitor({f"test_{name}": record[name] for name in ("loss", "accuracy") if name in record})

    def _monitor(self, record: dict[str, Any]) -> None:
        """Hand numbers to TensorBoard, W&B, Comet, CSV: whatever the DeepSpeed file enables.

        They stand over samples, like DeepSpeed's own curves. Their names are those of the record's fields,
        which the report uses too.
        """
        if self.engine.monitor.enabled:
            self.engine.monitor.write_events(
                [(name, value, self.engine.global_samples) for name, value in numbers(record)]
            )


def _warnings(trained: TrainedStep) -> list[str]:
    return [f"WARNING after step {trained.plan.step}: {sentence}" for sentence in trained.learned]


def numbers(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers among the fields of a record, those inside another by both names: ``seconds_update``."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}_")
        elif isinstance(value, (int, float)):
            yield prefix + name, float(value)


def _alignment(look: Look, i: int) -> Optional[float]:
    """Cosine of candidate i's row to the target's.

    None where nothing of it is known, or its gradient is zero or not finite.
    """
    if look.signals is None or look.signals.gram_CC is None:
        return None
    gram = look.signals.gram
    norms = gram.gram_CC[i, i] * gram.target_norm_squared
    found = float(gram.alignment_C[i] / norms**0.5) if norms > 0 else float("nan")
    return found if np.isfinite(found) else None
