# C candidates, P scored parameters
"""The filter against a slow greedy on the vectors themselves, against enumeration, and its invariances."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from gram_problem import awkward, generic, gram_problem, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.selection.residual_filter import alignment_scores, residual_filter


def slow_filter(phi_CP, target_P, keep):
    """Recomputes the scale, the residual and all cosines from the vectors for each pick."""
    kept, scale = [], 0.0
    while len(kept) < keep:
        residual_P = target_P - scale * sum((phi_CP[i] for i in kept), np.zeros_like(target_P))
        score = {
            i: phi_CP[i] @ residual_P / np.linalg.norm(phi_CP[i]) for i in range(len(phi_CP)) if i not in kept
        }
        if not score or max(score.values()) <= 1e-9 * np.linalg.norm(target_P):
            break
        kept.append(max(score, key=score.get))
        (scale,), *_ = np.linalg.lstsq(phi_CP[kept].sum(0)[:, None], target_P, rcond=None)
        scale = max(0.0, scale)
    return kept, scale


def distance(phi_CP, target_P, subset):
    """|scale sum phi - target| at the best scale >= 0."""
    sum_P = phi_CP[list(subset)].sum(0)
    return np.linalg.norm(max(0.0, sum_P @ target_P / (sum_P @ sum_P)) * sum_P - target_P)


@given(seeds, st.integers(1, 14), st.integers(1, 9), st.integers(1, 16))
def test_equals_the_slow_greedy_on_explicit_vectors(seed, C, P, keep):
    phi_CP, target_P = generic(seed, C, P + 1)
    kept, scale = residual_filter(gram_problem(phi_CP, target_P), keep)
    slow_kept, slow_scale = slow_filter(phi_CP, target_P, keep)
    assert kept.tolist() == slow_kept
    assert scale == pytest.approx(slow_scale, rel=1e-6, abs=1e-12)


@given(seeds, st.integers(1, 9))
def test_first_kept_is_the_best_single_candidate_and_no_set_beats_enumeration(seed, C):
    phi_CP, target_P = generic(seed, C, 6)
    kept, _ = residual_filter(gram_problem(phi_CP, target_P), keep=3)
    for size in range(1, len(kept) + 1):
        best = min(distance(phi_CP, target_P, subset) for subset in combinations(range(C), size))
        ours = distance(phi_CP, target_P, kept[:size])
        assert ours >= best * (1 - 1e-9)
        if size == 1:
            assert ours == pytest.approx(best)


@given(seeds, st.integers(2, 8))
def test_is_optimal_where_candidates_are_orthonormal(seed, C):
    rng = np.random.default_rng(seed)
    phi_CP = np.linalg.qr(rng.normal(size=(C, C)))[0]
    target_P = rng.normal(size=C) + phi_CP.sum(0)
    kept, _ = residual_filter(gram_problem(phi_CP, target_P), keep=2)
    if len(kept) == 2:
        best = min(distance(phi_CP, target_P, subset) for subset in combinations(range(C), 2))
        assert distance(phi_CP, target_P, kept) == pytest.approx(best)


def test_a_twin_loses_its_score_and_the_complement_is_kept_instead():
    # Alone, the twin (cosine 0.8) beats the complement (0.6); after its double it adds nothing.
    phi_CP = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    signals = gram_problem(phi_CP, np.array([0.8, 0.6]))
    assert alignment_scores(signals) == pytest.approx([0.8, 0.8, 0.6])
    kept, _ = residual_filter(signals, keep=2)
    assert kept.tolist() == [0, 2]


def test_only_twins_are_kept_once():
    """What rounding leaves of a twin's score does not count as positive."""
    for seed in range(20):
        phi_P, noise_P = np.random.default_rng(seed).normal(size=(2, 1000))
        target_P = phi_P + noise_P
        kept, scale = residual_filter(gram_problem(np.tile(phi_P, (5, 1)), target_P), keep=5)
        assert len(kept) == 1
    assert scale == pytest.approx(phi_P @ target_P / (phi_P @ phi_P))


def test_a_candidate_against_the_target_is_kept_only_where_it_corrects_the_sum():
    target_P = np.array([1.0, 0.0])
    kept, _ = residual_filter(
        gram_problem(np.array([[1.0, 0.0], [-1.0, 0.0], [-1.0, 1.0]]), target_P), keep=3
    )
    assert kept.tolist() == [0]
    # (-0.1, -1) opposes the target by itself and cancels the sideways part of (1, 1).
    kept, _ = residual_filter(gram_problem(np.array([[1.0, 1.0], [-0.1, -1.0]]), target_P), keep=2)
    assert kept.tolist() == [0, 1]


