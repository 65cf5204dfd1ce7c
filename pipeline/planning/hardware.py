"""Rates and sizes of the hardware that a plan needs, built in or measured here.

Rates are a program's, not the vendor's: peak x a share. The peaks are sourced below; the shares
are assumptions, the same for all cards, until ``measure`` or a comparison
(``benchmarks.plan_error``) replaces them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

import numpy as np
import torch

from pipeline.data.sample import Sample
from pipeline.proposal import features

GIB = 2**30

# Assumptions.
MATMUL_SHARE = 0.6  # of peak, large square products
THIN_SHARE = 0.5  # of that, products with a side of at most THIN
MEMORY_SHARE = 0.8
LINK_SHARE = 0.7
LATENCY_NODE, LATENCY_NETWORK = 20e-6, 50e-6  # seconds from the call of a collective until its data flow
HOST_FLOPS = 1e9  # float64 on one core, matrices of tens of rows

# Measured on one core of an Intel Xeon (CPU seconds): 1.1 to 1.9 million tokens of 64 to 512 a sample, with 8
# to 256 target examples; ``measure`` puts this machine's own in its place.
FEATURE_TOKENS_PER_SECOND = 1.5e6

THIN = 128
FEATURE_SAMPLES, FEATURE_LENGTH = 1024, 128  # whose features ``measure`` makes


@dataclass(frozen=True)
class Hardware:
    """One rank's device and its links, at achieved rates; a link's are of one direction and one rank."""

    name: str
    device_type: str
    """cuda or cpu: decides what ``training.precision: auto`` means."""
    matmul_flops: float
    """FLOP/s of square products in the compute dtype (bf16 on GPUs, fp32 on CPU)."""
    float32_flops: float
    """FLOP/s of square products in float32, without TF32."""
    thin_share: float
    """Share of these rates in a product with one side of at most THIN."""
    memory_bandwidth: float
    memory_bytes: float
    host_link: float
    """Rate between device and host memory, where an offloaded optimizer keeps the moments."""
    ranks_per_node: int
    node_bandwidth: Optional[float]
    """Rate within a node; None where nobody measured it."""
    network_bandwidth: Optional[float]
    """Rate between nodes."""
    latency_node: float = LATENCY_NODE
    latency_network: float = LATENCY_NETWORK
    host_flops: float = HOST_FLOPS
    feature_tokens_per_second: float = FEATURE_TOKENS_PER_SECOND
    """Tokens of a pool, of which one core makes features in a second (pipeline/proposal/features.py)."""

    def computing_in(self, element_size: int) -> "Hardware":
        """The hardware for a compute dtype of this size: in float32 all products have its rate."""
        return replace(self, matmul_flops=self.float32_flops) if element_size == 4 else self


def _card(
    name: str,
    bf16: float,
    float32: float,
    memory_bandwidth: float,
    memory: float,
    pcie: float,
    nvlink: float,
    network: float,
) -> Hardware:
    return Hardware(
        name,
        "cuda",
        MATMUL_SHARE * bf16,
        MATMUL_SHARE * float32,
        THIN_SHARE,
        MEMORY_SHARE * memory_bandwidth,
        memory,
        LINK_SHARE * pcie,
        8,
        LINK_SHARE * nvlink,
        LINK_SHARE * network,
    )


# Peaks: NVIDIA datasheets "H100 Tensor Core GPU", "H200 Tensor Core GPU", "A100 80GB Tensor Core GPU", each
# SXM: dense bf16 (half of the figure "with sparsity"), fp32, memory, PCIe and NVLink (half of the printed sum
# of both directions).  Network: datasheets "DGX H100", "DGX H200" (8 ConnectX-7 of 400 Gb/s for 8 GPUs) and
# "DGX A100" (8 ConnectX of 200 Gb/s).
BUILT_IN = {
    "h100": _card("h100", 989e12, 67e12, 3.35e12, 80e9, 64e9, 450e9, 50e9),
    "h200": _card("h200", 989e12, 67e12, 4.8e12, 141e9, 64e9, 450e9, 50e9),
    "a100": _card("a100", 312e12, 19.5e12, 2.039e12, 80e9, 32e9, 300e9, 25e9),
}


def find(name: str) -> Hardware:
    """A built-in profile, or ``here``: this machine, measured."""
    if name == "here":
        return measure()
    if name not in BUILT_IN:
        raise ValueError(
            f"hardware: {name} is unknown: use here (measures this machine), {', '.join(BUILT_IN)}"
        )
    return BUILT_IN[name]


def measure() -> Hardware:
    """This machine, measured in a few seconds.

    One process sees no links between ranks, so such a profile plans for one rank.
    """
    is_cuda = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if is_cuda else "cpu"), torch.bfloat16 if is_cuda else torch.float32
    size = 8192 if is_cuda else 1024
    square = _matmul_rate(size, size, size, dtype, device)
    thin = _matmul_rate(size, size, 32, dtype, device)
    float32 = _matmul_rate(size // 2, size // 2, size // 2, torch.float32, device) if is_cuda else square
    source = torch.empty((1 << 30) if is_cuda else (1 << 26), dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / _seconds(lambda: target.copy_(source), device)
    host_link = bandwidth
    if is_cuda:
        host = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
        host_link = host.numel() / _seconds(
            lambda: target[: host.numel()].copy_(host, non_blocking=True), device
        )
    return Hardware(
        name="here",
        device_type=device.type,
        matmul_flops=square,
        float32_flops=float32,
        thin_share=min(1.0, thin / square),
        memory_bandwidth=bandwidth,
        memory_bytes=_memory(is_cuda),
        host_link=host_link,
        ranks_per_node=1,
        node_bandwidth=None,
        network_bandwidth=None,
        feature_tokens_per_second=_feature_rate(),
    )


def _feature_rate() -> float:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 32_000, (FEATURE_SAMPLES, FEATURE_LENGTH)).tolist()
    samples = [Sample(ids, ids) for ids in rows]
    duration = _seconds(lambda: features.make(samples, samples[:8]), torch.device("cpu"))
    return FEATURE_SAMPLES * FEATURE_LENGTH / duration


def _matmul_rate(m: int, k: int, n: int, dtype: torch.dtype, device: torch.device) -> float:
    left, right = torch.ones(m, k, dtype=dtype, device=device), torch.ones(k, n, dtype=dtype, device=device)
    return 2 * m * k * n / _seconds(lambda: left @ right, device)


def _seconds(action: Callable, device: torch.device, at_least: float = 0.3) -> float:
    """Mean time of one action, repeated for ``at_least`` seconds after one that warms up.

    A mean, and not the best time: a plan is about work that lasts.
    """
    action()
    _wait(device)
    begin, repetitions, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < at_least:
        action()
        _wait(device)
        repetitions += 1
        elapsed = time.perf_counter() - begin
    return elapsed / repetitions


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _memory(is_cuda: bool) -> int:
    if is_cuda:
        return torch.cuda.get_device_properties(0).total_memory
    total = next(
        line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")
    )
    return int(total.split()[1]) * 1024
