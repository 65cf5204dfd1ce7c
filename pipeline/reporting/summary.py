"""Runs in numbers: how far each came, what it kept, and how much of its time went into choosing.

Shares of kept samples are taken after warm-up, where the method itself chose; losses and times cover the
whole run. Kept samples are those trained on: chosen, or taken as proposed by steps that score nothing.
"""

from dataclasses import dataclass
from typing import Optional

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.reporting.records import Run, labels

SELECTION_STAGES = ("candidates", "target", "factors", "exchange", "gram", "solve")
"""Stages that a plain training step does not have; ``update`` is the rest."""
CLEAN, UNKNOWN = "none", ""
"""Values of ``damage`` for a sample that is known to be intact, and for one whose state is unknown."""


@dataclass(frozen=True)
class Summary:
    """One run in numbers. None stands for what the run did not measure; shares lie between 0 and 1."""

    label: str
    method: str
    folder: str
    num_steps: int
    num_warmup_steps: int
    loss_before: Optional[float]
    """Held-out loss at the first evaluation."""
    loss_after: Optional[float]
    """Held-out loss at the last evaluation; None where there was only one."""
    loss_mean: Optional[float]
    """Area under the held-out loss over the steps, divided by their number; None with fewer than 3
    evaluations."""
    damaged_pool: Optional[float]
    """Damaged share of the pool's samples, among those whose damage is known."""
    damaged_kept: Optional[float]
    """Damaged share of the kept samples."""
    damaged_weight: Optional[float]
    """Damaged share of the kept samples, each counted by its weight."""
    target_pool: Optional[float]
    """Share of the pool that comes from the target's own kind of source."""
    target_kept: Optional[float]
    target_weight: Optional[float]
    step_seconds: Optional[float]
    """Mean wall time of a step: a median would pass over the few steps that score."""
    step_cpu_seconds: Optional[float]
    """Mean CPU time of a step, over all ranks; None on another device, whose work is no work of a CPU."""
    selection_share: Optional[float]
    """Share of the time of all steps and of the preparation that went into choosing."""
    selection_cpu_share: Optional[float]
    """The same of CPU time. Within a step it is divided like wall time."""
    prepared: str
    """What was made once before the first step, in words; '' where nothing was."""
    prepared_seconds: float
    """Its wall time, paid by the run that made it first."""
    prepared_cpu_seconds: float
    num_scored_steps: Optional[int]
    """Steps that scored candidates; None where none ever does, or where it was not recorded."""
    num_fallbacks: int
    """Steps in which no candidate was aligned with the target: uniform weights on those that oppose it
    least."""
    num_dropped: int
    """Candidates left out because their gradient was not finite."""
    warnings: tuple[str, ...]
    """Sentences of the run's log about steps that looked wrong, in order."""


def summarise(runs: list[Run]) -> list[Summary]:
    return [_summarise(run, label) for run, label in zip(runs, labels(runs))]


def held_out(run: Run) -> pd.DataFrame:
    """The evaluations that are the run's result: those named ``test``; where there are none, those with the
    first one's name."""
    names = run.evaluations["name"]
    if names.empty:
        return run.evaluations
    return run.evaluations[names == ("test" if (names == "test").any() else names.iloc[0])]


def selection_seconds(steps: pd.DataFrame) -> pd.Series:
    """Wall time of each step that went into choosing."""
    return steps[[f"seconds_{stage}" for stage in SELECTION_STAGES]].sum(axis=1)


def area_mean(steps: np.ndarray, loss: np.ndarray) -> float:
    """Area under the loss over the steps (trapezoids between evaluations), divided by their number."""
    return float(np.trapezoid(loss, steps) / np.ptp(steps))


def is_clean(damage: pd.Series) -> pd.Series:
    """Whether each sample is known to be intact."""
    return damage == CLEAN


def is_damaged(damage: pd.Series) -> pd.Series:
    """Whether each sample is known to be damaged."""
    return ~damage.isin([CLEAN, UNKNOWN])


