"""A rank that keeps the others waiting longer than run.timeout_seconds ends them, on the group that scoring
and training use."""

import socket
import time

import torch
import torch.distributed as dist
from deepspeed.utils import groups

from pipeline.ranks import peers
from pipeline.training.engine import start_process_group

TIMEOUT, LATE = 2, 12  # seconds


def one_rank_is_late() -> tuple[str, float]:
    """(the error that this rank met, seconds until then)"""
    rank, _, _ = start_process_group(TIMEOUT)
    begin = time.monotonic()
    if rank == 1:
        time.sleep(LATE)
        return "", LATE
    try:
        dist.all_reduce(torch.zeros(1), group=groups._clone_world_group())
        message = "it succeeded"
    except RuntimeError as error:
        message = f"{error} from rank 1 on {peers.place(1)}"
    seconds = time.monotonic() - begin
    time.sleep(max(0.0, LATE - seconds))  # the harness lets the ranks meet once more
    return message, seconds


def test_the_timeout_holds_on_the_group_of_the_engine(run_ranks):
    message, seconds = run_ranks("tests.ranks.test_timeout:one_rank_is_late", 2)[0]
    assert "Timed out" in message or "timeout" in message.lower(), message
    assert f"rank 1 on {socket.gethostname()} (127.0.0.1)" in message, message
    assert seconds < LATE, f"the collective waited {seconds:.1f} s, its limit was {TIMEOUT} s"
