"""Figures of a grid: learning curves with their bands, and the runs of each variant taken together."""

from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Optional

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from pipeline.comparison.budgets import BudgetRow
from pipeline.comparison.statistics import PAIR
from pipeline.reporting import figures
from pipeline.reporting.equal_time import CLOCKS
from pipeline.reporting.figures import COLOURS, LINES
from pipeline.reporting.pictures import Panel
from pipeline.reporting.records import Run

MOST_BARS = 8
"""Most variants for which figures of bars have room; the tables have them all."""


def learning_curves(
    cells: pd.DataFrame, styles: dict[str, dict], reference: Optional[str], clock: str
) -> list[Panel]:
    """Two panels of the mean held-out loss of the cells, with a band of one standard error over seeds (of
    their means over targets): over steps, and over time with what was prepared once.

    Time is a share of that of ``reference``, pair by pair; without one it is seconds. Where the loss before
    training would press all curves together, the axis ends above the second evaluation and a note in the
    panel has the first.
    """
    name = CLOCKS[clock]
    unit = pd.Series(1.0, pd.MultiIndex.from_frame(cells[PAIR]).unique())
    if reference is not None:
        whole = cells[cells["variant"] == reference].set_index(PAIR)["curve"].map(itemgetter(name))
        unit = whole.map(itemgetter(-1)).astype(float)
    curves = {variant: _over_seeds(cells[cells["variant"] == variant], unit, name) for variant in styles}
    curves = {variant: own for variant, own in curves.items() if own}
    means = {variant: np.mean([curve["loss"] for curve in own], axis=0) for variant, own in curves.items()}
    start, second = max(mean[0] for mean in means.values()), max(mean[1] for mean in means.values())
    low = min(mean.min() for mean in means.values())

    def panel(title: str, x_label: str, x_name: str) -> Panel:
        def draw(axis: Axes) -> None:
            for variant, own in curves.items():
                loss = np.array([curve["loss"] for curve in own])
                x = np.mean([curve[x_name] for curve in own], axis=0)
                error = loss.std(0, ddof=1) / len(loss) ** 0.5 if len(loss) > 1 else np.zeros(loss.shape[1])
                axis.plot(x, means[variant], marker="o", markersize=3, label=variant, **styles[variant])
                band = {"color": styles[variant]["color"], "alpha": 0.2, "linewidth": 0}
                axis.fill_between(x, means[variant] - error, means[variant] + error, **band)
            axis.set(xlabel=x_label, ylabel=figures.NATS)
            if start - low > 2 * (second - low) > 0:
                axis.set_ylim(low - 0.05 * (second - low), second + 0.1 * (second - low))
                axis.text(
                    0.99,
                    0.97,
                    f"before training: {start:.2f}",
                    transform=axis.transAxes,
                    ha="right",
                    va="top",
                )

        return Panel(title, draw, height=2.6)

    seconds = f"seconds of training ({'CPU' if clock == 'cpu' else 'wall clock'})"
    return [
        panel("Held-out loss, equal number of steps", "optimizer step", "step"),
        panel("Held-out loss, equal time", f"share of {reference}'s time" if reference else seconds, "time"),
    ]


def _over_seeds(cells: pd.DataFrame, unit: pd.Series, name: str) -> list[dict]:
    """One curve for each seed: the mean of its targets'. Pairs without a ``unit`` of time are left out."""
    curves = []
    for _, own in cells.groupby("seed"):
        pairs = [
            (cell.curve, unit[cell.target, cell.seed])
            for cell in own.itertuples()
            if (cell.target, cell.seed) in unit.index
        ]
        if pairs:
            curves.append(
                {
                    "step": np.mean([curve["step"] for curve, _ in pairs], axis=0),
                    "loss": np.mean([curve["loss"] for curve, _ in pairs], axis=0),
                    "time": np.mean([np.array(curve[name]) / whole for curve, whole in pairs], axis=0),
                }
            )
    return curves


def final_by_budget(rows: list[BudgetRow], styles: dict[str, dict]) -> list[Panel]:
    """A panel of the final held-out loss of runs with a budget, over what they really took; none without
    such runs."""
    if not rows:
        return []

    def draw(axis: Axes) -> None:
        for variant, style in styles.items():
            # A mean over a part of the cells is no point of the same curve.
            own = [row for row in rows if row.variant == variant and row.cells == row.of]
            axis.errorbar(
                np.array([row.cost.mean for row in own], float),
                np.array([row.final.mean for row in own], float),
                np.array([row.final.error or 0.0 for row in own], float),
                marker="o",
                markersize=3,
                label=variant if own else None,
                **style,
            )
        budgets = sorted({row.budget for row in rows})
        axis.set_xscale("log", base=2)
        axis.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set(xlabel="time used, share of random's", ylabel=figures.NATS)

    return [Panel("Final loss, decayed at a budget", draw, height=2.6)]


def styles_of(variants: dict[str, str]) -> dict[str, dict]:
    """Colour and line by variant: its method's, as in reports of runs. Where variants share a method those
    with its name alone keep its colour, drawn broader, and the others have one from a scale."""
    if len(set(variants.values())) == len(variants):
        return {
            variant: {"color": COLOURS.get(method, figures.OTHER)} for variant, method in variants.items()
        }
    scale = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(variants)))
    return {
        variant: {"color": COLOURS.get(method, figures.OTHER), "linewidth": 2.4}
        if variant == method
        else {"color": matplotlib.colors.to_hex(scale[i]), "linestyle": LINES[i % 4], "linewidth": 1.2}
        for i, (variant, method) in enumerate(variants.items())
    }


def averaged(variant: str, runs: list[Run]) -> Run:
    """The runs of a variant as one run: step by step the mean of their records, and the samples that all of
    them kept there."""
    steps = pd.concat([run.steps for run in runs])
    means = steps.groupby("step", as_index=False).mean(numeric_only=True).reindex(columns=steps.columns)
    means["warmup"] = means["step"].isin(steps.loc[steps["warmup"], "step"])
    kept = pd.concat([run.kept for run in runs], ignore_index=True)
    return replace(runs[0], folder=Path(variant), steps=means, kept=kept, evaluations=runs[0].evaluations[:0])


def one_after_another(variant: str, runs: list[Run]) -> Run:
    """The runs of a variant as one long run, so that steps of one stay apart from those of another."""
    length = 1 + max(int(run.steps["step"].max()) for run in runs)

    def later(table: pd.DataFrame, number: int) -> pd.DataFrame:
        return table.assign(step=table["step"] + number * length)

    steps, kept = (
        pd.concat([later(getattr(run, name), number) for number, run in enumerate(runs)], ignore_index=True)
        for name in ("steps", "kept")
    )
    known = [later(run.passed, number) for number, run in enumerate(runs) if run.passed is not None]
    passed = pd.concat(known, ignore_index=True) if len(known) == len(runs) else None
    return replace(runs[0], folder=Path(variant), steps=steps, kept=kept, passed=passed)
