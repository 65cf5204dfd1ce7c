# C candidates, P scored parameters, K kept
"""Each baseline against its own definition, written out on explicit vectors, or somebody else's
implementation."""

from itertools import permutations

import numpy as np
import pytest
from gram_problem import awkward, generic, gram_problem, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp_gram

from pipeline.selection.contract import Settings, Signals
from pipeline.selection.registry import get


def select(name, signals, keep, seed=0, **changes):
    num_candidates = max(
        len(column)
        for column in (signals.gram_CC, signals.loss_C, signals.squared_norm_C)
        if column is not None
    )
    return get(name).select(signals, keep, num_candidates, np.random.default_rng(seed), Settings(**changes))


def test_losses_and_norms_are_ranked_and_ties_go_to_the_lowest_index():
    loss_C, reference_C = np.array([2.0, 5.0, 3.0, 5.0, 0.0]), np.array([1.0, 4.5, 1.0, 1.0, 3.0])
    assert select("max_loss", Signals(loss_C=loss_C), 3).indices.tolist() == [1, 3, 2]
    assert select("rho_loss", Signals(loss_C=loss_C, reference_loss_C=reference_C), 4).indices.tolist() == [
        3,
        2,
        0,
        1,
    ]
    assert select("grad_norm", Signals(squared_norm_C=loss_C), 2).indices.tolist() == [1, 3]


@given(seeds)
def test_grad_dot_and_less_are_top_k_of_products_and_of_cosines_with_the_plain_target(seed):
    grad_CP, target_P = generic(seed, 12, 6)
    metric_P = np.random.default_rng(seed).lognormal(sigma=2, size=6)
    product_C = [float(sum(g * t for g, t in zip(row, target_P))) for row in grad_CP]
    update_CP = metric_P * grad_CP
    cosine_C = [row @ target_P / np.linalg.norm(row) / np.linalg.norm(target_P) for row in update_CP]
    for name, rows, score in (("grad_dot", grad_CP, product_C), ("less", update_CP, cosine_C)):
        best = sorted(range(12), key=lambda i: -score[i])[:5]
        assert select(name, gram_problem(rows, target_P), 5).indices.tolist() == best, name


@given(seeds, st.sampled_from([0.0, 1e-3, 0.05, 1.0]))
def test_greats_keeps_what_descends_most_after_a_virtual_step_on_the_kept(seed, learning_rate):
    """The gradient of the target at theta - lr sum_kept g_j is g_T - lr sum_kept g_j where its Hessian is the
    identity."""
    grad_CP, target_P = generic(seed, 9, 5)
    kept, virtual_P = [], target_P.copy()
    for _ in range(5):
        gains = {i: learning_rate * grad_CP[i] @ virtual_P for i in range(9) if i not in kept}
        if learning_rate == 0:
            gains = {i: grad_CP[i] @ target_P for i in gains}  # the limit
        kept.append(max(gains, key=gains.get))
        virtual_P -= learning_rate * grad_CP[kept[-1]]
    assert (
        select("greats", gram_problem(grad_CP, target_P), 5, learning_rate=learning_rate).indices.tolist()
        == kept
    )


def test_greats_avoids_a_twin_only_at_learning_rates_that_let_it():
    grad_CP, target_P = np.array([[1.0, 0.0], [1.0, 0.0], [0.2, 0.5]]), np.array([1.0, 0.1])
    signals = gram_problem(grad_CP, target_P)
    assert select("greats", signals, 2, learning_rate=1e-4).indices.tolist() == [0, 1]
    assert select("greats", signals, 2, learning_rate=0.95).indices.tolist() == [0, 2]


def test_grad_match_equals_scikit_learns_matching_pursuit_where_that_has_no_negative_weight():
    """Which has no sign to keep: compared on problems where its weights and products come out positive by
    themselves."""
    num_compared = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        grad_CP = rng.normal(size=(10, 40))
        target_P = np.abs(rng.normal(size=10)) @ grad_CP + 0.3 * rng.normal(size=40)
        signals = gram_problem(grad_CP, target_P)
        paths = [
            orthogonal_mp_gram(signals.gram_CC, signals.alignment_C, n_nonzero_coefs=k) for k in range(1, 5)
        ]
        if min(path.min() for path in paths) < 0:
            continue
        num_compared += 1
        selection = select("grad_match", signals, 4, ridge=0.0)
        order = [set(np.flatnonzero(path)) for path in paths]
        assert [set(selection.indices[: k + 1].tolist()) for k in range(4)] == order, seed
        weights_K = paths[-1][selection.indices]
        assert selection.weights == pytest.approx(weights_K / weights_K.sum(), abs=1e-6)
    assert num_compared > 50, num_compared


