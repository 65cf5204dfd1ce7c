# C candidates, K kept
"""Guards against failures without an error.

Replicas drift apart, losses jump, the same samples come again and again, predictions tell nothing, the filter
is dead, weights collapse, the target is missed.
"""

from collections import Counter, deque
from typing import Any

import numpy as np
import torch

from pipeline.ranks.collectives import Collectives
from pipeline.training.checksum import checksum

WINDOW = 20  # steps that a warning looks at, and that pass before it comes again
WINDOW_OF_PREDICTIONS = 10
"""Scored steps over which predictions are judged: fewer than WINDOW, since steps that score may be rare."""
NO_CORRELATION = 0.1
"""Mean correlation of predicted and observed cosines up to which predictions tell nothing. Without any
relation the mean over ten steps of 32 candidates is within 0.06 of 0 in two cases of three."""
MOST_TIMES = 8
"""Times that a sample is trained on before that is worth a warning. Up to four passes teach almost as much as
new samples, and from about sixteen on next to nothing (Muennighoff et al., arXiv 2305.16264)."""


def check_replicas(module: torch.nn.Module, collectives: Collectives, step: int) -> None:
    """Compare the parameters of all ranks, bit by bit, for ZeRO 0 to 2; under ZeRO-3 there is only one copy.

    Raises RuntimeError on all ranks, naming those that differ from most.
    """
    sums = collectives.gather_objects(checksum(module.parameters()))
    (usual, count), *_ = Counter(sums).most_common()
    if count < len(sums):
        odd = [rank for rank, found in enumerate(sums) if found != usual]
        raise RuntimeError(
            f"after step {step} ranks {odd} hold other parameters than the {count} ranks that agree "
            f"(checksums {', '.join(f'{found:016x}' for found in sums)}): memory or a card has failed, or "
            "code of the model's own draws differently by rank. Go on from the checkpoint before, without "
            "the machines of these ranks"
        )


