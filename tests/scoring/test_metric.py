# C candidates, K kept, N elements
"""Adam's metric against closed forms, and the linearised step of docs/method.md against torch.optim.AdamW."""

import math

import pytest
import torch

from pipeline.geometry import CURVATURE, GEOMETRIES, IDENTITY, UPDATE, UPDATE_TO_GRADIENT
from pipeline.scoring.metric import Metric
from pipeline.scoring.moments import Fragment

BETA1, BETA2, EPS = 0.9, 0.95, 1e-2
EXP_AVG_SQ = [4e-4, 1e-6, 9.0]


def scale(
    geometry, exp_avg_sq: torch.Tensor, step: int, beta2: float, eps: float, bias_correction: bool = True
):
    """D^power of one fragment's state."""
    own = Fragment("w", 0, len(exp_avg_sq), None, exp_avg_sq, step, BETA1, beta2, eps, bias_correction)
    return Metric.of(own).scale(exp_avg_sq, geometry)


@pytest.mark.parametrize("step", [1, 2, 50])
def test_scale_equals_the_closed_form(step):
    """eps is as large as the roots here: inside the root, or without the bias correction, no element would
    agree."""
    found = scale(UPDATE, torch.tensor(EXP_AVG_SQ), step, BETA2, EPS)
    expected = torch.tensor([1 / (math.sqrt(v / (1 - BETA2**step)) + EPS) for v in EXP_AVG_SQ])
    assert torch.allclose(found, expected, rtol=1e-6, atol=0)


def test_scale_without_bias_correction_follows_the_optimizer_that_has_none():
    found = scale(UPDATE, torch.tensor(EXP_AVG_SQ), 3, BETA2, EPS, False)
    assert torch.allclose(
        found, torch.tensor([1 / (math.sqrt(v) + EPS) for v in EXP_AVG_SQ]), rtol=1e-6, atol=0
    )


def test_curvature_is_the_root_of_update_and_identity_is_one():
    v = torch.tensor(EXP_AVG_SQ)
    update, curvature = (scale(geometry, v, 5, BETA2, EPS) for geometry in (UPDATE, CURVATURE))
    assert torch.allclose(curvature**2, update, rtol=1e-6, atol=0)
    assert torch.equal(scale(IDENTITY, v, 5, BETA2, EPS), torch.ones(3))


def test_only_update_to_gradient_leaves_the_target_as_it_is():
    v = torch.tensor(EXP_AVG_SQ)
    found = {name: geometry.scales_target for name, geometry in GEOMETRIES.items()}
    assert found == {"update": True, "curvature": True, "identity": True, "update_to_gradient": False}
    assert torch.equal(*(scale(geometry, v, 5, BETA2, EPS) for geometry in (UPDATE, UPDATE_TO_GRADIENT)))


@pytest.mark.parametrize("geometry", [UPDATE, CURVATURE, UPDATE_TO_GRADIENT], ids=str)
def test_an_element_without_history_has_scale_zero(geometry):
    assert scale(geometry, torch.tensor([0.0, 1e-6]), 1, BETA2, 1e-8).tolist()[0] == 0


@pytest.mark.parametrize("geometry", [UPDATE, CURVATURE, IDENTITY], ids=str)
def test_the_live_state_is_not_written_to(geometry):
    v = torch.tensor(EXP_AVG_SQ)
    scale(geometry, v, 3, BETA2, EPS).add_(1)
    assert v.tolist() == torch.tensor(EXP_AVG_SQ).tolist()


def errors_of_the_linearised_step(beta2: float, linearised) -> float:
    """|u_real(w) - u_lin(w)| / |u_real(w)| for random weights and a state after very many steps, all in
    float64."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    num_elements, step, learning_rate, eps = 200, 10**7, 1e-3, 1e-3
    grad_CN, weights_C = draw(4, num_elements), torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    exp_avg_N, exp_avg_sq_N = 0.1 * draw(num_elements), 0.5 + draw(num_elements) ** 2
    parameter = torch.nn.Parameter(draw(num_elements))
    before = parameter.detach().clone()
    optimizer = torch.optim.AdamW(
        [parameter], lr=learning_rate, betas=(BETA1, beta2), eps=eps, weight_decay=0
    )
    optimizer.state[parameter] = {
        "step": torch.tensor(float(step)),
        "exp_avg": exp_avg_N.clone(),
        "exp_avg_sq": exp_avg_sq_N.clone(),
    }
    parameter.grad = weights_C @ grad_CN
    optimizer.step()
    real_N = (before - parameter.detach()) / learning_rate
    linear_N = linearised(exp_avg_N, exp_avg_sq_N, weights_C @ grad_CN, step, beta2, eps)
    return ((real_N - linear_N).norm() / real_N.norm()).item()


def by_design(exp_avg_N, exp_avg_sq_N, grad_N, step, beta2, eps):
    # float32: floor of the error at 1e-7
    metric_N = scale(UPDATE, exp_avg_sq_N, step, beta2, eps).double()
    return metric_N * (BETA1 * exp_avg_N + (1 - BETA1) * grad_N) / (1 - BETA1 ** (step + 1))


def eps_inside_the_root(exp_avg_N, exp_avg_sq_N, grad_N, step, beta2, eps):
    metric_N = 1 / (exp_avg_sq_N / (1 - beta2**step) + eps).sqrt()
    return metric_N * (BETA1 * exp_avg_N + (1 - BETA1) * grad_N) / (1 - BETA1 ** (step + 1))


def test_the_linearised_step_differs_from_adamw_in_first_order_of_one_minus_beta2():
    """A tenth of 1 - beta2 leaves a tenth of the error; the second order makes that 10 +- 1 from 1e-2 on."""
    errors = [errors_of_the_linearised_step(1 - gap, by_design) for gap in (1e-2, 1e-3, 1e-4)]
    assert 9 < errors[0] / errors[1] < 11 and 9.5 < errors[1] / errors[2] < 10.5, errors
    assert errors[0] < 0.05, errors


def test_eps_inside_the_root_leaves_an_error_of_order_zero():
    """So the test above would catch it."""
    errors = [errors_of_the_linearised_step(1 - gap, eps_inside_the_root) for gap in (1e-3, 1e-4)]
    assert errors[0] / errors[1] < 5, errors
