"""Figures of one or several runs. Each function draws one, or returns None where the runs hold nothing to draw."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.reporting.records import SECONDS, Run, labels
from pipeline.reporting.summary import CLEAN, UNKNOWN, held_out, is_damaged

# One colour a method, the same in every figure and report (Okabe and Ito's palette, told apart by colour-blind readers).
COLOURS = {
    "filter_then_weight": "#0072B2", "random": "#D55E00", "full": "#555555", "top_k": "#009E73",
    "max_loss": "#CC79A7", "grad_norm": "#E69F00", "grad_dot": "#56B4E9", "less": "#8C564B",
    "greats": "#9467BD", "grad_match": "#BCBD22", "opus": "#17BECF", "rho_loss": "#7F3C8D",
    "nonnegative_least_squares": "#11A579",
}  # fmt: skip
OTHER, POOL = "#222222", "#C4C4C4"
LINES = ("-", "--", ":", "-.")  # runs that share a method
STAGE_COLOURS = ("#BBD7EA", "#8FBEDD", "#5FA3CF", "#3488BE", "#0F6BA8", "#084B7A", "#E7B08A")
MAX_BARS = 12
FEW = 10  # points of a curve that are marked one by one
MAX_LABEL = 30
WIDTH, DPI = 11.0, 110


@dataclass(frozen=True)
class Plot:
    name: str
    title: str
    look_at: str
    """One line: what a reader learns here."""
    draw: Callable[[list[Run]], Optional[Figure]]


def losses(runs: list[Run]) -> Optional[Figure]:
    """Held-out loss; loss of the samples trained on; loss of the target batch as the scoring pass saw it."""
    target = [run for run in runs if run.steps["target_loss"].notna().any()]
    measured = [run for run in runs if len(run.evaluations)]
    panels = {"train_loss": "Loss of the samples trained on"}
    if measured:
        panels = {"held_out": "Held-out loss", **panels}
    if target:
        panels["target_loss"] = "Loss of the target batch"
    figure, axes = draw_panels(len(panels))
    for axis, (column, title) in zip(axes, panels.items()):
        for run, label, style in _styled(runs):
            if column == "held_out":
                points = held_out(run)
                axis.plot(points["step"], points["loss"], marker="o", markersize=4, label=label, **style)
            else:
                _curve(axis, run.steps["step"], run.steps[column], label, style)
        _finish(axis, title, "cross-entropy (nats per token)", runs)
    return legend_below(figure, axes)


def sources(runs: list[Run]) -> Optional[Figure]:
    """Share of each source among the kept samples, next to its share of the pool."""
    targets = set(runs[0].pool.get("target_sources") or [])
    return _shares(runs, "source", lambda name: ("\u25b8 " if name in targets else "") + (name or "unnamed"))


def damage(runs: list[Run]) -> Optional[Figure]:
    """Share of each kind of damage among the kept samples, next to its share of the pool."""
    if not any(set(run.pool.get("by_damage", {})) - {UNKNOWN} for run in runs):
        return None
    return _shares(runs, "damage", lambda name: {CLEAN: "clean", UNKNOWN: "unknown"}.get(name, name))


def weights(runs: list[Run]) -> Optional[Figure]:
    """Weights in units of the uniform weight: over the run, as a distribution, and for clean against damaged samples."""
    weighted = [(_relative_weights(run), label, style) for run, label, style in _styled(runs)]
    weighted = [
        entry for entry in weighted if entry[0]["relative"].std() > 1e-6
    ]  # methods with uniform weights have none to show
    if not weighted:
        return None
    known = [entry for entry in weighted if (entry[0]["damage"] != UNKNOWN).any()]
    figure, axes = draw_panels(3 if known else 2)
    largest = max(kept["relative"].quantile(0.995) for kept, *_ in weighted)
    for kept, label, style in weighted:
        by_step = kept.groupby("step")["relative"].quantile([0.1, 0.5, 0.9]).unstack()
        by_step = by_step.rolling(_window(len(by_step)), min_periods=1, center=True).mean()
        few = len(by_step) < FEW  # a band over one or two steps cannot be seen
        band = axes[0].vlines if few else axes[0].fill_between
        band(by_step.index, by_step[0.1], by_step[0.9], color=style["color"], alpha=0.2, linewidth=3 if few else 0)
        axes[0].plot(by_step.index, by_step[0.5], label=label, marker="o" if few else None, markersize=3, **style)
        axes[1].hist(kept["relative"].clip(upper=largest), bins=30, range=(0, largest), density=True, histtype="step", **style)
    axes[0].axhline(1, color="#888888", linewidth=0.8, linestyle=":")
    axes[1].axvline(1, color="#888888", linewidth=0.8, linestyle=":")
    _finish(axes[0], "Median and 10-90 % range", "weight x samples kept (uniform = 1)", runs)
    _finish(axes[1], "Distribution", "density", runs, x_label="weight x samples kept (uniform = 1)")
    if known:
        _weights_by_damage(axes[2], known)
    return legend_below(figure, axes[:1])


def alignment(runs: list[Run]) -> Optional[Figure]:
    """How well the combined update of the kept samples matches the target's: cosine and residual."""
    matched = [entry for entry in _styled(runs) if entry[0].steps[["cosine", "residual"]].notna().any(axis=None)]
    if not matched:
        return None
    figure, axes = draw_panels(2)
    for axis, column, title, unit in (
        (axes[0], "cosine", "Cosine of the combined update to the target's", "cosine (1 = same direction)"),
        (axes[1], "residual", "Residual of the match", "residual / target norm (0 = perfect)"),
    ):
        for run, label, style in matched:
            _curve(axis, run.steps["step"], run.steps[column], label, style)
        _finish(axis, title, unit, runs)
    return legend_below(figure, axes)


