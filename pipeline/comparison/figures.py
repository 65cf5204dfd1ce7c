"""Figures of a grid: learning curves with their bands, and what each variant kept."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Optional

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipeline.reporting import figures
from pipeline.reporting.figures import COLOURS, LINES, draw_panels, frame, legend_below
from pipeline.reporting.records import Run

MOST_BARS = 8
"""Variants that the figures of kept samples have room for; the table has them all."""


def learning_curves(cells: pd.DataFrame, styles: dict[str, dict]) -> Figure:
    """Mean held-out loss of one target's cells over steps and over training time, with a band of one standard error over seeds.

    Where the loss before training would press all curves together, the axis ends above the second evaluation and the start is said.
    """
    figure, (by_step, by_seconds) = draw_panels(2)
    means = []
    for variant, style in styles.items():
        curves = cells.loc[cells["variant"] == variant, "curve"].tolist()
        if not curves:
            continue
        loss = np.array([curve["loss"] for curve in curves])
        mean, seconds = loss.mean(0), np.mean([curve["seconds"] for curve in curves], axis=0)
        means.append(mean)
        error = loss.std(0, ddof=1) / len(loss) ** 0.5 if len(loss) > 1 else np.zeros_like(mean)
        for axis, x in ((by_step, curves[0]["step"]), (by_seconds, seconds)):
            axis.plot(x, mean, marker="o", markersize=3, label=variant, **style)
            axis.fill_between(x, mean - error, mean + error, color=style["color"], alpha=0.2, linewidth=0)
    start, second, low = (max(m[0] for m in means), max(m[1] for m in means), min(m.min() for m in means))
    for axis, title, x_label in (
        (by_step, "Equal number of steps", "optimizer step"),
        (by_seconds, "Equal time", "seconds of training, evaluations left out"),
    ):
        axis.set(title=title, xlabel=x_label, ylabel="held-out loss (nats per token)")
        axis.title.set_fontsize(10)
        frame(axis)
        if start - low > 2 * (second - low) > 0:
            axis.set_ylim(low - 0.05 * (second - low), second + 0.1 * (second - low))
            axis.text(0.99, 0.97, f"before training: {start:.2f}", transform=axis.transAxes, ha="right", va="top", fontsize=8)
    return legend_below(figure, [by_step])


def styles_of(variants: dict[str, str]) -> dict[str, dict]:
    """Colour and line by variant: the method's, as in reports of runs; a scale of colours where variants share a method."""
    if len(set(variants.values())) == len(variants):
        return {variant: {"color": COLOURS.get(method, figures.OTHER)} for variant, method in variants.items()}
    scale = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(variants)))
    return {
        variant: {"color": matplotlib.colors.to_hex(scale[i]), "linestyle": LINES[i % 4]} for i, variant in enumerate(variants)
    }


def kept(runs: dict[str, list[Run]]) -> dict[str, Figure]:
    """Sources and damage of what each variant kept, all seeds together; nothing for more variants than bars have room."""
    if len(runs) > MOST_BARS:
        return {}
    merged = [together(variant, own) for variant, own in runs.items() if own]
    drawn = {"sources": figures.sources(merged), "damage": figures.damage(merged)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def together(variant: str, runs: list[Run]) -> Run:
    """The seeds of a variant as one run, for figures of shares."""
    return replace(runs[0], folder=Path(variant), kept=pd.concat([run.kept for run in runs], ignore_index=True))


def png(figure: Optional[Figure]) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
