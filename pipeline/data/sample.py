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
    """As many: ``labels[t]`` is ``input_ids[t]`` where supervised, else ``IGNORED`` (-100)."""
    id: str = ""
    """Its name in records and reports."""
    source: str = ""
    """Where it comes from, for reports."""
    damage: str = ""
    """Known damage, where the pool carries the truth (field ``corruption``); '' where it does not, 'none' for
    clean."""

    @property
    def num_supervised(self) -> int:
        """Supervised tokens that a causal model can be asked for: the first token has no prediction."""
        return sum(label != IGNORED for label in self.labels[1:])


class Digest:
    """Hash of all tokens and labels, in order: other data, or data in another order, have another."""

    def __init__(self):
        self.found = hashlib.sha256()

    def update(self, sample: Sample) -> None:
        self.found.update(array("q", [len(sample.input_ids), *sample.input_ids, *sample.labels]).tobytes())

    def hexdigest(self) -> str:
        return self.found.hexdigest()[:16]


def digest(samples: Iterable[Sample]) -> str:
    """The ``Digest`` of samples that are there already."""
    found = Digest()
    for sample in samples:
        found.update(sample)
    return found.hexdigest()
