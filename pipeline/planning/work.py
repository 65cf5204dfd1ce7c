"""The two kinds of work that a plan counts, on one rank, and the time that each takes on given hardware."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Union

from pipeline.planning.hardware import THIN, Hardware

Rate = Literal["compute", "float32", "host"]
"""FLOP/s of the compute dtype, of float32, or of rank 0's processor."""


@dataclass(frozen=True)
class Compute:
    """Kernels one after the other, as long as the slowest of operations and traffic."""

    flops: float = 0.0
    rate: Rate = "compute"
    is_thin: bool = False
    memory_bytes: float = 0.0
    """Traffic with device memory, read and written."""
    host_bytes: float = 0.0
    """Traffic with host memory: moments of an offloaded optimizer."""
    turns: float = 1.0
    """Factor of the time where ranks do this one after the other while the rest wait."""

    def seconds(self, hardware: Hardware, world_size: int) -> float:
        rate = {
            "compute": hardware.matmul_flops,
            "float32": hardware.float32_flops,
            "host": hardware.host_flops,
        }[self.rate]
        matmul = self.flops / (rate * (hardware.thin_share if self.is_thin else 1.0))
        return self.turns * (
            max(matmul, self.memory_bytes / hardware.memory_bandwidth) + self.host_bytes / hardware.host_link
        )


@dataclass(frozen=True)
class Transfer:
    """Collectives of one kind."""

    sent_bytes: float
    """Mean over ranks, counted as ``Collectives.bytes_sent`` counts."""
    num_collectives: int
    pattern: Literal["ring", "all_to_all"]
    """Way of the bytes.

    ring: gathers and sums send each byte into a node once, over all its links together. all_to_all: different
    bytes go to every rank, over the sender's own link.
    """
    turns: float = 1.0
    """Factor of the time where ranks receive one after the other while the other links wait."""

    def seconds(self, hardware: Hardware, world_size: int) -> float:
        if world_size == 1:
            return 0.0
        if hardware.node_bandwidth is None:
            raise ValueError(
                f"hardware = {hardware.name} knows no links between ranks: set world_size to 1 or name a "
                "built-in one"
            )
        per_node = hardware.ranks_per_node
        if world_size <= per_node:
            return (
                self.turns * self.sent_bytes / hardware.node_bandwidth
                + self.num_collectives * hardware.latency_node
            )
        assert hardware.network_bandwidth is not None, f"{hardware.name} has links within a node alone"
        if self.pattern == "ring":
            bandwidth = min(hardware.node_bandwidth, per_node * hardware.network_bandwidth)
            transfer = self.sent_bytes / bandwidth
        else:
            leaves_node = (world_size - per_node) / (world_size - 1)
            within = (1 - leaves_node) * self.sent_bytes / hardware.node_bandwidth
            transfer = max(within, leaves_node * self.sent_bytes / hardware.network_bandwidth)
        return self.turns * transfer + self.num_collectives * hardware.latency_network


Work = list[Union[Compute, Transfer]]


def product(
    m: int,
    k: float,
    n: int,
    element_size: int,
    count: int = 1,
    rate: Rate = "compute",
    share: float = 1.0,
    turns: float = 1.0,
) -> Compute:
    """``count`` products (m, k) @ (k, n). ``share`` of the operations are done: half in causal attention."""
    return Compute(
        flops=2.0 * m * k * n * count * share,
        rate=rate,
        is_thin=min(m, k, n) <= THIN,
        memory_bytes=float(m * k + k * n + m * n) * count * element_size,
        turns=turns,
    )


def seconds(work: Iterable[Union[Compute, Transfer]], hardware: Hardware, world_size: int) -> float:
    return sum(item.seconds(hardware, world_size) for item in work)


def flops(work: Iterable[Union[Compute, Transfer]]) -> float:
    """Multiplications and additions of matrix products on the device."""
    return sum(item.flops for item in work if isinstance(item, Compute) and item.rate != "host")


def sent_bytes(work: Iterable[Union[Compute, Transfer]]) -> float:
    return sum(item.sent_bytes for item in work if isinstance(item, Transfer))
