"""Figures of one or several runs. Each function returns the panels of one figure, none where the runs hold
nothing to draw."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.reporting import enrichment
from pipeline.reporting.pictures import Panel, short
from pipeline.reporting.records import SECONDS, Run, labels
from pipeline.reporting.summary import CLEAN, UNKNOWN, held_out, is_clean, is_damaged, selection_seconds

# One colour a method, the same in every figure and report (Okabe and Ito's palette, told apart by
# colour-blind readers), on light and on dark ground.
COLOURS = {
    "filter_then_weight": "#0072B2",
    "random": "#D55E00",
    "full": "#808080",
    "top_k": "#009E73",
    "max_loss": "#CC79A7",
    "grad_norm": "#E69F00",
    "grad_dot": "#56B4E9",
    "less": "#8C564B",
    "greats": "#9467BD",
    "grad_match": "#BCBD22",
    "opus": "#17BECF",
    "rho_loss": "#7F3C8D",
    "nonnegative_least_squares": "#11A579",
}
OTHER, POOL = "#A0522D", "#B4B4B4"
LINES = ("-", "--", ":", "-.")  # for runs that share a method, and so a colour
ONE_OFF = "one-off"
STAGES = ("gram", "target", "factors", "exchange", "solve", "candidates", "update", "other", ONE_OFF)
STAGE_COLOURS = dict(
    zip(
        STAGES, ("#56B4E9", "#009E73", "#0072B2", "#CC79A7", "#E69F00", "#F0E442", "#D55E00", POOL, "#8C564B")
    )
)
MAX_BARS = 12
NATS, WEIGHT = "nats per token", "weight (uniform = 1)"
FEW, MANY = 10, 300  # points of a curve: fewer than FEW are marked one by one, and at most MANY are drawn


@dataclass(frozen=True)
class Plot:
    """A figure of the report: its words, and the function that draws its panels."""

    name: str
    title: str
    look_at: str
    """One line: what a reader learns here."""
    draw: Callable[[list[Run]], list[Panel]]
    words: Optional[Callable[[str, Run], list[str]]] = None
    """Sentences on a run, by its label, that stand with the figure."""


def losses(runs: list[Run]) -> list[Panel]:
    """Panels of the held-out loss, and of the losses that steps record for their kept samples, their target
    batch and all their candidates."""

    def measured(axis: Axes) -> None:
        for run, label, style in styled(runs):
            points = held_out(run)
            axis.plot(points["step"], points["loss"], marker="o", markersize=4, label=label, **style)
        _over_steps(axis, runs, NATS)

    panels = [Panel("Held-out loss", measured)] if any(len(run.evaluations) for run in runs) else []
    return panels + _curves(
        runs,
        {
            "train_loss": ("Loss of the samples trained on", NATS),
            "target_loss": ("Loss of the target batch", NATS),
            "candidate_loss": ("Mean loss of the candidates looked at", NATS),
        },
    )


def alignment(runs: list[Run]) -> list[Panel]:
    """Panels of how well the combined update of the kept samples matches the target's."""
    return _curves(
        runs,
        {
            "cosine": ("Cosine of the combined update to the target's (1 = same direction)", "cosine"),
            "residual": (
                "Residual: share of the target's update left over (0 = none)",
                "share of its norm",
            ),
        },
    )