def seconds(runs: list[Run]) -> Optional[Figure]:
    """Where the time of a step goes."""
    stages = [stage for stage in SECONDS if stage != "total"]
    means = {}
    for run, label, _ in _styled(runs):
        steps = run.steps[~run.steps["warmup"]]
        if steps["seconds_total"].notna().any():
            means[label] = steps[[f"seconds_{stage}" for stage in stages]].fillna(0).mean()
            means[label]["other"] = max(0.0, steps["seconds_total"].mean() - means[label].sum())
    if not means:
        return None
    figure, (axis,) = draw_panels(1, height=1.5 + 0.45 * len(means))
    rows, left = list(means), pd.Series(0.0, index=list(means))
    for stage, colour in zip([*stages, "other"], [*STAGE_COLOURS, POOL]):
        width = pd.Series({label: mean[stage if stage == "other" else f"seconds_{stage}"] for label, mean in means.items()})
        if width.any():
            axis.barh(rows, width, left=left, color=colour, label=stage, height=0.6)
        left += width
    axis.invert_yaxis()
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel("seconds per step (mean after warm-up)")
    frame(axis)
    return legend_below(figure, [axis])


PLOTS = (
    Plot("losses", "Losses",
         "Held-out loss is the result: lower at the same step is better. The other curves are taken on samples that each "
         "method chose itself (one that picks hard samples trains at a higher loss): they compare a run with its past only.",
         losses),
    Plot("sources", "Where the kept samples come from",
         "A bar longer than the pool's grey one: the method prefers this source. "
         "Sources of the target's own kind carry a \u25b8.",
         sources),
    Plot("damage", "What damage the kept samples carry",
         "Bars of damaged samples should be shorter than the pool's grey ones; random selection keeps what the pool holds.",
         damage),
    Plot("weights", "Weights",
         "A range that collapses onto 1 means uniform weights (strong shrinkage, or fallbacks). Damaged samples that passed "
         "the filter should weigh less than clean ones.",
         weights),
    Plot("alignment", "Match with the target",
         "The cosine should stay clearly above 0. A steady fall means that the pool has little left that helps, or that the "
         "target batch is too small and noisy.",
         alignment),
    Plot("seconds", "Time of a step",
         "Everything left of 'update' is the price of selection.",
         seconds),
)  # fmt: skip


