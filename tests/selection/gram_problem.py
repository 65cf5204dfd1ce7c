# C candidates, P scored parameters
"""Gram problems made from explicit vectors, so that a test can check against the vectors themselves."""

import numpy as np
from hypothesis import strategies as st

from pipeline.selection.contract import Signals


def gram_problem(phi_CP: np.ndarray, target_P: np.ndarray) -> Signals:
    return Signals(phi_CP @ phi_CP.T, phi_CP @ target_P, float(target_P @ target_P))


def generic(seed: int, C: int, P: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates of different norms that share a direction with the target, some of them against it."""
    rng = np.random.default_rng(seed)
    common_P = rng.normal(size=P)
    phi_CP = (rng.normal(size=(C, P)) + 0.5 * rng.normal(size=(C, 1)) * common_P) * rng.lognormal(size=(C, 1))
    return phi_CP, common_P + 0.5 * rng.normal(size=P)


seeds = st.integers(0, 2**32 - 1)


@st.composite
def awkward(draw, max_C: int = 9, max_P: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Small integers: twins, opposites, zero gradients, zero targets, ties and singular Grams all turn up."""
    C, P, largest, seed = (
        draw(st.integers(1, max_C)),
        draw(st.integers(1, max_P)),
        draw(st.integers(0, 2)),
        draw(seeds),
    )
    rng = np.random.default_rng(seed)
    return rng.integers(-largest, largest + 1, size=(C, P)).astype(float), rng.integers(-1, 2, size=P).astype(
        float
    )