def proposal(runs: list[Run]) -> list[Panel]:
    """Panels of the observed cosines of proposed samples and of those taken at random, of predicted against
    observed ones, and of how often steps have scored."""
    if not any(run.steps["cosine_of_proposed"].notna().any() for run in runs):
        return []

    def cosines(axis: Axes) -> None:
        for run, label, style in styled(runs):
            steps, random = run.steps["step"], {**style, "linestyle": ":"}
            _curve(axis, steps, run.steps["cosine_of_proposed"], label, style, band=False)
            _curve(axis, steps, run.steps["cosine_of_explored"], "taken at random", random, band=False)
        axis.axhline(0, color=POOL, linewidth=0.8)
        _over_steps(axis, runs, "mean cosine to the target")

    def correlation(axis: Axes) -> None:
        for run, label, style in styled(runs):
            _curve(axis, run.steps["step"], run.steps["predicted_correlation"], label, style, band=False)
        axis.axhline(0, color=POOL, linewidth=0.8)
        axis.set_ylim(min(-0.1, axis.get_ylim()[0]), 1.05)
        _over_steps(axis, runs, "correlation")

    def scored(axis: Axes) -> None:
        for run, label, style in styled(runs):
            share = run.steps["scored"].astype(float).expanding().mean()
            if share.any():  # a method that scores nothing never will
                points = _thin(pd.Series(share.to_numpy(), run.steps["step"].to_numpy()))
                axis.plot(points.index, points, label=label, **style)
        axis.set_ylim(0, 1.05)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _over_steps(axis, runs, "share of steps")

    return [
        Panel("Enrichment: proposed against at random", cosines),
        Panel("Correlation of predicted and observed cosines", correlation),
        Panel("Steps scored so far", scored),
    ]


def sources(runs: list[Run]) -> list[Panel]:
    """A panel of each source's share among the kept samples, next to its share of the pool."""
    return _shares(runs, "source", _source_names(runs))


def damage(runs: list[Run]) -> list[Panel]:
    """A panel of each kind of damage's share among the kept samples, next to its share of the pool."""
    if not any(set(run.pool.get("by_damage", {})) - {UNKNOWN} for run in runs):
        return []
    return _shares(runs, "damage", lambda name: {CLEAN: "clean", UNKNOWN: "unknown"}.get(name, name))


def sources_over_time(runs: list[Run]) -> list[Panel]:
    """A panel for each source: its share among the samples that a step keeps. In one panel, curves of ten
    sources could not be told apart."""
    pool = pd.DataFrame([_pool_shares(run, "source") for run in runs]).mean()
    kept = [run.kept["source"] for run in runs]
    names = (
        pd.concat([pool, *(own.value_counts(normalize=True) for own in kept)], axis=1).fillna(0).max(axis=1)
    )
    names = names.sort_values(ascending=False, kind="stable").index.tolist()
    if len(names) < 2:
        return []
    shown, rest = (names, []) if len(names) <= MAX_BARS else (names[: MAX_BARS - 1], names[MAX_BARS - 1 :])
    name_of = _source_names(runs)

    def panel(title: str, chosen: list[str]) -> Panel:
        def draw(axis: Axes) -> None:
            for run, label, style in styled(runs):
                share = run.kept["source"].isin(chosen).groupby(run.kept["step"]).mean()
                _curve(axis, share.index.to_series(), share, label, style, band=False)
            expected = pool.reindex(chosen).fillna(0).sum()
            axis.axhline(expected, color=POOL, linewidth=1.5, linestyle="--", label="share of the pool")
            _over_steps(axis, runs, "share kept")
            axis.set_ylim(0, None)
            axis.yaxis.set_major_locator(MaxNLocator(nbins=4))
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

        return Panel(title, draw, height=1.45)

    panels = [panel(short(name_of(name)), [name]) for name in shown]
    return panels + ([panel(f"{len(rest)} other sources", rest)] if rest else [])