def test_kept_vectors_that_cancel_leave_scale_zero():
    phi_CP = np.array([[1.0, 10.0], [-2.0, -30.0], [1.0, 20.0]])
    signals = gram_problem(phi_CP, np.array([1.0, 0.0]))
    kept, scale = residual_filter(signals, keep=3)
    assert kept.tolist() == [0, 1, 2] and scale == 0


def test_a_zero_gradient_is_never_kept():
    phi_CP, target_P = generic(3, 6, 4)
    phi_CP[[0, 4]] = 0
    kept, _ = residual_filter(gram_problem(phi_CP, target_P), keep=6)
    assert len(kept) > 0 and not {0, 4} & set(kept.tolist())
    signals = gram_problem(phi_CP, target_P)
    # a rounded zero, with an alignment that cannot be
    signals.gram_CC[4, 4], signals.alignment_C[4] = -1e-12, 1.0
    assert 4 not in residual_filter(signals, keep=6)[0]


@pytest.mark.parametrize("phi", [-1.0, 0.0])
def test_nothing_is_kept_where_nothing_is_aligned(phi):
    kept, scale = residual_filter(gram_problem(np.full((4, 3), phi), np.ones(3)), keep=2)
    assert kept.tolist() == [] and kept.dtype == np.int64 and scale == 0


def test_nothing_is_kept_for_a_zero_target():
    phi_CP, target_P = generic(0, 4, 3)
    kept, _ = residual_filter(replace(gram_problem(phi_CP, target_P), target_norm_squared=0.0), keep=2)
    assert kept.tolist() == []


def test_ties_go_to_the_lowest_index():
    kept, _ = residual_filter(gram_problem(np.eye(4), np.ones(4)), keep=3)
    assert kept.tolist() == [0, 1, 2]


@given(seeds, st.integers(1, 12))
def test_greedy_is_a_prefix_of_greedy_with_one_more(seed, keep):
    signals = gram_problem(*generic(seed, 12, 5))
    kept, longer = residual_filter(signals, keep)[0], residual_filter(signals, keep + 1)[0]
    assert len(kept) == min(keep, len(longer)) and kept.tolist() == longer[:keep].tolist()


@given(seeds, st.floats(-5, 5), st.floats(-5, 5))
def test_scaling_the_target_or_all_gradients_keeps_the_same(seed, log_target, log_all):
    """No learning rate enters: it would scale every phi."""
    phi_CP, target_P = generic(seed, 12, 5)
    kept, scale = residual_filter(gram_problem(phi_CP, target_P), keep=6)
    scaled_kept, scaled_scale = residual_filter(
        gram_problem(phi_CP * 10**log_all, target_P * 10 ** (log_target + log_all)), 6
    )
    assert scaled_kept.tolist() == kept.tolist()
    assert scaled_scale == pytest.approx(scale * 10**log_target)


@given(seeds)
def test_is_permutation_equivariant(seed):
    phi_CP, target_P = generic(seed, 12, 5)
    order_C = np.random.default_rng(seed).permutation(12)
    kept, _ = residual_filter(gram_problem(phi_CP, target_P), keep=6)
    permuted_kept, _ = residual_filter(gram_problem(phi_CP[order_C], target_P), keep=6)
    assert order_C[permuted_kept].tolist() == kept.tolist()


@given(awkward())
@settings(max_examples=200)
def test_every_pick_was_positive_and_the_scale_is_the_best(problem):
    phi_CP, target_P = problem
    kept, scale = residual_filter(gram_problem(phi_CP, target_P), keep=5)
    for size, best in enumerate(kept):
        sum_P = phi_CP[kept[:size]].sum(0)
        norm_squared = sum_P @ sum_P
        residual_P = target_P - (max(0.0, sum_P @ target_P / norm_squared) * sum_P if norm_squared else 0)
        assert phi_CP[best] @ residual_P > 0
    if len(kept) and np.any(sum_P := phi_CP[kept].sum(0)):
        assert scale == pytest.approx(max(0.0, sum_P @ target_P / (sum_P @ sum_P)))
