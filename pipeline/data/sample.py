"""One tokenised sample: what the stream yields and the hook scores."""

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

IGNORED = -100  # label of a token without supervision, torch's ignore_index


@dataclass(frozen=True)
class Sample:
    """A sample after chat template and masking."""

    input_ids: list[int]
    """Token ids, without padding."""
    labels: list[int]
    """One a token: ``labels[t]`` is ``input_ids[t]`` where supervised, else ``IGNORED`` (-100)."""
    id: str = ""
    """Name of the sample in records and reports."""
    source: str = ""
    """Origin of the sample, for reports."""
    damage: str = ""
    """Damage that the pool itself reports (field ``damage`` or ``corruption``): 'none' for a clean sample, ''
    where the pool says nothing."""

    @property
    def num_supervised(self) -> int:
        """Supervised tokens without the sample's first: a causal model has no prediction for it."""
        return sum(label != IGNORED for label in self.labels[1:])


class Digest:
    """Hash of all tokens and labels, in order: other data, or data in another order, give another."""

    def __init__(self):
        self.found = hashlib.sha256()

    def update(self, sample: Sample) -> None:
        self.found.update(array("q", [len(sample.input_ids), *sample.input_ids, *sample.labels]).tobytes())

    def hexdigest(self) -> str:
        return self.found.hexdigest()[:16]


def digest(samples: Iterable[Sample]) -> str:
    """Hash of ``samples``, as ``Digest`` computes it: 16 hexadecimal digits."""
    found = Digest()
    for sample in samples:
        found.update(sample)
    return found.hexdigest()