def weights(runs: list[Run]) -> list[Panel]:
    """Panels of the weights in units of the uniform weight: over the run, as a distribution, and of clean
    against damaged samples."""
    weighted = [(relative_weights(run), label, style) for run, label, style in styled(runs)]
    # Methods with uniform weights have none to show.
    weighted = [entry for entry in weighted if entry[0]["relative"].std() > 1e-6]
    if not weighted:
        return []
    largest = max(kept["relative"].quantile(0.995) for kept, *_ in weighted)

    def over_time(axis: Axes) -> None:
        for kept, label, style in weighted:
            by_step = kept.groupby("step")["relative"].quantile([0.1, 0.5, 0.9]).unstack()
            by_step = _thin(by_step.rolling(_window(len(by_step)), min_periods=1, center=True).mean())
            few = len(by_step) < FEW  # a band over one or two steps cannot be seen
            band = axis.vlines if few else axis.fill_between
            band(
                by_step.index,
                by_step[0.1],
                by_step[0.9],
                color=style["color"],
                alpha=0.2,
                linewidth=3 if few else 0,
            )
            axis.plot(
                by_step.index, by_step[0.5], label=label, marker="o" if few else None, markersize=3, **style
            )
        axis.axhline(1, color=POOL, linewidth=0.8, linestyle=":")
        _over_steps(axis, runs, WEIGHT)

    def distribution(axis: Axes) -> None:
        for kept, label, style in weighted:
            look = {
                "bins": 30,
                "range": (0, largest),
                "density": True,
                "histtype": "step",
                "label": label,
                **style,
            }
            axis.hist(kept["relative"].clip(upper=largest), **look)
        axis.axvline(1, color=POOL, linewidth=0.8, linestyle=":")
        axis.set(xlabel=WEIGHT, ylabel="density")

    panels = [
        Panel("Weights: median and 10-90 % range", over_time),
        Panel("Distribution of weights, whole run", distribution),
    ]
    known = [entry for entry in weighted if (entry[0]["damage"] != UNKNOWN).any()]
    if known:
        panels.append(
            Panel("Weights of clean and damaged samples", lambda axis: _weights_by_damage(axis, known))
        )
    return panels


def seconds(runs: list[Run]) -> list[Panel]:
    """Panels of the stages of a step and the time that each takes, and of the share of all time that went
    into selection."""
    rows = [row for run, label, _ in styled(runs) for row in _seconds_by_stage(run, label)]
    if not rows:
        return []

    def stages(axis: Axes) -> None:
        left = pd.Series(0.0, range(len(rows)))
        for stage in STAGES:
            width = pd.Series([mean.get(stage, 0.0) for _, mean in rows])
            if width.any():
                axis.barh(left.index, width, left=left, color=STAGE_COLOURS[stage], label=stage, height=0.6)
            left += width
        axis.set_yticks(range(len(rows)), [short(name) for name, _ in rows])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.set_xlabel("seconds (mean)")

    def spent(axis: Axes) -> None:
        for run, label, style in styled(runs):
            steps, once = run.steps.dropna(subset="seconds_total"), run.setup["seconds"]
            share = (once + selection_seconds(steps).cumsum()) / (once + steps["seconds_total"].cumsum())
            points = _thin(pd.Series(share.to_numpy(), steps["step"].to_numpy()))
            axis.plot(points.index, points, label=label, **style)
        axis.set_ylim(0, 1.05)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _over_steps(axis, runs, "share of time")

    return [
        Panel("Seconds of a step by stage", stages, height=0.8 + 0.3 * len(rows)),
        Panel("Spent on selection so far, one-off price included", spent),
    ]


def _seconds_by_stage(run: Run, label: str) -> list[tuple[str, pd.Series]]:
    """Mean seconds by stage of all steps, with what was prepared once shared out among them; where some steps
    score and others do not, of both kinds too."""
    steps = run.steps.dropna(subset="seconds_total")
    if steps.empty:
        return []

    def mean(own: pd.DataFrame) -> pd.Series:
        found = own[[f"seconds_{stage}" for stage in SECONDS if stage != "total"]].mean()
        found.index = found.index.str.removeprefix("seconds_")
        found["other"] = max(0.0, own["seconds_total"].mean() - found.sum())
        return found

    whole = mean(steps)
    whole[ONE_OFF] = run.setup["seconds"] / len(steps)
    rows = [(label, whole)]
    kinds = {name: steps[steps["scored"] == value] for name, value in (("scored", 1), ("other", 0))}
    # Of a mean of several runs a step may be neither.
    if all(len(own) for own in kinds.values()) and sum(map(len, kinds.values())) == len(steps):
        rows += [(f"\u2026 {name} steps", mean(own)) for name, own in kinds.items()]
    return rows


