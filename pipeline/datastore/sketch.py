# R rows, k features of the Gram backend, D features of the file
"""A second projection, from the joined features of all layers to D numbers: a count sketch.

    y_d = sum of s_j x_j over the j that fall into bucket d,     s_j = +-1 at random,     E <y, y'> = <x, x'>

Var <y, y'> <= (|x|^2 |x'|^2 + <x, x'>^2) / D, as with a dense Gaussian matrix, which would take k D numbers:
880 MB at k = 215,000 and D = 1024. Signs alone make it unbiased; the random buckets keep large coordinates of
several layers from meeting in one.

M. Charikar, K. Chen, M. Farach-Colton, Finding Frequent Items in Data Streams (2002); K. Weinberger et al.,
Feature Hashing for Large Scale Multitask Learning (arXiv 0902.2206). Their buckets are independent; buckets
of equal size need no atomic additions, so that a GPU gives the same bits twice.
"""

import hashlib

import torch
import torch.nn.functional as F


class CountSketch:
    """A random linear map of ``width`` numbers to ``size``; equal arguments give the same map everywhere."""

    def __init__(self, width: int, size: int, seed: str, device: torch.device):
        """Draw the map. Raises ValueError where ``size`` is more than ``width``."""
        if size > width:
            raise ValueError(
                f"features = {size} is more than the {width} numbers that the Gram backend leaves of a "
                "gradient: lower it, or raise selection.projection_size"
            )
        self.size, self._missing = size, -width % size
        draw = torch.Generator().manual_seed(
            int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")
        )
        self._order_k = torch.randperm(width + self._missing, generator=draw).to(device)
        self._sign_k = (2.0 * torch.randint(2, (width + self._missing,), generator=draw) - 1).to(device)

    def __call__(self, rows_Rk: torch.Tensor) -> torch.Tensor:
        """The mapped rows, (R, D), float32."""
        mixed_Rk = F.pad(rows_Rk, (0, self._missing))[:, self._order_k] * self._sign_k
        return mixed_Rk.view(len(rows_Rk), -1, self.size).sum(1)
