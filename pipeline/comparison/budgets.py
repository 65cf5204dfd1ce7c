# S steps
"""Runs with a budget of time, whose learning rate has decayed when their share of random's time is used up.

On the common schedule a variant that is ahead early is compared while its learning rate is high; these runs
say what it reaches when it knows how much time it has.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np
import pandas as pd

from pipeline import config as configuration
from pipeline.comparison.grid import Cell
from pipeline.comparison.statistics import PAIR, Estimate, estimate
from pipeline.reporting.equal_time import CLOCKS, seconds_after
from pipeline.reporting.records import Run
from pipeline.settings import draws_at_random


@dataclass(frozen=True)
class Plan:
    """Cells with a budget, after those without one have run."""

    cells: list[Cell]
    """Those to run."""
    same: dict[Cell, list[float]]
    """Cells of the common schedule -> the budgets that they use up themselves."""
    notes: list[str]
    """Sentences on budgets for which there is no run."""


NONE = Plan([], {}, [])
"""The plan of a grid without budgets."""


@dataclass(frozen=True)
class BudgetRow:
    """The runs of one variant with one budget, over all targets and seeds."""

    variant: str
    budget: float
    cells: int
    of: int
    """Cells of the variant on the common schedule; fewer with a budget are explained in the notes."""
    final: Estimate
    cost: Estimate
    """What the runs took, in units of random's time, with what they prepared once."""
    steps: Optional[float]
    """Mean number of steps."""


def plan(budgets: list[float], runs: dict[Cell, Run], clock: str) -> Plan:
    """The cells with ``budgets`` for those of the common schedule that have ended.

    A cell takes as many whole steps as fit into its budget by the clock of its own run on the common
    schedule.
    """
    random = {
        (cell.target, cell.seed): run for cell, run in reversed(runs.items()) if draws_at_random(run.config)
    }
    cells, same, missing = list[Cell](), dict[Cell, list[float]](), dict[tuple[str, str], Counter[float]]()
    for budget in budgets:
        for cell, run in runs.items():
            if (cell.target, cell.seed) not in random:
                reason = "random of its target and seed has not ended"
                missing.setdefault((cell.variant, reason), Counter())[budget] += 1
                continue
            whole = _seconds(random[cell.target, cell.seed], clock)[-1]
            num_steps = steps_within(_seconds(run, clock), budget * whole)
            if num_steps == cell.config.training.steps:
                same.setdefault(cell, []).append(budget)
                continue
            try:
                cells.append(_with_budget(cell, budget, num_steps))
            except ValueError as error:
                missing.setdefault((cell.variant, str(error)), Counter())[budget] += 1
    notes = [
        f"{variant} has no run with a budget of {_counts(counts)}: {reason}."
        for (variant, reason), counts in missing.items()
    ]
    return Plan(cells, same, notes)


def _counts(of_budgets: Counter[float]) -> str:
    return ", ".join(f"{budget:g} ({count} cell{'s' * (count > 1)})" for budget, count in of_budgets.items())


def steps_within(seconds_S: np.ndarray, budget: float) -> int:
    """Whole steps that fit into ``budget`` seconds.

    Args:
        seconds_S: seconds after 0, 1, 2, ... steps of a run; behind its end steps take what they took on
            average.
    """
    if budget < seconds_S[-1]:
        return max(0, int(np.searchsorted(seconds_S, budget, side="right")) - 1)
    steps = len(seconds_S) - 1
    pace = (seconds_S[-1] - seconds_S[0]) / steps
    # The share of a step forgives rounding, where the budget is a multiple of what a step takes.
    return steps + int((budget - seconds_S[-1]) / pace + 1e-9)


def rows_of(
    cells: pd.DataFrame, common: pd.DataFrame, variants: list[str], reference: Optional[str], clock: str
) -> list[BudgetRow]:
    """A row for each of ``variants`` and budget that has runs. ``reference`` is the variant random.

    Args:
        cells: one run with a budget a line, with the fields of ``measures.measure``.
        common: the same of runs on the common schedule.
    """
    if cells.empty:
        return []
    random = common[common["variant"] == reference].set_index(PAIR)
    whole = {pair: curve[CLOCKS[clock]][-1] for pair, curve in random["curve"].items()}
    cells = cells.set_index(PAIR)
    cells["cost"] = [
        curve[CLOCKS[clock]][-1] / whole[pair] for pair, curve in zip(cells.index, cells["curve"])
    ]
    cells["steps"] = [curve["step"][-1] for curve in cells["curve"]]
    return [
        BudgetRow(
            variant,
            budget,
            len(own),
            int((common["variant"] == variant).sum()),
            estimate(own["final"]),
            estimate(own["cost"]),
            float(own["steps"].mean()),
        )
        for variant in variants
        for budget, own in cells[cells["variant"] == variant].groupby("budget")
    ]


def _seconds(run: Run, clock: str) -> np.ndarray:
    found = seconds_after(run, clock)
    assert found is not None, f"{run.folder} has no {CLOCKS[clock]}"  # outcome.clock_of has looked
    return found


def _with_budget(cell: Cell, budget: float, num_steps: int) -> Cell:
    """Raises ValueError where so few steps are no run."""
    if num_steps == 0:
        raise ValueError("it is too small for one step")
    run, training = cell.config.run, cell.config.training
    folder = cell.folder.parent / f"budget_{budget:g}" / cell.folder.name
    config = replace(
        cell.config,
        # Its held-out loss counts at the end alone.
        training=replace(training, steps=num_steps, evaluate_every=0),
        run=replace(run, folder=str(folder)),
    )
    configuration.check(config)
    return replace(cell, config=config, budget=budget)