def _summarise(run: Run, label: str) -> Summary:
    kept = run.kept[~run.kept["warmup"]]
    known = kept[kept["damage"] != UNKNOWN]
    by_damage = pd.Series(run.pool.get("by_damage", {}), dtype=float).drop(UNKNOWN, errors="ignore")
    by_source = pd.Series(run.pool.get("by_source", {}), dtype=float)
    targets = run.pool.get("target_sources") or []
    of_target = kept["source"].isin(targets)
    losses = held_out(run)
    steps_of_losses, loss = losses["step"].to_numpy(float), losses["loss"].to_numpy(float)
    num_scored = int(run.steps["scored"].fillna(0).sum())
    timed, setup = run.steps.dropna(subset="seconds_total"), run.setup
    selection, total = selection_seconds(timed), timed["seconds_total"]
    on_cpu = run.environment.get("device", "cpu") == "cpu" and timed["cpu_seconds"].notna().all()
    cpu = timed["cpu_seconds"].astype(float) if on_cpu else pd.Series(dtype=float)
    return Summary(
        label=label,
        method=run.method,
        folder=str(run.folder),
        num_steps=len(run.steps),
        num_warmup_steps=int(run.steps["warmup"].sum()),
        loss_before=float(loss[0]) if len(loss) else None,
        loss_after=float(loss[-1]) if len(loss) > 1 else None,
        loss_mean=area_mean(steps_of_losses, loss) if len(loss) > 2 else None,
        damaged_pool=_share(by_damage, is_damaged(by_damage.index.to_series())),
        damaged_kept=_share(pd.Series(1.0, known.index), is_damaged(known["damage"])),
        damaged_weight=_share(known["weight"], is_damaged(known["damage"])),
        target_pool=_share(by_source, by_source.index.to_series().isin(targets)) if targets else None,
        target_kept=_share(pd.Series(1.0, kept.index), of_target) if targets else None,
        target_weight=_share(kept["weight"], of_target) if targets else None,
        step_seconds=_number(total.mean()),
        step_cpu_seconds=_number(cpu.mean()),
        selection_share=_spent(selection, total, setup["seconds"]),
        selection_cpu_share=_spent(cpu * selection / total, cpu, setup["cpu_seconds"]),
        prepared=str(setup.get("what", "")) if setup["seconds"] else "",
        prepared_seconds=setup["seconds"],
        prepared_cpu_seconds=setup["cpu_seconds"],
        num_scored_steps=num_scored or None,
        num_fallbacks=int(run.steps["fallback"].fillna(0).sum()),
        num_dropped=int(sum(len(ids) for ids in run.steps["dropped"] if isinstance(ids, list))),
        warnings=tuple(text for texts in run.steps["warnings"] if isinstance(texts, list) for text in texts),
    )


def table(summaries: list[Summary], console: Optional[Console] = None) -> None:
    """Print the summary and its notes."""
    print_table(
        "run", [summary.label for summary in summaries], columns(summaries), notes(summaries), console
    )


def print_table(
    first: str,
    names: list[str],
    columns: list[tuple[str, list[str]]],
    notes: list[str],
    console: Optional[Console] = None,
) -> None:
    """Print a table of at most 100 characters a line and the notes below it; plain text where the output is
    no terminal."""
    console = console or Console()
    if console.width > 100 or not console.is_terminal:
        console.width = 100
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
    result.add_column(f"\n{first}", overflow="fold", min_width=10)
    for heading, _ in columns:
        result.add_column(heading, justify="right", no_wrap=True)
    for row, name in enumerate(names):
        result.add_row(Text(name), *(cells[row] for _, cells in columns))
    console.print(result)
    for note in notes:
        console.print(note, markup=False, highlight=False)


def columns(summaries: list[Summary]) -> list[tuple[str, list[str]]]:
    """Headings and cells of the table, for terminal and page alike, without columns that no run fills."""
    filled = {
        "loss\nbefore": [_text(s.loss_before, ".3f") for s in summaries],
        "loss\nafter": [_text(s.loss_after, ".3f") for s in summaries],
        "loss\nmean": [_text(s.loss_mean, ".3f") for s in summaries],
        "damaged\nkept": [_text(s.damaged_kept, ".1%") for s in summaries],
        "damaged\nweight": [_text(s.damaged_weight, ".1%") for s in summaries],
        "target\nkept": [_text(s.target_kept, ".1%") for s in summaries],
        "seconds\nper step": [_text(s.step_seconds, ".2f") for s in summaries],
        "CPU s\nper step": [_text(s.step_cpu_seconds, ".2f") for s in summaries],
        "spent on\nselection": [_text(s.selection_share, ".0%") for s in summaries],
    }
    return [(heading, cells) for heading, cells in filled.items() if set(cells) != {"-"}]


