# K kept, P scored parameters
"""The weights by their optimality conditions and against two independent solvers."""

import numpy as np
import pytest
from gram_problem import awkward, generic, gram_problem, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls

from pipeline.selection.nonnegative_weights import nonnegative_weights

ridges = st.sampled_from([0.0, 1e-3, 0.1, 1.0, 10.0])


def best_scale(phi_KP, target_P):
    sum_P = phi_KP.sum(0)
    return max(0.0, sum_P @ target_P / (sum_P @ sum_P))


def solve(phi_KP, target_P, scale, ridge):
    signals = gram_problem(phi_KP, target_P)
    return nonnegative_weights(signals.gram_CC, signals.alignment_C, scale, ridge)


@given(seeds, st.integers(1, 8), ridges)
def test_optimality_conditions(seed, K, ridge):
    """w = t v with v the minimiser: v >= 0, gradient >= 0, and the gradient is zero where v > 0."""
    phi_KP, target_P = generic(seed, K, 12)
    signals, scale = gram_problem(phi_KP, target_P), best_scale(phi_KP, target_P)
    weights_K, unweighted = solve(phi_KP, target_P, scale, ridge)
    if unweighted:
        gradient_K = -signals.alignment_C - ridge * np.trace(signals.gram_CC) / K * scale  # at v = 0
        assert gradient_K.min() >= 0
        return
    shrink = ridge * np.trace(signals.gram_CC) / K
    hessian_KK, rhs_K = signals.gram_CC + shrink * np.eye(K), signals.alignment_C + shrink * scale
    length = weights_K @ rhs_K / (weights_K @ hessian_KK @ weights_K)  # undoes the scaling to sum 1
    gradient_K = (hessian_KK @ weights_K * length - rhs_K) / np.abs(rhs_K).max()
    assert length > 0 and weights_K.min() >= 0
    # the ridge floor is 1e-9
    assert gradient_K.min() > -1e-6 and np.abs(gradient_K[weights_K > 0]).max() < 1e-6


@given(seeds, st.integers(1, 8), ridges)
def test_equals_nnls_on_the_vectors_stacked_with_ridge_rows(seed, K, ridge):
    phi_KP, target_P = generic(seed, K, 12)
    scale = best_scale(phi_KP, target_P)
    row = np.sqrt(ridge * np.mean(np.sum(phi_KP**2, axis=1)))
    stacked_K, _ = nnls(
        np.vstack([phi_KP.T, row * np.eye(K)]), np.concatenate([target_P, row * np.full(K, scale)])
    )
    weights_K, unweighted = solve(phi_KP, target_P, scale, ridge)
    assert unweighted == (not stacked_K.any())
    if not unweighted:
        # ridge floor 1e-9, ill-conditioned draws
        assert weights_K == pytest.approx(stacked_K / stacked_K.sum(), abs=1e-5)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_bounded_quasi_newton_minimum(seed, ridge):
    phi_KP, target_P = generic(seed, 6, 12)
    # the quasi-Newton method wants a well-scaled problem
    phi_KP /= np.linalg.norm(phi_KP, axis=1, keepdims=True)
    scale = best_scale(phi_KP, target_P)
    shrink = ridge * np.mean(np.sum(phi_KP**2, axis=1))

    def objective(v_K):
        return np.sum((v_K @ phi_KP - target_P) ** 2) / 2 + shrink / 2 * np.sum((v_K - scale) ** 2)

    found = minimize(
        objective,
        np.ones(6),
        method="L-BFGS-B",
        bounds=[(0, None)] * 6,
        options={"ftol": 1e-15, "gtol": 1e-9},
    )
    weights_K, _ = solve(phi_KP, target_P, scale, ridge)
    # its gradients are finite differences
    assert weights_K == pytest.approx(found.x / found.x.sum(), abs=1e-4)


