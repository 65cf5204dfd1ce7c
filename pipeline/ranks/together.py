"""Work of one rank for all: its outcome, a value or an error, becomes everybody's."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from pipeline.ranks.collectives import place_in


def together(action: Callable[[], Any], group=None) -> Any:
    """The value, or the error, of rank 0's ``action`` on every rank of ``group``, by default on all.

    Every one of them calls it. A process on its own, without a process group, is its own rank 0.
    """
    group = dist.group.WORLD if group is None else group
    rank, world_size = place_in(group)
    outcome: list[Any] = [None]
    if rank == 0:
        try:
            outcome = [action()]
        except Exception as error:  # raised again below, on every rank
            outcome = [error]
    if world_size > 1:
        dist.broadcast_object_list(outcome, src=dist.get_global_rank(group, 0), group=group)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]
