"""Curves of a grid in equal time: the axes say shares of random's time, pair by pair."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from pipeline.comparison.budgets import BudgetRow
from pipeline.comparison.figures import averaged, final_by_budget, learning_curves, styles_of
from pipeline.comparison.statistics import Estimate
from pipeline.reporting.records import read_run
from pipeline.reporting.summary import selection_seconds
from tests.reporting.conftest import write_run


def cell(variant: str, seed: int, seconds: list[float], loss: list[float], target: str = "a") -> dict:
    curve = {"step": [0, 5, 10], "loss": loss, "seconds": seconds, "cpu_seconds": seconds}
    return {"variant": variant, "target": target, "seed": seed, "curve": curve}


CELLS = [
    cell("random", 0, [0.0, 5.0, 10.0], [4.0, 3.0, 2.0]),
    cell("random", 1, [0.0, 10.0, 20.0], [4.0, 3.0, 2.0]),
    cell("x", 0, [1.0, 3.0, 5.0], [4.0, 2.0, 1.0]),
    cell("x", 1, [2.0, 6.0, 10.0], [4.0, 2.0, 1.5]),
]


def drawn(panel) -> dict[str, list[list[float]]]:
    axis = Figure().subplots()
    panel.draw(axis)
    names = [text for text in axis.get_legend_handles_labels()[1]]
    lines = [line for line in axis.get_lines() if not line.get_label().startswith("_")]
    lines = lines or [container[0] for container in axis.containers]
    return {name: [list(line.get_xdata()), list(line.get_ydata())] for name, line in zip(names, lines)}


def test_random_ends_at_one_and_what_was_prepared_shifts_the_beginning():
    styles = styles_of({"random": "random", "x": "top_k"})
    of_steps, of_time = learning_curves(pd.DataFrame(CELLS), styles, "random", "cpu")
    assert drawn(of_steps)["x"] == [[0, 5, 10], [4.0, 2.0, 1.25]]
    assert drawn(of_time) == {
        "random": [[0.0, 0.5, 1.0], [4.0, 3.0, 2.0]],
        "x": [[pytest.approx(0.1), pytest.approx(0.3), 0.5], [4.0, 2.0, 1.25]],
    }


def test_without_random_time_is_in_seconds():
    _, of_time = learning_curves(pd.DataFrame(CELLS[2:]), styles_of({"x": "top_k"}), None, "wall")
    assert drawn(of_time)["x"][0] == [1.5, 4.5, 7.5]


def test_targets_are_averaged_before_seeds():
    other = [
        cell(variant, seed, [0.0, 1.0, 2.0], [8.0, 8.0, 8.0], "b")
        for variant in ("random", "x")
        for seed in (0, 1)
    ]
    of_steps, _ = learning_curves(
        pd.DataFrame(CELLS + other), styles_of({"random": "random", "x": "top_k"}), "random", "cpu"
    )
    assert drawn(of_steps)["x"][1] == [6.0, 5.0, 4.625]


def test_a_mean_over_a_part_of_the_cells_is_not_drawn():
    def row(variant, budget, cells):
        return BudgetRow(variant, budget, cells, 2, Estimate(2.0, None), Estimate(budget - 0.01, None), 5.0)

    rows = [row("x", 0.5, 1), row("x", 1.0, 2), row("random", 0.5, 2)]
    (panel,) = final_by_budget(rows, styles_of({"random": "random", "x": "top_k"}))
    assert drawn(panel) == {"random": [[0.49], [2.0]], "x": [[0.99], [2.0]]}
    assert final_by_budget([], {}) == []


def test_variants_of_one_method_differ_and_the_methods_own_keeps_its_colour():
    alone = styles_of({"random": "random", "filter_then_weight": "filter_then_weight"})
    styles = styles_of(
        {"random": "random", "bm25": "random", "dsir": "random", "filter_then_weight": "filter_then_weight"}
    )
    assert all(styles[name]["color"] == alone[name]["color"] for name in alone)
    assert len({(style["color"], style.get("linestyle")) for style in styles.values()}) == 4


def test_steps_that_score_in_one_run_alone_spend_half_of_that_on_average(tmp_path):
    """A stage that a step did not go through took no time."""
    runs = [read_run(write_run(tmp_path / str(every), num_steps=12, score_every=every)) for every in (3, 4)]
    found = averaged("ours", runs)
    spent = [selection_seconds(run.steps).sum() for run in (*runs, found)]
    assert spent[2] == pytest.approx((spent[0] + spent[1]) / 2) and spent[0] != spent[1]
    assert found.steps["scored"].tolist() == [1, 1, 0, 0.5, 0.5, 0, 0.5, 0, 0.5, 0.5, 0, 0]
