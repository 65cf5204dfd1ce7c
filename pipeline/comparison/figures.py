"""Figures of a grid: learning curves with their bands, and the runs of each variant taken together."""

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipeline.reporting import figures
from pipeline.reporting.figures import COLOURS, LINES
from pipeline.reporting.pictures import Panel
from pipeline.reporting.records import Run

MOST_BARS = 8
"""Most variants for which figures of bars have room; the tables have them all."""


def learning_curves(cells: pd.DataFrame, styles: dict[str, dict]) -> list[Panel]:
    """Two panels of the mean held-out loss of one target's cells, with a band of one standard error over
    seeds: over steps, and over training time.

    Where the loss before training would press all curves together, the axis ends above the second evaluation
    and a note in the panel has the first.
    """
    curves = {variant: cells.loc[cells["variant"] == variant, "curve"].tolist() for variant in styles}
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

    return [
        panel("Held-out loss, equal number of steps", "optimizer step", "step"),
        panel("Held-out loss, equal time", "seconds of training, evaluations left out", "seconds"),
    ]


def styles_of(variants: dict[str, str]) -> dict[str, dict]:
    """Colour and line by variant: its method's, as in reports of runs, or from a scale of colours where
    variants share a method."""
    if len(set(variants.values())) == len(variants):
        return {
            variant: {"color": COLOURS.get(method, figures.OTHER)} for variant, method in variants.items()
        }
    scale = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(variants)))
    return {
        variant: {"color": matplotlib.colors.to_hex(scale[i]), "linestyle": LINES[i % 4]}
        for i, variant in enumerate(variants)
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
