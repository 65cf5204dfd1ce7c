"""Long work that one rank of each node does while the others wait, as long as it goes on.

They do not wait in a collective, which would end after run.timeout_seconds however well the work goes. They
look into the store where the ranks have met: a counter in it rises while any node works, and a key appears
when all have done their work, or one has failed.
"""

import itertools
import json
import time
from collections.abc import Callable
from typing import Any, Optional

import torch.distributed as dist

from pipeline.ranks import peers

SECONDS_BETWEEN_BEATS, SECONDS_BETWEEN_LOOKS, SECONDS_TO_READ = 1.0, 0.5, 10.0
KINDS = {"ValueError": ValueError, "RuntimeError": RuntimeError}
_calls = itertools.count()


def once_per_node(action: Callable[[Callable[[], None]], Any], what: str, timeout_seconds: float) -> Any:
    """The result of ``action`` on the first rank of this node, for all ranks of it. Every rank calls this.

    Args:
        action: gets a function that it must call again and again as it works. Its result goes through JSON.
        what: the work, for messages.
        timeout_seconds: longest time without a call of that function on any node; then the waiting ranks give
            up.

    Raises:
        ValueError, RuntimeError: on all ranks, the error of ``action`` on any node (another kind of error as
            RuntimeError, with its name); on all ranks that wait, where nothing goes on any more.
    """
    number, rank = next(_calls), dist.get_rank()
    if dist.get_world_size() == 1:
        return action(lambda: None)
    store = dist.PrefixStore(f"once/{number}", dist.distributed_c10d._get_default_store())
    own_error = _act(action, store) if peers.first_of_node(rank) == rank else None
    _wait(store, what, timeout_seconds)
    error = _error(store)
    if error is None:
        return json.loads(store.get(f"result/{peers.first_of_node(rank)}"))
    if store.add("has read", 1) and rank == 0:  # it keeps the store until all have read
        deadline = time.monotonic() + SECONDS_TO_READ
        while store.add("has read", 0) < dist.get_world_size() and time.monotonic() < deadline:
            time.sleep(0.05)
    raise error from own_error


def _act(action: Callable[[Callable[[], None]], Any], store: dist.Store) -> Optional[Exception]:
    """The error of ``action``, or None; the error, or the result, is left in the store."""
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_BEATS:
            last = time.monotonic()
            store.add("beats", 1)
            if error := _error(store):  # left by another node
                raise error

    try:
        store.set(f"result/{dist.get_rank()}", json.dumps(action(beat)))
    except Exception as error:  # raised on all ranks
        _fail(store, error)
        return error
    if store.add("finished", 1) == len(peers.firsts_of_nodes()):
        store.set("ended", "")
    return None


def _wait(store: dist.Store, what: str, timeout_seconds: float) -> None:
    beats, since, pause = 0, time.monotonic(), 0.01
    while not store.check(["ended"]):
        if (found := store.add("beats", 0)) != beats:
            beats, since = found, time.monotonic()
        if time.monotonic() - since > timeout_seconds:
            behind = [rank for rank in peers.firsts_of_nodes() if not store.check([f"result/{rank}"])]
            places = ", ".join(f"rank {rank} on {peers.place(rank)}" for rank in behind)
            _fail(
                store,
                RuntimeError(
                    f"{what}: no sign for {timeout_seconds} s that the work goes on ({places}): look at the "
                    "machine and at the file system, or raise run.timeout_seconds where a single file or "
                    "dataset takes longer to open"
                ),
            )
            return
        time.sleep(pause)
        pause = min(2 * pause, SECONDS_BETWEEN_LOOKS)


def _fail(store: dist.Store, error: Exception) -> None:
    """Leave ``error`` in the store for all ranks, unless another was first."""
    known = next((kind for kind in KINDS.values() if isinstance(error, kind)), None)
    content = [known.__name__, str(error)] if known else ["RuntimeError", f"{type(error).__name__}: {error}"]
    store.compare_set("error", "", json.dumps(content))
    store.set("ended", "")


def _error(store: dist.Store) -> Optional[Exception]:
    """The error that a node has left in the store, if one has."""
    if not store.check(["error"]):
        return None
    kind, message = json.loads(store.get("error"))
    return KINDS[kind](message)
