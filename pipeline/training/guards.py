"""What goes wrong without an error: replicas that drift apart, a dead filter, weights that collapse, a target that is missed."""

from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from pipeline.scoring.collectives import Collectives

WINDOW = 20  # scored steps that a warning looks at, and that pass before it comes again


def checksum(parameters: Iterable[torch.Tensor]) -> int:
    """Sum of all bit patterns as integers, modulo 2^64: exact, whatever the order; any single changed bit changes it."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = 0
    for parameter in parameters:
        total += parameter.detach().view(integers[parameter.element_size()]).sum(dtype=torch.int64).item()
    return total % 2**64


def check_replicas(module: torch.nn.Module, collectives: Collectives, step: int) -> None:
    """Do all ranks hold the same parameters, bit by bit? For ZeRO 0 to 2; under ZeRO-3 there is only one copy.

    Raises RuntimeError on all ranks, naming those that differ from most.
    """
    sums = collectives.gather_objects(checksum(module.parameters()))
    (usual, count), *_ = Counter(sums).most_common()
    if count < len(sums):
        odd = [rank for rank, found in enumerate(sums) if found != usual]
        raise RuntimeError(
            f"after step {step} ranks {odd} hold other parameters than the {count} ranks that agree (checksums "
            f"{', '.join(f'{found:016x}' for found in sums)}): memory or a card has failed, or code of the model's own draws "
            "differently by rank. Go on from the checkpoint before, without the machines of these ranks"
        )


class Watch:
    """Reads step records as they come and says in sentences what looks wrong.

    All that it knows comes from the records: a run that goes on shows it those of before, and it says what it would have said.
    """

    def __init__(self):
        self._records: deque[dict[str, Any]] = deque(maxlen=WINDOW)
        self._quiet_until: dict[str, int] = {}

    def __call__(self, record: dict[str, Any]) -> list[str]:
        """Warnings after this step. Steps that were not scored (warm-up, between two scoring passes) say nothing."""
        if record["target_dropped"] or (record["residual"] is None and not record["fallback"]):
            return []
        self._records.append(record)
        if len(self._records) < WINDOW:
            return []
        found = {"filter": self._dead_filter(), "weights": self._collapsed_weights(), "target": self._missed_target()}
        said = []
        for name, sentence in found.items():
            if sentence and record["step"] >= self._quiet_until.get(name, 0):
                self._quiet_until[name] = record["step"] + WINDOW
                said.append(f"WARNING after step {record['step']}: {sentence}")
        return said

    def _dead_filter(self) -> str:
        if not all(record["fallback"] for record in self._records):
            return ""
        return (
            f"in {WINDOW} scored steps no candidate was aligned with the target, so the filter has kept the least bad ones: does "
            "data.pool hold anything like data.target?"
        )

    def _collapsed_weights(self) -> str:
        kept = np.mean([record["num_kept"] for record in self._records])
        effective = np.mean([record["effective_kept"] for record in self._records])
        if kept < 4 or effective > 1.5:
            return ""
        return (
            f"over {WINDOW} scored steps {kept:.1f} samples were kept, and their weights amount to {effective:.1f} of equal weight: raise "
            "selection.ridge"
        )

    def _missed_target(self) -> str:
        """Later half against earlier half; differences of more than twice their standard error."""
        rows = [record for record in self._records if None not in (record["target_loss"], record["residual"])]
        if len(rows) < WINDOW:
            return ""
        loss, residual = ([row[name] for row in rows] for name in ("target_loss", "residual"))
        if _change(loss) < 2 or _change(residual) > -2:
            return ""
        half = WINDOW // 2
        return (
            f"over {WINDOW} scored steps the target's loss has risen ({np.mean(loss[:half]):.3f} -> {np.mean(loss[half:]):.3f}) while "
            f"the match has become better ({np.mean(residual[:half]):.3f} -> {np.mean(residual[half:]):.3f}): the steps do not do what "
            "they are chosen for; lower training.learning_rate"
        )


def _change(values: list[float]) -> float:
    """Mean of the later half minus that of the earlier one, in standard errors."""
    early, late = np.array_split(np.array(values), 2)
    error = np.sqrt(early.var(ddof=1) / len(early) + late.var(ddof=1) / len(late))
    return float((late.mean() - early.mean()) / max(error, 1e-12))
