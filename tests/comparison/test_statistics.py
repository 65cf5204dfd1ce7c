"""Means, errors and differences against scipy and against numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipeline.comparison.statistics import best_baseline, estimate, ranks_of, reference_of, rows_of

rng = np.random.default_rng(0)
CURVE = {"step": [0, 10, 20], "loss": [4.0, 2.0, 3.0], "seconds": [0.0, 5.0, 15.0], "cpu_seconds": None}


def values(table: dict[str, list[float]]) -> pd.Series:
    """By target and seed; columns are seeds."""
    return pd.Series(
        {(target, seed): x for target, row in table.items() for seed, x in enumerate(row)}
    ).rename_axis(["target", "seed"])


def cell(variant, target="a", seed=0, auc=1.0, method=None, curve=CURVE, **more) -> dict:
    return {
        "variant": variant,
        "target": target,
        "seed": seed,
        "auc": auc,
        "final": curve["loss"][-1],
        "method": method or variant,
        "proposal": "uniform",
        "draws_at_random": variant == "random",
        "curve": curve,
        "accuracy": None,
        "step_seconds": 0.5,
        "selection_share": None,
        "trained_tokens": 100,
        **more,
    }


def test_error_of_one_target_is_scipys_standard_error_of_the_mean():
    x = rng.normal(size=5)
    found = estimate(values({"a": list(x)}))
    assert found.mean == pytest.approx(x.mean()) and found.error == pytest.approx(stats.sem(x))


def test_error_over_targets_is_that_of_the_seeds_means_and_ignores_how_targets_differ():
    table = rng.normal(size=(3, 4))
    far_apart = table + np.array([[0.0], [10.0], [-100.0]])
    for x in (table, far_apart):
        found = estimate(values({name: list(row) for name, row in zip("abc", x)}))
        assert found.mean == pytest.approx(x.mean()) and found.error == pytest.approx(
            stats.sem(table.mean(0))
        )


def test_a_missing_cell_moves_the_mean_only_within_its_target():
    """Targets' means 2 and 10.5; residuals -1, 0, 1 and -0.5, 0.5; by seed -0.75, 0.25, 1: variance 0.7708
    over 3."""
    found = estimate(values({"a": [1.0, 2.0, 3.0], "b": [10.0, 11.0, np.nan]}))
    assert found.mean == pytest.approx(6.25)
    assert found.error == pytest.approx(np.sqrt(np.var([-0.75, 0.25, 1.0], ddof=1) / 3))


def test_one_seed_has_no_error_and_nothing_has_no_mean():
    assert estimate(values({"a": [1.0], "b": [3.0]})).error is None
    assert estimate(values({"a": [1.0], "b": [3.0]})).mean == 2
    assert estimate(values({"a": [np.nan]})).mean is None


def test_differences_in_pairs_are_those_of_the_paired_t_test():
    ours, random = rng.normal(size=6), rng.normal(size=6)
    cells = [cell("filter_then_weight", seed=s, auc=x) for s, x in enumerate(ours)]
    cells = pd.DataFrame(cells + [cell("random", seed=s, auc=x) for s, x in enumerate(random)])
    row, of_random = rows_of(cells, ["filter_then_weight", "random"], "random", "random", "wall")
    assert row.vs_random.mean / row.vs_random.error == pytest.approx(stats.ttest_rel(ours, random).statistic)
    assert row.vs_baseline == row.vs_random and of_random.vs_random.mean is None


def test_differences_use_only_the_pairs_that_both_have():
    cells = pd.DataFrame(
        [cell("x", seed=0, auc=1.0), cell("random", seed=0, auc=3.0), cell("random", seed=1, auc=100.0)]
    )
    row, _ = rows_of(cells, ["x", "random"], "random", "random", "wall")
    assert row.vs_random.mean == -2 and row.vs_random.error is None


def timed(loss: list[float], seconds: list[float], cpu_seconds: list[float]) -> dict:
    steps = [10 * number for number in range(len(loss))]
    return {"step": steps, "loss": loss, "seconds": seconds, "cpu_seconds": cpu_seconds}


def test_equal_time_is_that_of_randoms_run_pair_by_pair():
    """random took 5 s to loss 3: ours is at 2 then, and was at 3 after half of that time; slow has used ten
    times random's at its end and is at 3.5."""
    random = {"step": [0, 20], "loss": [4.0, 3.0], "seconds": [0.0, 5.0], "cpu_seconds": None}
    slow = {"step": [0, 20], "loss": [4.0, 3.5], "seconds": [0.0, 50.0], "cpu_seconds": None}
    cells = pd.DataFrame([cell("x"), cell("random", curve=random), cell("slow", curve=slow)])
    x, of_random, slow = rows_of(cells, ["x", "random", "slow"], "random", "random", "wall")
    assert (x.in_random_time.mean, x.time_to_random.mean, x.num_reached) == (2.0, 0.5, 1)
    assert x.step_price.mean == pytest.approx(3)
    assert (of_random.time_to_random.mean, of_random.step_price.mean) == (1, 1)
    assert slow.in_random_time.mean == pytest.approx(3.95)
    assert (slow.time_to_random.mean, slow.num_reached, slow.num_pairs) == (10, 0, 1)


