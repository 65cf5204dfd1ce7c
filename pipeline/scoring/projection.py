# k_out x k_in features of a layer, O out_features, I in_features
"""Seeded two-sided random projections of a layer's gradients: P G Q with E[P'P] = 1 and E[QQ'] = 1.

Inner products survive in expectation: E <P G Q, P H Q> = <G, H>, since P and Q are independent. They are
drawn anew at every scoring pass, so that errors average out over a run instead of favouring the same
samples, and are never stored: a layer's take less time than its factors do. A side that is no longer
than the projection is left as it is.

W. Johnson, J. Lindenstrauss (1984); on both sides: S. Choe et al., LoGra (arXiv 2405.13954).
"""

import hashlib
import math
from typing import Optional

import torch

RANDOM_BYTES = 12
"""Memory traffic of one number of a projection: it is drawn, and divided."""


class Projection:
    """P and Q of one weight of ``shape`` (O, I), at most ``size`` wide; equal on every rank."""

    def __init__(self, shape: tuple[int, int], size: int, seed: str, name: str):
        self.sizes = tuple(min(size, features) for features in shape)
        self._shape = shape
        self._seeds = [
            int.from_bytes(hashlib.sha256(f"{seed} {name} {side}".encode()).digest()[:7], "big")
            for side in "PQ"
        ]

    @property
    def width(self) -> int:
        """Number of features of the layer."""
        return self.sizes[0] * self.sizes[1]

    def left(self, device: torch.device) -> Optional[torch.Tensor]:
        """P', float32 (O, k_out); None stands for the unit matrix."""
        return self._normal(0, device)

    def right(self, device: torch.device) -> Optional[torch.Tensor]:
        """Q, float32 (I, k_in); None stands for the unit matrix."""
        return self._normal(1, device)

    def _normal(self, side: int, device: torch.device) -> Optional[torch.Tensor]:
        features, size = self._shape[side], self.sizes[side]
        if size == features:
            return None
        generator = torch.Generator(device).manual_seed(self._seeds[side])
        return torch.randn(features, size, generator=generator, device=device).div_(math.sqrt(size))
