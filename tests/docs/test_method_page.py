"""Formulas and claims of docs/method.md that no other test holds against the code."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.selection.contract import Signals
from pipeline.selection.residual_filter import residual_filter

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "method.md").read_text()


@pytest.mark.parametrize("step", [1, 2, 30])
def test_the_corrected_second_moment_is_a_mean_of_itself_and_the_square(step):
    """v_t = (1 - a) v_s + a g^2 with a = (1 - beta2) / (1 - beta2^t), in the state of a real AdamW."""
    beta2, weight = 0.99, torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], betas=(0.9, beta2))
    corrected = []
    for t in range(1, step + 2):
        weight.grad = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(t))
        optimizer.step()
        corrected.append(optimizer.state[weight]["exp_avg_sq"] / (1 - beta2**t))
    a = (1 - beta2) / (1 - beta2 ** (step + 1))
    assert torch.allclose(corrected[-1], (1 - a) * corrected[-2] + a * weight.grad**2, rtol=1e-12)


def test_a_pick_may_worsen_the_match_under_the_common_scale():
    """The example that the page has."""
    phi_CN, target_N = np.array([[1.0, 0.0], [0.0, 10.0]]), np.array([1.0, 0.1])
    signals = Signals(phi_CN @ phi_CN.T, phi_CN @ target_N, float(target_N @ target_N))
    residuals = []
    for keep in (1, 2):
        kept, scale = residual_filter(signals, keep)
        assert len(kept) == keep
        residuals.append(np.linalg.norm(scale * phi_CN[kept].sum(0) - target_N) / np.linalg.norm(target_N))
    assert f"from {residuals[0]:.2f} to {residuals[1]:.2f}" in PAGE


def test_every_test_that_the_page_names_is_there():
    code = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    names = re.findall(r"`(test_\w+)`", PAGE)
    assert len(names) > 3 and not [name for name in names if f"def {name}(" not in code]
