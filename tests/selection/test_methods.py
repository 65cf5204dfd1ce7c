# C candidates, P scored parameters
"""One battery for all methods, and what is particular to each."""

from pathlib import Path

import numpy as np
import pytest
from gram_problem import awkward, generic, gram_problem, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.selection
from pipeline.selection import filter_then_weight
from pipeline.selection.candidates import match
from pipeline.selection.contract import Selection, Settings, Signals
from pipeline.selection.registry import METHODS, get
from pipeline.selection.residual_filter import residual_filter

RANDOM = ("random", "opus")
STOPPING = (
    "filter_then_weight",
    "top_k",
    "grad_match",
    "nonnegative_least_squares",
)  # keep what helps; the others rank and fill up


def methods(condition):
    return pytest.mark.parametrize(
        "method", [m for m in METHODS.values() if condition(m)], ids=lambda m: m.name
    )


all_methods = methods(lambda m: True)
measured_methods = methods(lambda m: m.needs != "nothing")
gram_methods = methods(lambda m: m.needs == "gram")
stopping_methods = methods(lambda m: m.name in STOPPING)
deterministic_methods = methods(lambda m: m.needs != "nothing" and m.name not in RANDOM)


def signals_of(method, phi_CP, target_P):
    """What the method needs and nothing else. Losses are two linear functions of the rows, so that a bad row
    has a bad loss."""
    num_features = phi_CP.shape[1]
    with np.errstate(invalid="ignore"):
        gram = gram_problem(phi_CP, target_P)
        losses = {"loss_C": phi_CP.sum(1), "reference_loss_C": phi_CP @ np.linspace(1, -1, num_features)}
        norm = {"squared_norm_C": np.diagonal(gram.gram_CC)}
    return {
        "nothing": None,
        "loss": Signals(loss_C=losses["loss_C"]),
        "reference_loss": Signals(**losses),
        "norm": Signals(**norm),
        "gram": gram,
    }[method.needs]


def run(method, phi_CP, target_P, keep, seed=0, **changes):
    signals = signals_of(method, phi_CP, target_P)
    return method.select(signals, keep, len(phi_CP), np.random.default_rng(seed), Settings(**changes))


def check_contract(selection, keep, C):
    assert 1 <= len(selection.indices) <= keep
    assert selection.indices.dtype == np.int64 and selection.weights.dtype == np.float64
    assert selection.indices.shape == selection.weights.shape == np.unique(selection.indices).shape
    assert selection.indices.min() >= 0 and selection.indices.max() < C
    assert np.isfinite(selection.weights).all() and selection.weights.min() > 0
    assert selection.weights.sum() == pytest.approx(1, abs=1e-12)


@all_methods
@given(awkward(), st.integers(1, 12), st.sampled_from([0.0, 1.0, np.inf]))
@settings(max_examples=150)
def test_contract_holds_on_awkward_candidates(method, problem, keep, ridge):
    """Also where C < keep, C = 1, candidates are twins, all gradients are zero, or the target's is."""
    phi_CP, target_P = problem
    selection = run(method, phi_CP, target_P, keep, ridge=ridge)
    check_contract(selection, len(phi_CP) if method.name == "full" else keep, len(phi_CP))
    assert selection.fallback == (method.name in STOPPING and not np.any(phi_CP @ target_P > 0))
    assert (selection.residual is None) == (method.needs != "gram" or not target_P.any())
    if method.name not in (*STOPPING, "full"):
        assert len(selection.indices) == min(keep, len(phi_CP)), "a method that ranks fills up"
        assert selection.weights.tolist() == [1 / len(selection.indices)] * len(selection.indices)


@all_methods
def test_same_seed_same_selection(method):
    phi_CP, target_P = generic(0, 30, 8)
    once, again = run(method, phi_CP, target_P, 5, seed=7), run(method, phi_CP, target_P, 5, seed=7)
    assert once.indices.tolist() == again.indices.tolist() and once.weights.tolist() == again.weights.tolist()


@deterministic_methods
@given(seeds)
def test_permutation_equivariant_and_blind_to_the_seed(method, seed):
    phi_CP, target_P = generic(seed, 12, 6)
    order_C = np.random.default_rng(seed).permutation(12)
    plain, permuted = run(method, phi_CP, target_P, 4), run(method, phi_CP[order_C], target_P, 4, seed=1)
    assert order_C[permuted.indices].tolist() == plain.indices.tolist()
    assert permuted.weights == pytest.approx(plain.weights, abs=1e-9)
    assert permuted.residual == pytest.approx(plain.residual, abs=1e-6)