class Watch:
    """A watch over the step records, which says in sentences what looks wrong.

    A few numbers of the last records and a byte for each sample of the pool are its state, for checkpoints.
    """

    STATE = (
        "losses",
        "scored",
        "correlations",
        "times_trained",
        "recent_times",
        "too_many",
        "widest",
        "quiet_until",
    )

    def __init__(self, num_samples: int):
        """Begin without records; ``num_samples`` is the pool's size."""
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.scored: deque[dict[str, Any]] = deque(maxlen=WINDOW)
        self.correlations: deque[float] = deque(maxlen=WINDOW_OF_PREDICTIONS)
        self.times_trained = np.zeros(num_samples, np.uint8)
        self.recent_times: deque[float] = deque(maxlen=WINDOW)
        self.too_many, self.widest = MOST_TIMES, 0.0
        self.quiet_until: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """The state behind later warnings."""
        return {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the watch back to the moment of that ``state_dict``."""
        if set(state) != set(self.STATE):
            raise ValueError(
                f"the checkpoint's state of the warnings has {', '.join(sorted(state))}, and "
                f"{', '.join(self.STATE)} is wanted: go on with the version that has written it"
            )
        for name in self.STATE:
            setattr(self, name, state[name])

    def __call__(self, record: dict[str, Any], positions_C: np.ndarray, kept_K: np.ndarray) -> list[str]:
        """Warnings after this step.

        Its samples stand at ``positions_C`` of the pool, and it trained on those at ``kept_K`` of these.
        Where nothing was scored the fields of a look are None: filter, weights and target are judged by the
        scored steps alone.
        """
        found = {
            "spike": self._spike(record["train_loss"]),
            "repeats": self._worn_out(record, positions_C[kept_K]),
            "predictions": self._blind_predictions(record),
        }
        if not record["target_dropped"] and (record["residual"] is not None or record["fallback"]):
            names = ("num_kept", "effective_kept", "fallback", "target_loss", "residual")
            self.scored.append({name: record[name] for name in names})
            if len(self.scored) == WINDOW:
                found |= {
                    "filter": self._dead_filter(),
                    "weights": self._collapsed_weights(),
                    "target": self._missed_target(),
                }
        said = []
        for name, sentence in found.items():
            if sentence and record["step"] >= self.quiet_until.get(name, 0):
                self.quiet_until[name] = record["step"] + WINDOW
                said.append(f"WARNING after step {record['step']}: {sentence}")
        return said

    def _spike(self, loss: float) -> str:
        """A warning for a loss far above the median of earlier steps; '' for others.

        The median absolute deviation, as a standard deviation, measures the spread.
        """
        before = np.array(self.losses)
        self.losses.append(loss)
        if len(before) < WINDOW:
            return ""
        usual = float(np.median(before))
        spread = 1.4826 * float(np.median(np.abs(before - usual)))
        if loss <= max(2 * usual, usual + 6 * spread):
            return ""
        return (
            f"its loss is {loss:.3f}, and {usual:.3f} was the median of the {WINDOW} steps before: look at "
            "its samples in kept.jsonl; if it comes again lower training.learning_rate or "
            "training.gradient_clipping"
        )

    def _worn_out(self, record: dict[str, Any], positions_K: np.ndarray) -> str:
        """A warning once most samples in training have been trained on over MOST_TIMES times, and at every
        doubling of that."""
        # A window may serve several steps, whose records then have none.
        self.widest = max(self.widest, record["window"] / record["num_candidates"])
        # Up to 255, which a byte holds.
        self.times_trained[positions_K] += self.times_trained[positions_K] < np.iinfo(np.uint8).max
        self.recent_times.append(float(np.median(self.times_trained[positions_K])))
        most = self.too_many
        if len(self.recent_times) < WINDOW or np.median(self.recent_times) <= most:
            return ""
        self.too_many *= 2
        narrow = "raise selection.pool_share, " if self.widest > 1 else ""
        return (
            f"most samples of the last {WINDOW} steps have been trained on more than {most} times: the run "
            f"trains on the same few of data.pool; {narrow}add samples to it, or stop"
        )

    def _blind_predictions(self, record: dict[str, Any]) -> str:
        """A warning where predicted and observed cosines have not correlated for long.

        A proposal that has given up takes all samples at random, and is judged no more.
        """
        correlation = record["predicted_correlation"]
        if correlation is None or record["cosine_of_proposed"] is None:
            return ""
        self.correlations.append(correlation)
        mean = float(np.mean(self.correlations))
        if len(self.correlations) < WINDOW_OF_PREDICTIONS or mean > NO_CORRELATION:
            return ""
        return (
            f"over {WINDOW_OF_PREDICTIONS} scored steps predicted and observed cosines correlate at "
            f"{mean:.2f}: the proposal does not know what the target asks for; raise "
            "selection.target_per_step if observations are noisy, else set selection.proposal to uniform"
        )

    def _dead_filter(self) -> str:
        if not all(line["fallback"] for line in self.scored):
            return ""
        return (
            f"in {WINDOW} scored steps no candidate was aligned with the target, so the filter has kept the "
            "least bad ones: does data.pool hold anything like data.target?"
        )

    def _collapsed_weights(self) -> str:
        kept = np.mean([line["num_kept"] for line in self.scored])
        effective = np.mean([line["effective_kept"] for line in self.scored])
        if kept < 4 or effective > 1.5:
            return ""
        return (
            f"over {WINDOW} scored steps {kept:.1f} samples were kept, and their weights amount to "
            f"{effective:.1f} of equal weight: raise selection.ridge"
        )

    def _missed_target(self) -> str:
        """A warning where the target's loss rises while the match improves.

        The later half is compared with the earlier one; a difference must be twice its standard error.
        """
        rows = [line for line in self.scored if None not in (line["target_loss"], line["residual"])]
        if len(rows) < WINDOW:
            return ""
        loss, residual = ([row[name] for row in rows] for name in ("target_loss", "residual"))
        if _change(loss) < 2 or _change(residual) > -2:
            return ""
        half = WINDOW // 2
        return (
            f"over {WINDOW} scored steps the target's loss has risen ({np.mean(loss[:half]):.3f} -> "
            f"{np.mean(loss[half:]):.3f}) while the match has become better ({np.mean(residual[:half]):.3f} "
            f"-> {np.mean(residual[half:]):.3f}): the steps do not do what they are chosen for; lower "
            "training.learning_rate"
        )


def _change(values: list[float]) -> float:
    """Mean of the later half minus that of the earlier one, in standard errors."""
    early, late = np.array_split(np.array(values), 2)
    error = np.sqrt(early.var(ddof=1) / len(early) + late.var(ddof=1) / len(late))
    return float((late.mean() - early.mean()) / max(error, 1e-12))