def test_infinite_ridge_is_uniform_and_the_way_there_is_monotone():
    phi_KP, target_P = np.abs(generic(1, 6, 12)[0]), np.ones(12)
    scale = best_scale(phi_KP, target_P)
    spread = [np.ptp(solve(phi_KP, target_P, scale, ridge)[0]) for ridge in (0.0, 0.1, 1.0, 10.0, 1e9)]
    assert spread == sorted(spread, reverse=True) and spread[0] > 0.1 and spread[-1] < 1e-8


def test_zero_ridge_recovers_a_target_that_is_a_combination():
    phi_KP, _ = generic(2, 5, 12)
    true_K = np.array([3.0, 0.0, 1.0, 4.0, 2.0])
    weights_K, _ = solve(phi_KP, true_K @ phi_KP, scale=1.0, ridge=0.0)
    assert weights_K == pytest.approx(true_K / 10, abs=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 1.0])
def test_twins_share_equally_what_one_of_them_would_get(ridge):
    """To 1e-6 of the sum of weights: without a ridge a floor of 1e-9 alone holds twins together, and rounding
    is 1e-16 over that."""
    phi_KP, target_P = np.abs(generic(4, 3, 12)[0]), np.ones(12)
    phi_KP = np.vstack([phi_KP, phi_KP[:1]])
    weights_K, _ = solve(phi_KP, target_P, best_scale(phi_KP, target_P), ridge)
    assert weights_K[0] == pytest.approx(weights_K[3], abs=1e-6) and weights_K[0] > 0
    if ridge == 0:
        alone_K, _ = solve(phi_KP[:3], target_P, best_scale(phi_KP, target_P), ridge)
        assert weights_K[:3] * [2, 1, 1] == pytest.approx(alone_K, abs=1e-6)


@given(seeds, st.floats(-30, 30), st.floats(-30, 30))
def test_scaling_the_target_or_all_gradients_changes_no_weight(seed, log_target, log_all):
    phi_KP, target_P = np.abs(generic(seed, 5, 12)[0]), np.abs(generic(seed, 5, 12)[1])
    scale = best_scale(phi_KP, target_P)
    weights_K, _ = solve(phi_KP, target_P, scale, ridge=0.1)
    scaled_K, _ = solve(
        phi_KP * 10**log_all, target_P * 10 ** (log_target + log_all), scale * 10**log_target, ridge=0.1
    )
    assert scaled_K == pytest.approx(weights_K, abs=1e-9)


def test_wanting_no_sample_is_uniform_and_said_so():
    weights_K, unweighted = solve(-np.eye(3), np.ones(3), scale=0.0, ridge=1.0)
    assert unweighted and weights_K.tolist() == [1 / 3] * 3
    weights_K, unweighted = solve(np.eye(3), np.zeros(3), scale=0.0, ridge=1.0)
    assert unweighted and weights_K.tolist() == [1 / 3] * 3


@given(awkward(), ridges, st.floats(0, 2))
@settings(max_examples=200)
def test_singular_grams_give_finite_weights_with_sum_one(problem, ridge, scale):
    phi_KP, target_P = problem
    phi_KP = phi_KP[np.any(phi_KP != 0, axis=1)]
    if len(phi_KP):
        weights_K, _ = solve(phi_KP, target_P, scale, ridge)
        assert np.isfinite(weights_K).all() and weights_K.min() >= 0 and weights_K.sum() == pytest.approx(1)


def test_a_gram_rounded_to_float32_is_no_obstacle():
    """Its smallest eigenvalues are negative by rounding: Cholesky would refuse it at ridge 0."""
    phi_KP, target_P = generic(5, 40, 10)
    signals = gram_problem(phi_KP, target_P)
    gram_KK, alignment_K = (
        signals.gram_CC.astype(np.float32).astype(float),
        signals.alignment_C.astype(np.float32).astype(float),
    )
    assert np.linalg.eigvalsh(gram_KK).min() < -1e-9 * np.trace(gram_KK) / 40
    weights_K, _ = nonnegative_weights(gram_KK, alignment_K, scale=0.1, ridge=0.0)
    reached_P = weights_K @ phi_KP
    assert reached_P @ target_P / np.linalg.norm(reached_P) / np.linalg.norm(target_P) > 0.999