def memory(runs: list[Run]) -> list[Panel]:
    """A panel of the most memory that each stage has had in any step."""
    entries = []
    for run, label, style in styled(runs):
        peaks = run.steps[[name for name in run.steps if name.startswith("memory_mib_")]].max().dropna()
        if len(peaks):
            entries.append((peaks.rename(lambda name: name.removeprefix("memory_mib_")), label, style))
    if not entries:
        return []
    stages = [stage for stage in STAGES if any(stage in peaks for peaks, *_ in entries)]

    def draw(axis: Axes) -> None:
        bars = [(label, style["color"], peaks.reindex(stages)) for peaks, label, style in entries]
        _bars(axis, bars, stages, lambda value: f" {value:,.0f}")
        axis.set_xlabel("peak memory (MiB)")

    on_card = any(run.environment.get("device") == "cuda" or "gpu" in run.environment for run in runs)
    title = "tensors on the card" if on_card else "resident memory of the process"
    return [Panel(f"Memory by stage, rank 0: {title}", draw, _height(len(stages), len(entries)))]


PLOTS = (
    Plot(
        "losses",
        "Losses",
        "Held-out loss is the result: lower at the same step is better. The other curves are taken on "
        "samples that each method chose itself (one that picks hard samples trains at a higher loss): they "
        "compare a run with its past only. Those of target and candidates are measured by scored steps "
        "alone.",
        losses,
    ),
    Plot(
        "alignment",
        "Match with the target",
        "The cosine should stay clearly above 0. A steady fall means that the pool has little left that "
        "helps, or that the target batch is too small and noisy. Scored steps alone measure it.",
        alignment,
    ),
    Plot(
        "proposal",
        "What the proposal is worth",
        "The curve of the proposed samples should stay above the dotted one of those that were taken at "
        "random from the rest of the window: the distance is the enrichment. Predicted and observed cosines "
        "should correlate, clearly above 0. Scored steps alone measure both.",
        proposal,
        enrichment.words,
    ),
    Plot(
        "sources",
        "Where the kept samples come from",
        "A bar longer than the pool's grey one: the method prefers this source. "
        "Sources of the target's own kind carry a \u25b8.",
        sources,
    ),
    Plot(
        "sources_over_time",
        "Kept share by source over time",
        "A curve above the dashed line: the source is kept more often than it stands in the pool.",
        sources_over_time,
    ),
    Plot(
        "damage",
        "What damage the kept samples carry",
        "Bars of damaged samples should be shorter than the pool's grey ones; "
        "random selection keeps what the pool holds.",
        damage,
    ),
    Plot(
        "weights",
        "Weights",
        "A range that collapses onto 1 means uniform weights (strong shrinkage, or fallbacks). Damaged "
        "samples that passed the filter should weigh less than clean ones. Of scored steps alone: others "
        "weigh all samples alike.",
        weights,
    ),
    Plot(
        "seconds",
        "Time of a step",
        "Everything but 'update' and 'other' is the price of selection. The one-off price, of what was made "
        "before the first step, is shared out among all steps.",
        seconds,
    ),
    Plot(
        "memory",
        "Memory of a step",
        "The highest stage decides what fits. On CPU memory is read at the ends of stages: it is the "
        "process's, and stays high once it was needed.",
        memory,
    ),
)


def styled(runs: list[Run]) -> list[tuple[Run, str, dict]]:
    """Each run with its label and its look: the method's colour, and a line of its own among runs of it."""
    seen: dict[str, int] = {}
    entries = []
    for run, label in zip(runs, labels(runs)):
        number = seen[run.method] = seen.get(run.method, -1) + 1
        entries.append(
            (run, label, {"color": COLOURS.get(run.method, OTHER), "linestyle": LINES[number % len(LINES)]})
        )
    return entries


