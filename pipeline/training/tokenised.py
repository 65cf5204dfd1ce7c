"""The tokenised samples of a program of several ranks: made once, mapped by all."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.config import Config
from pipeline.data.sample import Sample
from pipeline.data.token_cache import Kept, obtain
from pipeline.data.token_file import TokenFile
from pipeline.ranks.narrator import Narrator
from pipeline.ranks.once_per_node import once_per_node


def read(name: str, tokenizer, config: Config, say: Narrator) -> Sequence[Sample]:
    """Tokenised samples of ``data.<name>``; [] where the setting is empty.

    One rank of a node makes the file, and all of them map it.
    """
    names, setting = getattr(config.data, name), f"data.{name}"
    if not names:
        return []

    def make(beat: Callable[[], None]) -> dict[str, Any]:
        found = obtain(names, tokenizer, config.data, setting, beat, shows_progress=say.rank == 0)
        return {**asdict(found), "manifest": str(found.manifest)}

    found = once_per_node(make, f"tokenising {setting}", config.run.timeout_seconds)
    kept = Kept(**{**found, "manifest": Path(found["manifest"])})
    samples = TokenFile(kept.manifest)
    dist.barrier()  # on all ranks: nodes may differ in whether they can keep it
    if kept.is_temporary:  # what is mapped stays readable
        shutil.rmtree(kept.manifest.parent, ignore_errors=True)
    for note in kept.notes:
        say(note)
    counts = ", ".join(f"{key} {value}" for key, value in samples.manifest.counts.items())
    say(f"{setting}: {counts}{f', from the cache ({kept.manifest})' if kept.is_reused else ''}")
    return samples