def draw_panels(num_panels: int, height: float = 3.7) -> tuple[Figure, list[Axes]]:
    # Figure without pyplot: no global state, and it draws the same with or without a display.
    figure = Figure(figsize=(WIDTH if num_panels > 1 else WIDTH * 0.75, height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    return figure, list(figure.subplots(1, num_panels, squeeze=False)[0])


def _styled(runs: list[Run]) -> list[tuple[Run, str, dict]]:
    seen: dict[str, int] = {}
    entries = []
    for run, label in zip(runs, labels(runs)):
        number = seen[run.method] = seen.get(run.method, -1) + 1
        entries.append((run, label, {"color": COLOURS.get(run.method, OTHER), "linestyle": LINES[number % len(LINES)]}))
    return entries


def _curve(axis: Axes, steps: pd.Series, values: pd.Series, label: str, style: dict) -> None:
    """A rolling mean, with the single values faintly behind it."""
    present = values.notna()
    steps, values = steps[present], values[present].astype(float)
    if values.empty:
        return
    window = _window(len(values))
    if window > 1:
        axis.plot(steps, values, color=style["color"], alpha=0.2, linewidth=0.8)
    smooth = values.rolling(window, min_periods=1, center=True).mean()
    axis.plot(steps, smooth, label=label, marker="o" if len(values) < FEW else None, markersize=3, **style)


def _window(num_points: int) -> int:
    return max(1, num_points // 15)


def _shares(runs: list[Run], column: str, name: Callable[[str], str]) -> Optional[Figure]:
    entries = _styled(runs)
    # Runs over one pool show it once; over different pools, the first one's shares would mislead.
    pools = {label: pd.Series(run.pool.get(f"by_{column}", {}), dtype=float) for run, label, _ in entries}
    shared = all(pool.equals(next(iter(pools.values()))) for pool in pools.values())
    bars = [(f"pool of {label}", POOL, pool) for label, pool in pools.items()]
    if shared:
        bars = [("pool", POOL, bars[0][2])]
    for run, label, style in entries:
        kept = run.kept[~run.kept["warmup"]]
        if len(kept):
            bars.append((label, style["color"], kept[column].value_counts()))
    shares = pd.DataFrame({label: amounts / amounts.sum() for label, _, amounts in bars}).fillna(0.0)
    if shares.empty:
        return None
    shares = shares.loc[shares.iloc[:, 0].sort_values(ascending=False, kind="stable").index]
    rows = [_short(name(str(value))) for value in shares.index[:MAX_BARS]]
    if len(shares) > MAX_BARS:
        rest = shares.iloc[MAX_BARS - 1 :].sum()
        rows = [*rows[: MAX_BARS - 1], f"{len(shares) - MAX_BARS + 1} others"]
        shares = pd.concat([shares.iloc[: MAX_BARS - 1], rest.to_frame().T])
    figure, (axis,) = draw_panels(1, height=1.4 + len(rows) * max(0.38, 0.17 * len(bars)))
    thickness = 0.8 / len(bars)
    for number, (label, colour, _) in enumerate(bars):
        places = [row - 0.4 + (number + 0.5) * thickness for row in range(len(rows))]
        # Runs of one method share a colour; a pattern tells them apart.
        hatch = (None, "//", "..", "xx")[[c for _, c, _ in bars[:number]].count(colour) % 4]
        look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
        axis.barh(places, shares[label], thickness * 0.92, label=label, **look)
        for place, share in zip(places, shares[label]):
            axis.text(share, place, f" {share:.1%}", va="center", fontsize=7, color="#444444")
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.set_xlabel(f"share of samples by {column} (kept ones after warm-up)")
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_xlim(0, min(1.0, shares.max(axis=None)) * 1.12)
    frame(axis)
    return legend_below(figure, [axis])


def _relative_weights(run: Run) -> pd.DataFrame:
    kept = run.kept[~run.kept["warmup"]].copy()
    groups = kept.groupby("step")["weight"]
    kept["relative"] = kept["weight"] / groups.transform("mean")
    return kept.dropna(subset="relative")


def _weights_by_damage(axis: Axes, entries: list[tuple[pd.DataFrame, str, dict]]) -> None:
    boxes, names, colours = [], [], []
    for kept, _, style in entries:
        kept = kept[kept["damage"] != UNKNOWN]
        for name, chosen in (("clean", ~is_damaged(kept["damage"])), ("damaged", is_damaged(kept["damage"]))):
            boxes.append(kept.loc[chosen, "relative"].to_numpy(float))
            names.append(f"{name}, n = {int(chosen.sum())}")
            colours.append(style["color"])
    drawn = axis.boxplot(boxes, showfliers=False, patch_artist=True, widths=0.55, medianprops={"color": "black"})
    for patch, colour in zip(drawn["boxes"], colours):
        patch.set(facecolor=colour, alpha=0.45)
    axis.set_xticks(range(1, len(names) + 1), names)
    axis.axhline(1, color="#888888", linewidth=0.8, linestyle=":")
    axis.set_title("Clean against damaged", fontsize=10)
    axis.set_ylabel("weight x samples kept (uniform = 1)")
    frame(axis)
    if len(names) > 2:
        axis.tick_params(axis="x", labelsize=7, rotation=35 if len(names) < 7 else 90)


def _finish(axis: Axes, title: str, y_label: str, runs: list[Run], x_label: str = "optimizer step") -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    if x_label == "optimizer step":
        steps = pd.concat([rows["step"] for run in runs for rows in (run.steps, run.evaluations)]).astype(float)
        margin = 0.5 + 0.02 * (steps.max() - steps.min())
        axis.set_xlim(steps.min() - margin, steps.max() + margin)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        warmup = pd.concat([run.steps.loc[run.steps["warmup"], "step"] for run in runs])
        if len(warmup):
            axis.axvspan(steps.min() - margin, warmup.max() + 0.5, color="#EFEFE8", zorder=0, label="warm-up")
    frame(axis)


def frame(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)


def legend_below(figure: Figure, axes: list[Axes]) -> Figure:
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    if entries:
        look = {"loc": "outside lower center", "ncols": min(len(entries), 4), "fontsize": 8, "frameon": False}
        figure.legend(entries.values(), entries.keys(), **look)
    return figure


def _short(text: str) -> str:
    # A dollar sign would start matplotlib's mathematics, and fail on half a formula.
    text = " ".join(text.replace("$", r"\$").split())
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL // 2 - 1] + "\u2026" + text[-MAX_LABEL // 2 :]