def relative_weights(run: Run) -> pd.DataFrame:
    """The samples that scored steps kept after warm-up; ``relative`` is their weight in units of the step's
    uniform weight. Steps that score nothing weigh all samples alike."""
    kept = run.kept[~run.kept["warmup"] & run.kept["looked_at"]].copy()
    groups = kept.groupby("step")["weight"]
    kept["relative"] = kept["weight"] / groups.transform("mean")
    return kept.dropna(subset="relative")


def _curves(runs: list[Run], words: dict[str, tuple[str, str]]) -> list[Panel]:
    """A panel for each field of step records that any run has; ``words`` are its title and what its axis
    measures."""

    def panel(field: str, title: str, unit: str) -> Panel:
        def draw(axis: Axes) -> None:
            for run, label, style in styled(runs):
                _curve(axis, run.steps["step"], run.steps[field], label, style)
            _over_steps(axis, runs, unit)

        return Panel(title, draw)

    return [
        panel(field, title, unit)
        for field, (title, unit) in words.items()
        if any(run.steps[field].notna().any() for run in runs)
    ]


def _curve(
    axis: Axes, steps: pd.Series, values: pd.Series, label: str, style: dict, band: bool = True
) -> None:
    """Draw a rolling mean; with ``band``, where there are enough values, their 10-90 % range behind it."""
    present = values.notna()
    values = pd.Series(values[present].astype(float).to_numpy(), index=steps[present].to_numpy())
    if values.empty:
        return
    rolling = values.rolling(_window(len(values)), min_periods=1, center=True)
    if band and len(values) >= FEW:
        low, high = _thin(rolling.quantile(0.1)), _thin(rolling.quantile(0.9))
        axis.fill_between(low.index, low, high, color=style["color"], alpha=0.15, linewidth=0)
    smooth = _thin(rolling.mean())
    axis.plot(
        smooth.index, smooth, label=label, marker="o" if len(values) < FEW else None, markersize=3, **style
    )


