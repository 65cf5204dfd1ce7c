"""Sums of bit patterns, as whole numbers: the same in any order and over any partition.

Any single changed bit changes them.
"""

from collections.abc import Iterable

import torch

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by number of bytes


def sum_of_bits(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of one tensor, on its device: an int64 scalar, modulo 2^64 as these wrap."""
    return tensor.detach().view(INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)


def checksum(tensors: Iterable[torch.Tensor]) -> int:
    """Sum of all tensors, modulo 2^64."""
    return sum(int(sum_of_bits(tensor)) for tensor in tensors) % 2**64
