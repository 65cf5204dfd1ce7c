"""Runs with a budget: as many steps as fit by the clock of the common run, and what they reached."""

import json

import numpy as np
import pandas as pd
import pytest

from pipeline.comparison import budgets
from pipeline.comparison.grid import Cell
from pipeline.config import Config, DataConfig, RunConfig, SelectionConfig, TrainingConfig
from pipeline.reporting.records import read_run
from tests.reporting.conftest import write_run


@pytest.fixture
def common(tmp_path):
    """``common(variant, price, setup)``: a cell of 20 steps that has ended, and its run."""
    files = []
    for name in ("pool", "target", "test"):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("{}\n")
    pool, target, test = ([str(file)] for file in files)

    def common(variant, price=1.0, setup=0.0, **selection):
        folder = write_run(tmp_path / "sums" / variant / "seed_0", selection.get("method", "random"), 20)
        settings = SelectionConfig(**{"method": "random", **selection})
        config = Config(
            data=DataConfig(pool=pool, target=target, test=test),
            selection=settings,
            training=TrainingConfig(steps=20, evaluate_every=5),
            run=RunConfig(folder=str(folder)),
        )
        lines = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
        for line in lines:
            line |= {"cpu_seconds": price, "seconds": {"total": 7.0}}
        (folder / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "setup.json").write_text(json.dumps({"seconds": setup, "cpu_seconds": setup}))
        return {Cell("sums", variant, 0, config): read_run(folder)}

    return common


@pytest.mark.parametrize(
    "budget, steps",
    [
        (0.0, 0),
        (2.9, 0),
        (3.0, 1),
        (3.5, 1),
        (7.0, 3),
        (11.9, 4),
        (12.0, 5),
        (13.9, 5),
        (14.0, 6),
        (22.0, 10),
    ],
)
def test_steps_fit_into_a_budget_and_go_on_behind_the_end_as_on_average(budget, steps):
    """2 s once, then steps of 1, 1, 3, 2 and 3 s, which are 2 s on average."""
    assert budgets.steps_within(np.array([2.0, 3.0, 4.0, 7.0, 9.0, 12.0]), budget) == steps


def test_a_multiple_of_the_clock_gives_a_multiple_of_the_steps():
    seconds_S = np.concatenate([[0.0], np.cumsum(np.full(60, 0.1))])
    for factor in (1, 2, 3, 7):
        assert budgets.steps_within(seconds_S, factor * seconds_S[-1]) == factor * 60


def test_each_variant_gets_the_steps_that_its_own_price_allows(common):
    """random's time is 20 s: at half of it twice the price gives 5 steps, and 4 s to prepare leave 6."""
    runs = {**common("random"), **common("dear", price=2.0), **common("late", setup=4.0)}
    plan = budgets.plan([0.5], runs, "cpu")
    assert {cell.variant: cell.config.training.steps for cell in plan.cells} == {
        "random": 10,
        "dear": 5,
        "late": 6,
    }
    dear = plan.cells[1]
    assert dear.folder == next(iter(runs)).folder.parents[1] / "dear/budget_0.5/seed_0"
    assert str(dear) == "sums, dear, seed 0, budget 0.5" and dear.config.training.evaluate_every == 0
    assert plan.same == {} and plan.notes == []
    assert all(cell.config.training.steps == 20 for cell in runs), "the common cells have changed"


def test_a_common_run_that_uses_up_the_budget_is_not_run_twice(common):
    runs = {**common("random"), **common("dear", price=2.0)}
    random, dear = runs
    plan = budgets.plan([1.0, 2.0], runs, "cpu")
    assert plan.same == {random: [1.0], dear: [2.0]}
    assert [(c.variant, c.budget, c.config.training.steps) for c in plan.cells] == [
        ("dear", 1.0, 10),
        ("random", 2.0, 40),
    ]


def test_budgets_without_a_run_are_said(common):
    runs = {
        **common("random"),
        **common("late", setup=9.5),
        **common("filter_then_weight", method="filter_then_weight", warmup_steps=12),
    }
    plan = budgets.plan([0.5], runs, "cpu")
    assert [cell.variant for cell in plan.cells] == ["random"]
    late, ours = plan.notes
    assert late == "late has no run with a budget of 0.5 (1 cell): it is too small for one step."
    assert "selection.warmup_steps = 12 leaves nothing of training.steps = 10" in ours
    without = {cell: run for cell, run in runs.items() if cell.variant == "filter_then_weight"}
    assert "random of its target and seed has not ended" in budgets.plan([0.5], without, "cpu").notes[0]


def test_a_row_has_the_means_of_losses_and_of_what_the_runs_took():
    def line(variant, seed, final, seconds, budget):
        curve = {"step": [0, 8 + seed], "loss": [4.0, final], "seconds": [0.0, seconds], "cpu_seconds": None}
        return {
            "variant": variant,
            "target": "a",
            "seed": seed,
            "final": final,
            "curve": curve,
            "budget": budget,
        }

    common = [line("random", 0, 2.0, 10.0, None), line("random", 1, 2.0, 20.0, None)]
    common = pd.DataFrame([*common, line("x", 0, 2.0, 9.0, None), line("x", 1, 2.0, 9.0, None)])
    cells = [line("x", 0, 3.0, 5.0, 0.5), line("x", 1, 2.0, 12.0, 0.5), line("random", 0, 2.0, 10.0, 1.0)]
    x, random = budgets.rows_of(pd.DataFrame(cells), common, ["x", "random"], "random", "wall")
    assert (x.variant, x.budget, x.cells, x.of, x.steps) == ("x", 0.5, 2, 2, 8.5)
    assert (random.cells, random.of) == (1, 2)
    assert (x.final.mean, x.cost.mean) == (2.5, pytest.approx(0.55))
    assert (random.budget, random.cost.mean, random.final.error) == (1.0, 1.0, None)
    assert budgets.rows_of(pd.DataFrame(columns=["curve"]), common, ["x"], "random", "wall") == []
