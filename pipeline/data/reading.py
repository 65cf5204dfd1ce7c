"""From the settings of ``data`` to tokenised samples."""

from collections.abc import Callable

from pipeline.config import Config
from pipeline.data import sources
from pipeline.data.chat import tokenize_all
from pipeline.data.sample import Sample


def read(name: str, tokenizer, config: Config, say: Callable[[str], None]) -> list[Sample]:
    """Tokenised samples of ``data.<name>``; [] where the setting is empty. Every rank reads the same."""
    names = getattr(config.data, name)
    if not names:
        return []
    found, counts = sources.read(names, config.data.on_broken, f"data.{name}")
    samples, token_counts = tokenize_all(found, tokenizer, config.data, f"data.{name}")
    say(f"data.{name}: " + ", ".join(f"{key} {value}" for key, value in {**counts, **token_counts}.items()))
    return samples