@deterministic_methods
@given(seeds, st.sampled_from([2.0**-40, 2.0**40]))
def test_a_common_scale_of_all_gradients_changes_nothing(method, seed, factor):
    phi_CP, target_P = generic(seed, 12, 6)
    plain, scaled = run(method, phi_CP, target_P, 4), run(method, factor * phi_CP, factor * target_P, 4)
    assert scaled.indices.tolist() == plain.indices.tolist() and scaled.weights == pytest.approx(
        plain.weights, abs=1e-9
    )


@deterministic_methods
@given(seeds)
def test_the_length_of_the_target_changes_nothing_but_for_greats(method, seed):
    """Its redundancy term has the unit of a squared gradient times the learning rate."""
    phi_CP, target_P = generic(seed, 12, 6)
    options = {"learning_rate": 0.1}
    plain, longer = (run(method, phi_CP, factor * target_P, 6, **options) for factor in (1, 2.0**20))
    if method.name == "greats":
        longer = run(method, phi_CP, 2.0**20 * target_P, 6, learning_rate=0.1 * 2.0**20)
    assert longer.indices.tolist() == plain.indices.tolist() and longer.weights == pytest.approx(
        plain.weights, abs=1e-9
    )


@measured_methods
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_candidates_are_dropped_and_the_rest_selects_as_if_they_had_never_been(method, value):
    phi_CP, target_P = generic(1, 12, 6)
    bad, clean = [0, 7], [i for i in range(12) if i not in (0, 7)]
    expected = run(method, phi_CP[clean], target_P, 4)
    phi_CP[bad, 2] = value
    selection = run(method, phi_CP, target_P, 4)
    assert selection.dropped == (0, 7) and not selection.fallback
    assert selection.indices.tolist() == np.array(clean)[expected.indices].tolist()
    assert selection.weights == pytest.approx(expected.weights)


@measured_methods
def test_fewer_usable_candidates_than_keep_keeps_fewer(method):
    phi_CP = np.eye(5)
    phi_CP[[1, 3]] = np.nan
    selection = run(method, phi_CP, np.ones(5), keep=4)
    assert sorted(selection.indices.tolist()) == [0, 2, 4] and selection.dropped == (1, 3)


@measured_methods
def test_no_usable_candidate_is_an_error(method):
    with pytest.raises(ValueError, match="no candidate is usable"):
        run(method, np.full((3, 2), np.nan), np.ones(2), keep=2)


@gram_methods
def test_non_finite_target_is_refused(method):
    with pytest.raises(ValueError, match="target's gradient is not finite"):
        run(method, np.eye(3), np.array([np.nan, 1, 1]), keep=2)


@stopping_methods
def test_fallback_is_uniform_on_those_that_oppose_the_target_least(method):
    # cosines -1, -0.6, 0 (a zero gradient), -0.8
    phi_CP = np.array([[-1.0, 0.0], [-3.0, 4.0], [0.0, 0.0], [-4.0, 3.0]])
    selection = run(method, phi_CP, np.array([1.0, 0.0]), keep=2)
    assert (
        selection.fallback
        and selection.indices.tolist() == [2, 1]
        and selection.weights.tolist() == [0.5, 0.5]
    )
    assert selection.residual == 1 and selection.cosine == pytest.approx(-0.6)


@stopping_methods
def test_zero_target_falls_back(method):
    selection = run(method, np.eye(100), np.zeros(100), keep=3)
    assert selection.fallback and selection.indices.tolist() == [0, 1, 2]
    assert selection.residual is None and selection.cosine is None


@gram_methods
@given(seeds)
def test_reported_match_is_that_of_the_reported_selection(method, seed):
    phi_CP, target_P = generic(seed, 10, 6)
    selection = run(method, phi_CP, target_P, 4)
    assert (selection.residual, selection.cosine) == match(
        gram_problem(phi_CP, target_P), selection.indices, selection.weights
    )


@given(seeds)
def test_filter_then_weight_without_ridge_is_nearer_to_the_target_than_the_filter_alone(seed):
    phi_CP, target_P = generic(seed, 12, 8)
    signals = gram_problem(phi_CP, target_P)
    kept, _ = residual_filter(signals, 5)
    filter_residual, _ = match(signals, kept, np.full(len(kept), 1 / len(kept)))
    selection = run(get("filter_then_weight"), phi_CP, target_P, 5, ridge=0.0)
    assert selection.residual <= filter_residual + 1e-6
    assert set(selection.indices.tolist()) <= set(kept.tolist())


