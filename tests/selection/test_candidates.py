# C candidates, P scored parameters
"""Which candidates are usable, and how the match of an outcome is measured."""

import numpy as np
import pytest
from gram_problem import awkward, generic, gram_problem, seeds
from hypothesis import given
from hypothesis import strategies as st

from pipeline.selection.candidates import match, usable_candidates
from pipeline.selection.contract import Signals


@given(seeds, st.sets(st.integers(0, 5), max_size=5), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_exactly_the_non_finite_candidates_are_dropped(seed, bad, value):
    phi_CP, target_P = generic(seed, 6, 4)
    phi_CP[sorted(bad), 1] = value
    with np.errstate(invalid="ignore"):
        usable = usable_candidates(gram_problem(phi_CP, target_P), 6)
    clean = [i for i in range(6) if i not in bad]
    assert usable.dropped == tuple(sorted(bad)) and usable.position_U.tolist() == clean
    expected = gram_problem(phi_CP[clean], target_P)
    assert usable.signals.gram_CC == pytest.approx(
        expected.gram_CC
    ) and usable.signals.alignment_C == pytest.approx(expected.alignment_C)


@pytest.mark.parametrize("where", ["norm", "alignment"])
def test_one_non_finite_number_is_enough(where):
    signals = gram_problem(*generic(0, 4, 3))
    if where == "norm":
        signals.gram_CC[2, 2] = np.inf
    else:
        signals.alignment_C[2] = np.nan
    assert usable_candidates(signals, 4).dropped == (2,)


def test_damage_off_the_diagonal_takes_the_row_that_has_it_not_its_neighbours():
    signals = gram_problem(*generic(0, 5, 3))
    signals.gram_CC[3, [0, 1, 4]] = signals.gram_CC[[0, 1, 4], 3] = np.nan
    assert usable_candidates(signals, 5).dropped == (3,)
    signals.gram_CC[0, 1] = signals.gram_CC[1, 0] = np.nan  # nothing tells these two apart
    assert usable_candidates(signals, 5).dropped == (0, 1, 3)


@pytest.mark.parametrize("bad_target", [np.nan, np.inf])
def test_a_non_finite_target_is_an_error_about_the_target(bad_target):
    phi_CP, target_P = generic(0, 4, 3)
    target_P[0] = bad_target
    with pytest.raises(ValueError, match=r"target's gradient is not finite.* 0 of 4 alignments"):
        usable_candidates(gram_problem(phi_CP, target_P), 4)
    clean = gram_problem(*generic(0, 4, 3))
    with pytest.raises(ValueError, match=f"squared norm is {bad_target}, and 4 of 4 alignments are finite"):
        usable_candidates(Signals(clean.gram_CC, clean.alignment_C, bad_target), 4)
    with pytest.raises(ValueError, match="target's gradient is not finite"):
        usable_candidates(Signals(clean.gram_CC, np.full(4, np.nan), clean.target_norm_squared), 4)


@pytest.mark.parametrize("C", [1, 4])
def test_no_usable_candidate_is_an_error_about_the_candidates(C):
    with pytest.raises(ValueError, match=f"no candidate is usable: {C} of {C} have a non-finite norm"):
        usable_candidates(gram_problem(np.full((C, 3), np.nan), np.ones(3)), C)


@given(seeds, st.integers(1, 6))
def test_match_is_what_the_vectors_say(seed, C):
    phi_CP, target_P = generic(seed, C, 4)
    weights_C = np.random.default_rng(seed).dirichlet(np.ones(C))
    residual, cosine = match(gram_problem(phi_CP, target_P), np.arange(C), weights_C)
    update_P = weights_C @ phi_CP
    assert cosine == pytest.approx(update_P @ target_P / np.linalg.norm(update_P) / np.linalg.norm(target_P))
    tried = [
        np.linalg.norm(s * update_P - target_P)
        for s in np.linspace(0, 2 * max(0, update_P @ target_P) / (update_P @ update_P), 201)
    ]
    assert residual == pytest.approx(min(tried) / np.linalg.norm(target_P), abs=1e-7)


def test_match_at_its_ends():
    target_P = np.array([3.0, 4.0])
    one, zero = np.arange(1), np.zeros((1, 2))
    assert match(gram_problem(target_P[None] / 7, target_P), one, np.ones(1)) == pytest.approx(
        (0, 1), abs=1e-7
    )
    assert match(gram_problem(-target_P[None], target_P), one, np.ones(1)) == pytest.approx((1, -1))
    assert match(gram_problem(zero, target_P), one, np.ones(1)) == (1.0, None)
    assert match(gram_problem(target_P[None], np.zeros(2)), one, np.ones(1)) == (None, None)
    for seed in range(20):  # rounding leaves a little of the sum in most of them
        pair_P = np.random.default_rng(seed).normal(size=(2, 2))
        cancelling = gram_problem(np.vstack([pair_P, -pair_P.sum(0)]), target_P)
        assert match(cancelling, np.arange(3), np.full(3, 1 / 3)) == (1.0, None)


@given(awkward())
def test_match_stays_in_range_on_awkward_candidates(problem):
    phi_CP, target_P = problem
    residual, cosine = match(
        gram_problem(phi_CP, target_P), np.arange(len(phi_CP)), np.full(len(phi_CP), 1 / len(phi_CP))
    )
    assert (residual is None) == (not target_P.any())
    assert (cosine is None) == (not target_P.any() or not phi_CP.sum(0).any())
    assert residual is None or 0 <= residual <= 1
    assert cosine is None or -1 <= cosine <= 1


@given(seeds)
def test_rounding_takes_no_cosine_beyond_one(seed):
    target_P = np.random.default_rng(seed).normal(size=5)
    residual, cosine = match(gram_problem(0.3 * target_P[None], target_P), np.arange(1), np.ones(1))
    assert 1 - 1e-12 < cosine <= 1 and 0 <= residual < 1e-6
