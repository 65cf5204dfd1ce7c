"""From names of files and datasets to tokenised samples, one at a time: what is in memory does not grow with
a pool."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from pipeline.config import DataConfig
from pipeline.data import sources
from pipeline.data.chat import summary, tokenize_each
from pipeline.data.record import Record
from pipeline.data.sample import Sample


class Reading:
    """One pass through all ``names``, in order; ``on_record`` is called with every record that comes.

    Raises ValueError as ``sources.read`` and ``chat.tokenize_all`` do, where the pass has come to.
    """

    def __init__(
        self,
        names: list[str],
        tokenizer,
        data: DataConfig,
        setting: str,
        on_record: Callable[[], None] = lambda: None,
    ):
        self.names, self.tokenizer, self.data, self.setting, self.on_record = (
            names,
            tokenizer,
            data,
            setting,
            on_record,
        )
        self._num_records = 0
        self._skipped: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def parts(self) -> Iterator[Iterator[Sample]]:
        """The samples of each name; a part must have been read when the next is asked for."""
        for name in self.names:
            records = sources.records_of(
                name, self.data.on_broken, self.setting, self._skipped, self.data.columns
            )
            yield tokenize_each(self._passing(records), self.tokenizer, self.data, self._counts)

    def counts(self) -> dict[str, int]:
        """Of a pass that has come to its end: samples, lines skipped by reason, and what tokenising has
        changed or dropped."""
        told = summary(self._counts, self._num_records, self.data, self.setting)
        return {"samples": self._num_records, **self._skipped, **told}

    def _passing(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            self._num_records += 1
            self.on_record()
            yield record
