"""What one rank does for all: its outcome, a value or an error, becomes everybody's."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist


def together(action: Callable):
    """What rank 0's ``action`` returns, or raises, on every rank."""
    outcome: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            outcome = [action()]
        except Exception as error:  # raised again below, on every rank
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]
