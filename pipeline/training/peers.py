"""Where the other ranks are, gathered while all can still be reached, so that an error about a lost one can say where to look."""

import os
import socket

import torch.distributed as dist

_places: list[str] = []


def meet() -> None:
    """Exchange hosts. All ranks call it when the process group is there."""
    _places[:] = [""] * dist.get_world_size()
    dist.all_gather_object(_places, f"{socket.gethostname()} ({_address()})")


def place(rank: int) -> str:
    """Host and address of a rank."""
    return _places[rank] if rank < len(_places) else "an unknown host"


def _address() -> str:
    """Of the interface that leads to rank 0. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((os.environ.get("MASTER_ADDR", "127.0.0.1"), 9))
            return probe.getsockname()[0]
        except OSError:
            return "address unknown"