def test_a_pair_that_never_gets_there_counts_with_what_it_used_and_is_counted():
    """0.5 with seed 0; with seed 1 the run ends after twice random's time above its loss."""
    random = timed([4.0, 3.0], [0.0, 10.0], [0.0, 10.0])
    there, never = timed([4.0, 2.0], [0.0, 10.0], [0.0, 10.0]), timed([4.0, 3.5], [0.0, 20.0], [0.0, 20.0])
    cells = [cell("random", seed=seed, curve=random) for seed in (0, 1)]
    cells += [cell("x", seed=seed, curve=curve) for seed, curve in enumerate((there, never))]
    x = rows_of(pd.DataFrame(cells), ["x", "random"], "random", "random", "wall")[0]
    assert (x.time_to_random.mean, x.num_reached, x.num_pairs) == (pytest.approx(1.25), 1, 2)


def test_randoms_own_time_is_one_also_where_it_was_at_its_end_before():
    random = timed([4.0, 2.0, 3.0], [0.0, 5.0, 10.0], [0.0, 5.0, 10.0])
    again, of_random = rows_of(
        pd.DataFrame([cell("again", curve=random), cell("random", curve=random)]),
        ["again", "random"],
        "random",
        "random",
        "cpu",
    )
    assert of_random.time_to_random.mean == of_random.wall_time_to_random.mean == 1
    assert again.time_to_random.mean == 0.25


def test_one_clock_decides_and_the_wall_stands_beside_it():
    """By CPU seconds x takes as long as random; by wall clock, with a busy machine, three times."""
    random = timed([4.0, 3.0], [0.0, 10.0], [0.0, 10.0])
    x = timed([4.0, 3.0], [3.0, 30.0], [1.0, 10.0])
    cells = pd.DataFrame([cell("x", curve=x), cell("random", curve=random)])
    row, _ = rows_of(cells, ["x", "random"], "random", "random", "cpu")
    assert (row.time_to_random.mean, row.wall_time_to_random.mean) == (1, 3)
    assert (row.step_price.mean, row.wall_step_price.mean) == (pytest.approx(0.9), pytest.approx(2.7))
    assert row.prepared.mean == pytest.approx(0.1)


def test_ranks_are_averaged_over_targets_that_have_all_variants():
    """x is first at a and second at b; c lacks y."""
    aucs = {("x", "a"): 1.0, ("y", "a"): 2.0, ("x", "b"): 5.0, ("y", "b"): 4.0, ("x", "c"): 1.0}
    cells = pd.DataFrame([cell(variant, target, auc=auc) for (variant, target), auc in aucs.items()])
    assert ranks_of(cells, ["x", "y"]).to_dict("list") == {"x": [1, 2], "y": [2, 1]}
    x, _ = rows_of(cells, ["x", "y"], None, "y", "wall")
    assert (x.rank.mean, x.rank.error) == (1.5, pytest.approx(stats.sem([1, 2])))
    assert x.time_to_random.mean is x.step_price.mean is x.in_random_time.mean is None and x.num_pairs == 0


def test_the_best_baseline_trains_on_as_many_samples_and_an_ablation_compares_with_its_first_variant():
    ours = cell("filter_then_weight", auc=0.5)
    table = [ours, cell("random", auc=3.0), cell("top_k", auc=2.0), cell("full", auc=1.0)]
    assert best_baseline(pd.DataFrame(table)) == "top_k" and reference_of(pd.DataFrame(table)) == "random"
    ablation = [*table, cell("ridge", method="filter_then_weight")]
    assert best_baseline(pd.DataFrame(ablation)) == "filter_then_weight"
    assert best_baseline(pd.DataFrame(ablation[1:])) == "top_k", "the first variant is none of ours"
    oracle = cell("oracle", auc=0.1, method="random", proposal="oracle")
    assert best_baseline(pd.DataFrame([*table, oracle])) == "top_k"
    assert reference_of(pd.DataFrame([oracle, *table])) == "random"
    assert (
        reference_of(pd.DataFrame([ours])) is None
        and best_baseline(pd.DataFrame([ours])) == "filter_then_weight"
    )