def _window(num_points: int) -> int:
    return max(1, num_points // 15)


def _thin(table):
    """The rows of a table, at most ``MANY``: where it has more, evenly spaced ones from the first to the
    last."""
    if len(table) <= MANY:
        return table
    return table.iloc[[round(i * (len(table) - 1) / (MANY - 1)) for i in range(MANY)]]


def _pool_shares(run: Run, column: str) -> pd.Series:
    amounts = pd.Series(run.pool.get(f"by_{column}", {}), dtype=float)
    return amounts / amounts.sum() if len(amounts) else amounts


def _source_names(runs: list[Run]) -> Callable[[str], str]:
    targets = {name for run in runs for name in run.pool.get("target_sources") or []}
    return lambda name: ("\u25b8 " if name in targets else "") + (name or "unnamed")


def _shares(runs: list[Run], column: str, name: Callable[[str], str]) -> list[Panel]:
    entries = styled(runs)
    # Runs over one pool show it once. For runs over different pools the first one's shares would mislead.
    pools = {label: _pool_shares(run, column) for run, label, _ in entries}
    shared = all(pool.equals(next(iter(pools.values()))) for pool in pools.values())
    bars = [(f"pool of {label}", POOL, pool) for label, pool in pools.items()]
    if shared:
        bars = [("pool", POOL, bars[0][2])]
    for run, label, style in entries:
        kept = run.kept[~run.kept["warmup"]]
        if len(kept):
            bars.append((label, style["color"], kept[column].value_counts(normalize=True)))
    shares = pd.DataFrame({label: amounts for label, _, amounts in bars}).fillna(0.0)
    if shares.empty:
        return []
    shares = shares.loc[shares.iloc[:, 0].sort_values(ascending=False, kind="stable").index]
    rows = [short(name(str(value))) for value in shares.index[:MAX_BARS]]
    if len(shares) > MAX_BARS:
        rest = shares.iloc[MAX_BARS - 1 :].sum()
        rows = [*rows[: MAX_BARS - 1], f"{len(shares) - MAX_BARS + 1} others"]
        shares = pd.concat([shares.iloc[: MAX_BARS - 1], rest.to_frame().T])

    def draw(axis: Axes) -> None:
        _bars(
            axis,
            [(label, colour, shares[label]) for label, colour, _ in bars],
            rows,
            lambda share: f" {share:.1%}",
        )
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
        axis.set_xlim(0, min(1.0, shares.max(axis=None)) * 1.25)

    return [
        Panel(f"Share of samples by {column} (kept ones after warm-up)", draw, _height(len(rows), len(bars)))
    ]


def _bars(
    axis: Axes, bars: list[tuple[str, str, pd.Series]], rows: list[str], text: Callable[[float], str]
) -> None:
    """Draw groups of horizontal ``bars``, each (label, colour, value of every row)."""
    thickness = 0.8 / len(bars)
    for number, (label, colour, values) in enumerate(bars):
        places = [row - 0.4 + (number + 0.5) * thickness for row in range(len(rows))]
        # Runs of one method share a colour; a pattern tells them apart.
        hatch = (None, "//", "..", "xx")[[c for _, c, _ in bars[:number]].count(colour) % 4]
        axis.barh(
            places,
            values,
            thickness * 0.92,
            label=label,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
        )
        for place, value in zip(places, values):
            if pd.notna(value):
                axis.text(
                    value, place, text(value), va="center", fontsize=matplotlib.rcParams["ytick.labelsize"]
                )
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.margins(x=0.2)


def _height(num_rows: int, num_bars: int) -> float:
    return 0.55 + num_rows * max(0.26, 0.15 * num_bars + 0.06)


def _weights_by_damage(axis: Axes, entries: list[tuple[pd.DataFrame, str, dict]]) -> None:
    """Draw boxes of all entries for clean samples, and beside them those for damaged ones."""
    boxes, places, colours, group = [], [], [], len(entries) + 1
    for first, is_chosen in ((0, is_clean), (group, is_damaged)):
        for number, (kept, _, style) in enumerate(entries):
            boxes.append(kept.loc[is_chosen(kept["damage"]), "relative"].to_numpy(float))
            places.append(first + number)
            colours.append(style["color"])
    ink = {"color": matplotlib.rcParams["text.color"]}
    look: dict[str, Any] = {"medianprops": ink, "whiskerprops": ink, "capprops": ink}
    drawn = axis.boxplot(boxes, positions=places, showfliers=False, patch_artist=True, widths=0.55, **look)
    for patch, colour in zip(drawn["boxes"], colours):
        patch.set(facecolor=colour, alpha=0.45)
    # Under each box the number of its samples, under each group its name; both stand where places coincide.
    axis.xaxis.remove_overlapping_locs = False
    middle = (len(entries) - 1) / 2
    axis.set_xticks([middle, group + middle], ["clean", "damaged"])
    axis.set_xticks(places, [str(len(box)) for box in boxes], minor=True)
    axis.tick_params(axis="x", which="major", length=0, pad=16)
    axis.axhline(1, color=POOL, linewidth=0.8, linestyle=":")
    axis.set(xlabel="number of kept samples", ylabel=WEIGHT)


def _over_steps(axis: Axes, runs: list[Run], unit: str) -> None:
    """Label and bound the axes: optimizer steps, with the warm-up in grey, and values in ``unit``."""
    axis.set(xlabel="optimizer step", ylabel=unit)
    steps = pd.concat([rows["step"] for run in runs for rows in (run.steps, run.evaluations)]).astype(float)
    margin = 0.5 + 0.02 * (steps.max() - steps.min())
    axis.set_xlim(steps.min() - margin, steps.max() + margin)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    warmup = pd.concat([run.steps.loc[run.steps["warmup"], "step"] for run in runs])
    if len(warmup):
        ink = matplotlib.rcParams["text.color"]
        axis.axvspan(
            steps.min() - margin,
            warmup.max() + 0.5,
            color=ink,
            alpha=0.08,
            linewidth=0,
            zorder=0,
            label="warm-up",
        )
