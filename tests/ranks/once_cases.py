"""The ranks' side of test_once_per_node.py."""

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

TIMEOUT = 1.5  # seconds


class Odd(Exception):
    """It cannot be unpickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def outcomes() -> dict[str, Any]:
    """By case what the rank got, and for how long it waited."""
    import torch.distributed as dist

    from pipeline.ranks import once_per_node, peers
    from pipeline.training.engine import start_process_group

    rank, _, _ = start_process_group(60)
    done, found, once_per_node.SECONDS_BETWEEN_BEATS = [], {}, 0.1

    def work(beat, seconds, sign=True, error=None):
        done.append(rank)
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            time.sleep(0.1)
            if sign:
                beat()
        if error:
            raise error
        return rank

    def case(name, action):
        dist.barrier()
        done.clear()
        begin = time.monotonic()
        try:
            result = once_per_node.once_per_node(action, "the work", TIMEOUT)
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        found[name] = result, done.copy(), time.monotonic() - begin

    case("one node", lambda beat: work(beat, 0))
    case("long", lambda beat: work(beat, 2 * TIMEOUT))
    case("an error", lambda beat: work(beat, 0, error=Odd("this", "that")))
    os.environ["LOCAL_RANK"] = "0"  # from here on two nodes
    peers.meet()
    case("two nodes", lambda beat: work(beat, 0))
    case(
        "an error on the other node",
        lambda beat: work(beat, 30 if rank == 0 else 0.5, error=rank and ValueError("no room")),
    )
    os.environ["LOCAL_RANK"] = str(rank)
    peers.meet()
    case("no sign", lambda beat: work(beat, TIMEOUT + 1, sign=False))
    case("afterwards", lambda beat: work(beat, 0))
    return found


def read(data, others, temporary) -> dict[str, Any]:
    """Samples as ``pipeline.train`` reads them on every rank: how many records the rank tokenised, what it
    got, and what was said."""
    from pipeline.config import Config
    from pipeline.data import chat
    from pipeline.ranks.narrator import Narrator
    from pipeline.training import run
    from pipeline.training.engine import start_process_group
    from tests.conftest import tokenizer

    tempfile.tempdir = temporary
    rank, _, _ = start_process_group(60)
    encoded, original, found = [], chat._encode, {}
    chat._encode = lambda record, *more: encoded.append(record.id) or original(record, *more)
    said = []

    class Listening(Narrator):
        def __call__(self, sentence):
            said.append(sentence)

    for name, changes in {"first": {}, "second": {}, **others}.items():
        encoded.clear(), said.clear()
        try:
            samples = run.read("pool", tokenizer(), Config(data=replace(data, **changes)), Listening(rank))
            result = list(samples), samples.manifest.content, samples.path.exists()
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        found[name] = len(encoded), result, said.copy()
    left = sorted(path.name for path in Path(temporary).glob("tokens-*"))
    return {**found, "left": left}
