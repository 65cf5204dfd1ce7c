"""Tokenised samples of files and datasets, one at a time: memory does not grow with the pool."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from pipeline.config import DataConfig
from pipeline.data import sources
from pipeline.data.chat import summary, tokenize_each
from pipeline.data.record import Record
from pipeline.data.sample import Sample


class Reading:
    """One pass through all ``names``, in order; ``on_record`` is called once a record.

    The errors are those of ``sources.read`` and ``chat.tokenize_all`` (ValueError), raised when the pass
    comes to them.
    """

    def __init__(
        self,
        names: list[str],
        tokenizer,
        data: DataConfig,
        setting: str,
        on_record: Callable[[], None] = lambda: None,
    ):
        self.names = names
        self.tokenizer = tokenizer
        self.data = data
        self.setting = setting
        self.on_record = on_record
        self._num_records = 0
        self._skipped: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def parts(self) -> Iterator[Iterator[Sample]]:
        """The samples of each name in turn; read a part to its end before asking for the next."""
        for name in self.names:
            records = sources.records_of(
                name, self.data.on_broken, self.setting, self._skipped, self.data.columns
            )
            yield tokenize_each(self._passing(records), self.tokenizer, self.data, self._counts)

    def counts(self) -> dict[str, int]:
        """Counts after the pass: samples, lines skipped by reason, what tokenising changed or dropped.

        Raises ValueError where no sample is left.
        """
        told = summary(self._counts, self._num_records, self.data, self.setting)
        return {"samples": self._num_records, **self._skipped, **told}

    def _passing(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            self._num_records += 1
            self.on_record()
            yield record
