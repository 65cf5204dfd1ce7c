# R rows of one rank, W ranks, n elements
"""Transfers between ranks: rows of gradients to the owners of the matching Adam moments, and small sums.

Every collective runs on the engine's data-parallel group, never on WORLD: calls on one do not pair with calls
on the other. One process on its own needs no group.
"""

import hashlib
from collections.abc import Callable

import torch
import torch.distributed as dist


def place_in(group) -> tuple[int, int]:
    """(rank, world_size) in a group; (0, 1) where no process group was started."""
    return (dist.get_rank(group), dist.get_world_size(group)) if dist.is_initialized() else (0, 1)


class Collectives:
    """Collectives of one group, with a count of the bytes that this rank sends to others."""

    def __init__(self, group, device: torch.device):
        self.group, self.device = group, device
        self.rank, self.world_size = place_in(group)
        self.bytes_sent = 0

    def rows_to_owners(self, pieces_Rn: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Send piece r, (R, n_r), to rank r, and return a function that waits for this rank's pieces.

        They are (W, R, n) with this rank's n, in rank order; R is equal everywhere. Until that call the rank
        may do other work.
        """
        num_rows = pieces_Rn[0].shape[0]
        if self.world_size == 1:
            return lambda: pieces_Rn[0].unsqueeze(0)
        send = torch.cat([piece.reshape(-1) for piece in pieces_Rn])
        own = pieces_Rn[self.rank].shape[1]
        received = send.new_empty(self.world_size * num_rows * own)
        split_sizes = [piece.numel() for piece in pieces_Rn]
        work = dist.all_to_all_single(
            received, send, [num_rows * own] * self.world_size, split_sizes, group=self.group, async_op=True
        )
        self.bytes_sent += (send.numel() - split_sizes[self.rank]) * send.element_size()

        def wait(send=send):  # the default keeps the tensor alive until it is sent
            work.wait()
            return received.view(self.world_size, num_rows, own)

        return wait

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of ``tensor`` over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor, group=self.group)
            self.bytes_sent += (
                2 * tensor.numel() * tensor.element_size() * (self.world_size - 1) // self.world_size
            )
        return tensor

    def any(self, holds: bool) -> bool:
        """Whether ``holds`` is true on some rank; the bytes are not counted."""
        if self.world_size == 1:
            return holds
        flag = torch.tensor(int(holds), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        return bool(flag.item())

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Tensors of all ranks, equal in shape, as one (W, ...)."""
        if self.world_size == 1:
            return tensor.unsqueeze(0)
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        self.bytes_sent += tensor.numel() * tensor.element_size() * (self.world_size - 1)
        return torch.stack(parts)

    def gather_slices(self, own_n: torch.Tensor, slices: list[tuple[int, int]]) -> torch.Tensor:
        """The whole of a flat tensor, elements [start, end) = slices[r] from rank r; a slice may be empty."""
        owners = [rank for rank, (start, end) in enumerate(slices) if end > start]
        whole = own_n.new_empty(max(end for _, end in slices))
        if len(owners) < self.world_size:  # ZeRO-1/2: a parameter lies with one rank or two
            for rank in owners:
                part = whole[slice(*slices[rank])]
                if rank == self.rank:
                    part.copy_(own_n)
                dist.broadcast(part, src=dist.get_global_rank(self.group, rank), group=self.group)
        else:
            longest = max(end - start for start, end in slices)
            padded = torch.nn.functional.pad(own_n, (0, longest - own_n.numel()))
            parts = [torch.empty_like(padded) for _ in slices]
            dist.all_gather(parts, padded, group=self.group)
            for part, (start, end) in zip(parts, slices):
                whole[start:end] = part[: end - start]
        self.bytes_sent += own_n.numel() * own_n.element_size() * (self.world_size - 1)
        return whole

    def gather_objects(self, value) -> list:
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def assert_same(self, value: bytes, what: str) -> str:
        """Hash of ``value``. Raises RuntimeError, on all ranks together, where theirs differ."""
        digest = hashlib.sha256(value).hexdigest()[:16]
        digests = self.gather_objects(digest)
        if len(set(digests)) > 1:
            raise RuntimeError(
                f"the ranks disagree on {what}: "
                + ", ".join(f"rank {r} has {d}" for r, d in enumerate(digests))
            )
        return digest
