"""Hosts of all ranks, gathered while all can be reached: an error about a lost rank says where to look."""

import os
import socket

import torch.distributed as dist

_places: list[str] = []
_local_ranks: list[int] = []


def meet() -> None:
    """Exchange hosts and addresses. All ranks call it once the process group is there."""
    found: list = [None] * dist.get_world_size()
    dist.all_gather_object(found, (f"{socket.gethostname()} ({_address()})", int(os.environ["LOCAL_RANK"])))
    _places[:], _local_ranks[:] = ([item[part] for item in found] for part in (0, 1))


def place(rank: int) -> str:
    """Host and address of a rank."""
    return _places[rank] if rank < len(_places) else "an unknown host"


def first_of_node(rank: int) -> int:
    """The rank that acts for the node of ``rank``.

    It is the nearest rank, before it or itself, on the same host with LOCAL_RANK 0, or else ``rank``.
    """
    return max(
        (r for r in range(rank + 1) if _local_ranks[r] == 0 and _places[r] == _places[rank]), default=rank
    )


def firsts_of_nodes() -> list[int]:
    return sorted(set(map(first_of_node, range(len(_places)))))


def _address() -> str:
    """Address of the interface that leads to rank 0. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((os.environ.get("MASTER_ADDR", "127.0.0.1"), 9))
            return probe.getsockname()[0]
        except OSError:
            return "address unknown"