@given(seeds)
def test_filter_then_weight_with_an_infinite_ridge_is_the_filter_alone(seed):
    phi_CP, target_P = generic(seed, 12, 8)
    kept, scale = residual_filter(gram_problem(phi_CP, target_P), 5)
    selection = run(get("filter_then_weight"), phi_CP, target_P, 5, ridge=np.inf)
    huge = run(get("filter_then_weight"), phi_CP, target_P, 5, ridge=1e12)
    assert huge.indices.tolist() == selection.indices.tolist() and huge.weights == pytest.approx(
        selection.weights, rel=1e-6
    )
    if scale > 0:
        assert selection.indices.tolist() == kept.tolist() and not selection.fallback
        assert selection.weights == pytest.approx(1 / len(kept), rel=1e-15)


def test_a_sample_of_weight_zero_is_not_kept():
    # The filter keeps 0 first, then 1 and 2; without ridge the weights want 1 and 2 alone, for 0 leans away
    # in the third entry.
    phi_CP = np.array([[1.0, 1.0, 0.3], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    target_P = np.array([1.0, 1.0, -0.05])
    assert residual_filter(gram_problem(phi_CP, target_P), 3)[0].tolist() == [0, 1, 2]
    selection = run(get("filter_then_weight"), phi_CP, target_P, 3, ridge=0.0)
    assert selection.indices.tolist() == [1, 2] and selection.weights == pytest.approx([0.5, 0.5])


def test_filter_then_weight_says_so_where_least_squares_wants_no_sample(monkeypatch):
    monkeypatch.setattr(filter_then_weight, "nonnegative_weights", lambda *problem: (np.full(2, 0.5), True))
    selection = run(get("filter_then_weight"), np.eye(2), np.ones(2), 2)
    assert selection.fallback and selection.weights.tolist() == [0.5, 0.5]


def test_top_k_keeps_the_largest_cosines_whatever_their_norm_and_ignores_redundancy():
    cosine_C = np.array([0.1, 0.9, -0.5, 0.9, 0.6])
    phi_CP = np.stack([cosine_C, np.sqrt(1 - cosine_C**2)], axis=1) * np.array(
        [[100.0], [1], [50], [1], [0.01]]
    )
    assert run(get("top_k"), phi_CP, np.array([2.0, 0.0]), 3).indices.tolist() == [1, 3, 4]
    everything = run(get("top_k"), phi_CP, np.array([2.0, 0.0]), 5)
    assert everything.indices.tolist() == [1, 3, 4, 0] and everything.weights.tolist() == [0.25] * 4


def test_random_is_uniform_over_candidates_and_depends_on_the_seed():
    draws = [
        get("random").select(None, 3, 10, np.random.default_rng(seed), Settings()) for seed in range(2000)
    ]
    counts = np.bincount(np.concatenate([d.indices for d in draws]), minlength=10)
    assert np.abs(counts - 600).max() < 5 * np.sqrt(2000 * 0.3 * 0.7)  # five standard deviations, fixed seeds
    assert all(d.weights.tolist() == [1 / 3] * 3 for d in draws)


def test_full_keeps_everything_in_order_whatever_keep_is():
    selection = get("full").select(None, 2, 5, np.random.default_rng(0), Settings())
    assert selection.indices.tolist() == [0, 1, 2, 3, 4] and selection.weights.tolist() == [0.2] * 5


@gram_methods
def test_thousands_of_candidates(method):
    # cubic in all candidates, and says so
    num_candidates = 512 if method.name == "nonnegative_least_squares" else 4096
    phi_CP, target_P = generic(0, num_candidates, 64)
    selection = run(method, phi_CP, target_P, keep=48)
    check_contract(selection, 48, num_candidates)
    if method.name in STOPPING:
        cosine_C = phi_CP @ target_P / np.linalg.norm(phi_CP, axis=1) / np.linalg.norm(target_P)
        assert not selection.fallback and selection.cosine > cosine_C.max()


def test_methods_are_files_of_their_name():
    folder = Path(pipeline.selection.__file__).parent
    with_method = {file.stem for file in folder.glob("*.py") if "\nMETHOD = " in file.read_text()}
    assert with_method == set(METHODS)
    assert all(get(name).name == name for name in METHODS)


def test_an_unknown_method_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'lesss'.*filter_then_weight, top_k, random, full"):
        get("lesss")


@pytest.mark.parametrize(
    "indices, weights",
    [
        ([], []),
        ([1, 1], [0.5, 0.5]),
        ([0, 1], [1.0, 0.0]),
        ([0, 1], [0.5, 0.6]),
        ([0], [np.nan]),
        ([0, 1], [1.0]),
    ],
)
def test_a_selection_that_breaks_the_contract_cannot_be_made(indices, weights):
    with pytest.raises(AssertionError, match="weights"):
        Selection(np.array(indices, dtype=np.int64), np.array(weights))