@given(seeds, st.sampled_from([0.0, 0.1, 1.0]))
def test_grad_match_follows_its_definition_step_by_step_on_explicit_vectors(seed, ridge):
    grad_CP, target_P = generic(seed, 12, 6)
    kept, tried, weights_K = [], set(), np.zeros(0)
    while len(kept) < 5:
        residual_P = target_P - weights_K @ grad_CP[kept] if kept else target_P
        products = {i: grad_CP[i] @ residual_P for i in range(12) if i not in tried}
        best = max(products, key=products.get, default=None)
        if best is None or products[best] <= 1e-9 * np.linalg.norm(target_P) * np.linalg.norm(grad_CP[best]):
            break
        tried.add(best)
        kept.append(best)
        strength = max(ridge, 1e-9) * np.mean(np.sum(grad_CP[kept] ** 2, axis=1))
        stacked = np.vstack([grad_CP[kept].T, np.sqrt(strength) * np.eye(len(kept))])
        weights_K, _ = nnls(stacked, np.concatenate([target_P, np.zeros(len(kept))]))
        kept, weights_K = [i for i, w in zip(kept, weights_K) if w > 0], weights_K[weights_K > 0]
    selection = select("grad_match", gram_problem(grad_CP, target_P), 5, ridge=ridge)
    assert selection.indices.tolist() == kept
    assert selection.weights == pytest.approx(weights_K / weights_K.sum(), abs=1e-5)


@given(seeds, st.sampled_from([0.01, 1.0]))
def test_nonnegative_least_squares_is_scipys_on_the_vectors_cut_to_the_largest(seed, ridge):
    phi_CP, target_P = generic(seed, 10, 8)
    total_P = phi_CP.sum(0)
    scale = max(0.0, total_P @ target_P / (total_P @ total_P))
    strength = ridge * np.mean(np.sum(phi_CP**2, axis=1))
    stacked = np.vstack([phi_CP.T, np.sqrt(strength) * np.eye(10)])
    weights_C, _ = nnls(stacked, np.concatenate([target_P, np.full(10, np.sqrt(strength) * scale)]))
    best = [i for i in np.argsort(-weights_C, kind="stable")[:4].tolist() if weights_C[i] > 0]
    selection = select("nonnegative_least_squares", gram_problem(phi_CP, target_P), 4, ridge=ridge)
    assert selection.indices.tolist() == best
    assert selection.weights == pytest.approx(weights_C[best] / weights_C[best].sum(), abs=1e-6)


def test_nonnegative_least_squares_shrunk_to_uniform_keeps_the_best_aligned():
    signals = gram_problem(np.array([[1.0, 1.0], [0.0, 0.0], [2.0, 0.1], [0.3, 0.0]]), np.array([1.0, 0.0]))
    assert select("nonnegative_least_squares", signals, 2, ridge=np.inf).indices.tolist() == [3, 2]


def utility(update_CP, target_P, kept, learning_rate):
    taken_P = sum((update_CP[j] for j in kept), np.zeros(len(target_P)))
    return learning_rate * update_CP @ target_P - learning_rate**2 * update_CP @ taken_P


def test_opus_draws_ordered_samples_with_the_probabilities_of_its_definition():
    """All 12 ordered pairs of 4 candidates: 6000 draws lie within 5 standard deviations of the enumerated
    probability."""
    update_CP = np.array([[1.0, 0.5], [1.0, 0.5], [-0.5, 1.0], [0.0, 0.0]])
    target_P, learning_rate, temperature, num_draws = np.array([1.0, 0.2]), 0.8, 0.5, 6000
    expected = {}
    for first, second in permutations(range(4), 2):
        probability = 1.0
        for kept, drawn in (((), first), ((first,), second)):
            weight_C = np.exp(utility(update_CP, target_P, kept, learning_rate) / temperature)
            weight_C[list(kept)] = 0
            probability *= weight_C[drawn] / weight_C.sum()
        expected[first, second] = probability
    assert sum(expected.values()) == pytest.approx(1) and max(expected.values()) > 2 * min(expected.values())
    signals, rng, counts = (
        gram_problem(update_CP, target_P),
        np.random.default_rng(0),
        dict.fromkeys(expected, 0),
    )
    for _ in range(num_draws):
        selection = get("opus").select(
            signals, 2, 4, rng, Settings(temperature=temperature, learning_rate=learning_rate)
        )
        counts[tuple(selection.indices.tolist())] += 1
    for pair, probability in expected.items():
        deviation = abs(counts[pair] - num_draws * probability) / np.sqrt(
            num_draws * probability * (1 - probability)
        )
        assert deviation < 5, f"{pair}: {counts[pair]} of {num_draws}, expected {num_draws * probability:.0f}"


@given(seeds)
def test_opus_without_temperature_is_greedy(seed):
    update_CP, target_P = generic(seed, 8, 5)
    kept = []
    for _ in range(4):
        utility_C = utility(update_CP, target_P, kept, 0.3)
        utility_C[kept] = -np.inf
        kept.append(int(np.argmax(utility_C)))
    selection = select("opus", gram_problem(update_CP, target_P), 4, temperature=1e-12, learning_rate=0.3)
    assert selection.indices.tolist() == kept


@given(awkward(), st.integers(1, 6))
@settings(max_examples=80)
def test_matching_more_candidates_is_never_worse_without_ridge(problem, keep):
    """Least squares over a larger set; on twins, opposites and zeros too."""
    phi_CP, target_P = problem
    signals = gram_problem(phi_CP, target_P)
    fewer, more = (select("grad_match", signals, number, ridge=0.0) for number in (keep, keep + 1))
    if fewer.residual is not None:
        assert more.residual <= fewer.residual + 1e-4  # ridge of 1e-9, under a root
