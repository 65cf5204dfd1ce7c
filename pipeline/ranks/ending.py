"""The end of a process that all ranks share: exit code 0 everywhere, or non-zero everywhere."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from pipeline.ranks import peers

PACKAGE = Path(__file__).parents[1]
SECONDS_FOR_NOTES = 10  # a rank that has met the same broken collective leaves its note within moments
COLLECTIVE_WORDS = (
    "gloo",
    "Gloo",
    "NCCL",
    "Connection closed by peer",
    "Timed out waiting",
    "Connection reset",
)


def end_together(main: Callable[[], None]) -> None:
    """Run ``main`` and leave the process: with code 0, with the code of an exit in it, or with 1 on an error.

    Settings and the self-check exit with code 2, and have said why. A ValueError or RuntimeError of our own
    is a sentence to the user; all else comes with its traceback.
    """
    code = 0
    try:
        main()
        dist.barrier()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:  # reported, and the process ends with code 1
        code = 1
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if not (isinstance(error, (ValueError, RuntimeError)) and raised_in.is_relative_to(PACKAGE)):
            _complain("".join(traceback.format_exception(error)).rstrip())
        _complain(f"rank {os.environ.get('RANK', '0')}: {type(error).__name__}: {error}")
        for sentence in _others(error):
            _complain(f"rank {os.environ.get('RANK', '0')}: {sentence}")
    # DeepSpeed's monitor has loaded wandb if the run uses it; without this it finishes only at a normal exit.
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=code)
    # Leaving through the interpreter aborts now and then: gloo's thread drops tensors while Python finalizes.
    # And a rank that has failed must not wait for collectives of others: the launcher ends them when it sees
    # the code.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _complain(text: str) -> None:
    with suppress(OSError):  # a log that cannot be written may be what has ended the run
        print(text, file=sys.stderr, flush=True)


def _others(error: BaseException) -> list[str]:
    """Sentences about the other ranks, as far as this one, which has failed, finds out about them.

    Each rank leaves a note of its failure where the ranks have met. One that failed because others did not
    answer in a collective waits for their notes: a rank that leaves none is dead or stalls, and a note with
    another error tells the cause.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return []
    is_answer_missing = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in COLLECTIVE_WORDS)
    )
    cause = "" if is_answer_missing else f"{type(error).__name__}: {error}"
    # In a thread: the store's client waits for a reply without end when the network to rank 0 swallows it.
    found: list[list[str]] = []
    asking = threading.Thread(target=lambda: found.append(_exchange_notes(cause)), daemon=True)
    asking.start()
    asking.join(2 * SECONDS_FOR_NOTES)
    return (
        found[0]
        if found
        else [f"no word from rank 0 in {2 * SECONDS_FOR_NOTES} s: look at its machine, {peers.place(0)}"]
    )


def _exchange_notes(cause: str) -> list[str]:
    """Leave this rank's note; where it has no ``cause`` of its own, read those of the others."""
    rank, others = dist.get_rank(), [r for r in range(dist.get_world_size()) if r != dist.get_rank()]
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"failed/{rank}", cause)
        if cause:
            return []
        deadline = time.monotonic() + SECONDS_FOR_NOTES
        while silent := [r for r in others if not store.check([f"failed/{r}"])]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        causes = {r: store.get(f"failed/{r}").decode() for r in others if r not in silent}
    except (RuntimeError, dist.DistError):  # rank 0 keeps the notes
        return [
            f"rank 0 is gone: what it or its launcher has said last is the cause; it is on {peers.place(0)}"
        ]
    found = [f"rank {r} failed with {cause}" for r, cause in causes.items() if cause]
    if silent:
        names, machines = ", ".join(map(str, silent)), ", ".join(dict.fromkeys(map(peers.place, silent)))
        found.append(
            f"no word from rank {names} in {SECONDS_FOR_NOTES} s: dead or stalled; look at its log and its "
            f"machine, {machines}"
        )
    return found