def notes(summaries: list[Summary]) -> list[str]:
    """Sentences on what the table leaves out: the pool, the warm-up, and whatever went wrong."""
    lines = []
    if any(s.loss_before is not None for s in summaries):
        lines.append(
            "Loss is the held-out loss in nats per token; its mean is taken over the steps of the run."
        )
    lines.append(
        "Damaged and target are shares of the kept samples: damaged ones, and ones of the target's own kind."
    )
    if not all(map(_scores_all, summaries)):
        lines.append("Kept samples are those trained on, those that steps took as proposed among them.")
    pools = {s.label: (s.damaged_pool, s.target_pool) for s in summaries}
    shared = len(set(pools.values())) == 1
    for label, (damaged, target) in list(pools.items())[: 1 if shared else None]:
        parts = [f"{damaged:.1%} damaged" if damaged is not None else "damage unknown"]
        if target is not None:
            parts.append(f"{target:.1%} of the target's kind")
        lines.append(f"Pool{'' if shared else ' of ' + label}: {', '.join(parts)}.")
    warmups = sorted({s.num_warmup_steps for s in summaries})
    if warmups != [0]:
        counts = " or ".join(str(count) for count in warmups)
        lines.append(
            f"Shares of samples leave out the warm-up (steps that match the plain gradient: {counts})."
        )
    for s in summaries:
        lines += _spent_on_selection(s)
        if s.num_steps == s.num_warmup_steps:
            lines.append(
                f"{s.label}: all {s.num_steps} steps are warm-up; the method itself has not chosen yet."
            )
        if s.num_fallbacks:
            judged = f"{s.num_steps} steps" if _scores_all(s) else f"{s.num_scored_steps} scored steps"
            lines.append(
                f"{s.label}: {s.num_fallbacks} of {judged} fell back to uniform weights, nothing was aligned."
            )
        if s.num_dropped:
            lines.append(f"{s.label}: {s.num_dropped} candidate(s) dropped, their gradients were not finite.")
        if s.warnings:
            lines.append(f"{s.label}: {len(s.warnings)} warning(s), the last: {s.warnings[-1]}.")
    if not any(s.num_fallbacks or s.num_dropped for s in summaries):
        lines.append("No step fell back to uniform weights, and no candidate was dropped.")
    return lines


def _scores_all(s: Summary) -> bool:
    """Whether no step is known to have scored nothing where others score."""
    return s.num_scored_steps in (None, s.num_steps)


def _spent_on_selection(s: Summary) -> list[str]:
    """A sentence on the price of selection, where a column of it does not tell how it was paid."""
    if s.selection_share is None or (_scores_all(s) and not s.prepared):
        return []
    scored = "" if _scores_all(s) else f"{s.num_scored_steps} of {s.num_steps} steps have scored candidates; "
    of_cpu = cpu = once = ""
    if s.selection_cpu_share is not None:
        of_cpu = f" and {s.selection_cpu_share:.0%} of the CPU time"
        cpu = f", {s.prepared_cpu_seconds:.2f} s of CPU"
    if s.prepared:
        once = f", with {s.prepared}, made once ({s.prepared_seconds:.2f} s{cpu})"
    return [f"{s.label}: {scored}selection has taken {s.selection_share:.0%} of the time{of_cpu}{once}."]


def _spent(selection: pd.Series, total: pd.Series, once: float) -> Optional[float]:
    """Share of the seconds ``total`` of all steps, and of those that were spent ``once``, that went into
    choosing."""
    whole = float(total.sum())
    return (once + float(selection.sum())) / (once + whole) if whole else None


def _share(amounts: pd.Series, chosen: pd.Series) -> Optional[float]:
    total = float(amounts.sum())
    return float(amounts[chosen.to_numpy(bool)].sum()) / total if total else None


def _number(value: float) -> Optional[float]:
    return float(value) if np.isfinite(value) else None


def _text(value: Optional[float], form: str) -> str:
    return "-" if value is None else format(value, form)
