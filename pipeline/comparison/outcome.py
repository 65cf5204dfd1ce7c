"""The outcome of a grid: read from its finished cells, told as tables, a result file and a page."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

import pandas as pd

from pipeline.comparison import budgets, figures
from pipeline.comparison.budgets import BudgetRow, Plan
from pipeline.comparison.grid import Cell, Grid, written
from pipeline.comparison.measures import measure, same_candidates
from pipeline.comparison.statistics import (
    PAIR,
    Estimate,
    Row,
    baselines_of,
    best_baseline,
    crossings,
    estimate,
    reference_of,
    rows_of,
)
from pipeline.comparison.verdict import main_variant, verdict
from pipeline.data.texts import read_texts
from pipeline.reporting import equal_time
from pipeline.reporting.figures import PLOTS, damage, sources
from pipeline.reporting.html import Section, Table, write_page, yaml_text
from pipeline.reporting.incidents import incident_section
from pipeline.reporting.pictures import Panel, pictures, png
from pipeline.reporting.records import ENCODING, Run, read_run
from pipeline.reporting.samples import repeat_section, sample_section
from pipeline.reporting.summary import print_table
from pipeline.reporting.visible import hide

Columns = list[tuple[str, list[str]]]
"""Headings and cells of a table, by column."""
MOST_TARGETS = 5
"""Most targets for which a terminal has room, one in each column."""


@dataclass(frozen=True)
class Outcome:
    """A grid's finished cells, and the statistics over them."""

    variants: dict[str, str]
    """Method by variant, in the grid's order."""
    cells: pd.DataFrame
    """One line a finished cell, with the fields of ``measures.measure``."""
    runs: dict[Cell, Run]
    clock: str
    """The clock of equal time, one of ``equal_time.CLOCKS``."""
    reference: Optional[str]
    """The variant that draws at random from the whole pool."""
    baseline: str
    rows: list[Row]
    """One row a variant, over all targets."""
    of_target: dict[str, list[Row]]
    with_budget: pd.DataFrame
    """One line a finished cell with a budget; it may be one of ``cells`` that uses up the budget itself."""
    budget_rows: list[BudgetRow]
    """One row a variant and budget, over all targets."""
    budgets_of_target: dict[str, list[BudgetRow]]
    notes: list[str]
    time_notes: list[str]
    """Notes on equal time and on budgets."""
    texts: pd.DataFrame
    """Texts of the pools, as ``data.texts.read_texts`` returns them."""

    @property
    def verdict(self) -> str:
        num_targets, num_seeds = self.cells["target"].nunique(), self.cells["seed"].nunique()
        return verdict(self.rows, self.variants, self.reference, self.baseline, num_targets, num_seeds)


def read(cells: list[Cell]) -> dict[Cell, Run]:
    """The runs of finished cells. Raises ValueError where records are broken."""
    return {cell: read_run(cell.folder) for cell in cells}


def clock_of(asked: str, runs: list[Run]) -> str:
    """The clock for a grid's ``clock``. Raises ValueError where cpu is asked for and not all runs have it."""
    if asked == "auto":
        return equal_time.clock_of(runs)
    for run in runs:
        if equal_time.seconds_after(run, asked) is None:
            raise ValueError(
                f"clock = {asked}, and steps of {run.folder} have no {equal_time.CLOCKS[asked]}: it was run "
                "by an earlier version; take the other clock, or run this cell again"
            )
    return asked


def gather(
    cells: list[Cell],
    runs: dict[Cell, Run],
    clock: str,
    notes: list[str],
    plan: Plan = budgets.NONE,
    later: Optional[dict[Cell, Run]] = None,
) -> Outcome:
    """The outcome of the ``runs`` of those among all ``cells`` that have finished, and of the ``later`` ones
    of a ``plan``. Raises ValueError where samples were kept that were no candidates."""
    for target, seed in {(cell.target, cell.seed): None for cell in runs}:
        same_candidates([run for cell, run in runs.items() if (cell.target, cell.seed) == (target, seed)])
    pools = {_pool_of(cell): cell.config.data for cell in runs}
    texts_of = {pool: read_texts(data) for pool, data in pools.items()}

    def measured(runs: dict[Cell, Run]) -> list[dict]:
        return [measure(cell, run, texts_of[_pool_of(cell)]) for cell, run in runs.items()]

    table, methods = pd.DataFrame(measured(runs)), {c.variant: c.config.selection.method for c in cells}
    reference, baseline = reference_of(table), best_baseline(table)
    same = [
        {**line, "budget": budget}
        for cell, line in zip(runs, table.to_dict("records"))
        for budget in plan.same.get(cell, [])
    ]
    with_budget = pd.DataFrame([*same, *measured(later or {})], columns=table.columns)

    def rows(own: pd.DataFrame) -> list[Row]:
        return rows_of(own, list(methods), reference, baseline, clock)

    def budget_rows(own: pd.DataFrame, common: pd.DataFrame) -> list[BudgetRow]:
        return budgets.rows_of(own, common, list(methods), reference, clock)

    of_target = {target: rows(own) for target, own in table.groupby("target", sort=False)}
    found = rows(table)
    return Outcome(
        variants=methods,
        cells=table,
        runs=runs,
        clock=clock,
        reference=reference,
        baseline=baseline,
        rows=found,
        of_target=of_target,
        with_budget=with_budget,
        budget_rows=budget_rows(with_budget, table),
        budgets_of_target={
            target: budget_rows(own, table[table["target"] == target])
            for target, own in with_budget.groupby("target", sort=False)
        },
        notes=[
            *notes,
            *_notes(table, reference, baseline, len(cells) - len(runs)),
            *_pool_notes(table, [_pool_of(cell) for cell in runs]),
        ],
        time_notes=[*_time_notes(table, found, reference, clock), *plan.notes],
        texts=_together(list(texts_of.values())),
    )


def _pool_of(cell: Cell) -> str:
    return ", ".join(cell.config.data.pool)


def _together(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Texts of several pools in one table, without those whose id has different texts in two pools."""
    texts = pd.concat(tables)
    texts = texts[~texts.assign(id=texts.index).duplicated(["id", "digest"])]
    return texts[~texts.index.duplicated(keep=False)]


def headline(variants: list[str], outcome: Optional[Outcome]) -> dict:
    """``auc``, ``final``, ``time_to_random`` and ``step_price`` of each variant, and the standard error of
    its auc; None where no cell has finished.

    Where a cell never gets to random's final loss ``time_to_random`` is None and ``time_to_random_above`` a
    lower bound of the mean.
    """
    names = ("auc", "final", "se", "time_to_random", "time_to_random_above", "step_price")
    rows = {row.variant: row for row in outcome.rows} if outcome else {}
    found: dict[str, dict] = {name: dict.fromkeys(names) for name in variants}
    for name, row in rows.items():
        mean, is_reached = row.time_to_random.mean, row.num_reached == row.num_pairs
        found[name] = {
            "auc": row.auc.mean,
            "final": row.final.mean,
            "se": row.auc.error,
            "time_to_random": mean if is_reached else None,
            "time_to_random_above": None if is_reached else mean,
            "step_price": row.step_price.mean,
        }
    return found


def say(outcome: Outcome) -> None:
    """Print the tables and their notes."""
    names = list(outcome.variants)
    print_table("variant", names, equal_samples(outcome.rows, outcome.baseline), [])
    print_table("variant", names, in_equal_time(outcome.rows, outcome.clock), [])
    if outcome.budget_rows:
        print_table("final loss", names, by_budget(names, outcome.budget_rows), [])
    print_table("variant", names, what_was_kept(outcome.rows, outcome.cells), [])
    if len(outcome.of_target) > 1:
        print_table(
            "auc by target", names, by_target(outcome, with_error=len(outcome.of_target) <= MOST_TARGETS), []
        )
    for note in (*outcome.notes, *outcome.time_notes):
        print(note)
    print(outcome.verdict)


def write(folder: Path, grid: Grid, outcome: Outcome, failures: list[str]) -> Path:
    """Path of the page comparison.html, after writing it, comparison.json and figures/."""
    environment = next(iter(outcome.runs.values())).environment
    settings = hide(yaml_text(written(grid)))
    result = {
        "clock": outcome.clock,
        "variants": {row.variant: asdict(row) for row in outcome.rows},
        "targets": {
            target: {row.variant: asdict(row) for row in rows} for target, rows in outcome.of_target.items()
        },
        "budgets": [asdict(row) for row in outcome.budget_rows],
        "budgets_of_target": {
            target: [asdict(row) for row in rows] for target, rows in outcome.budgets_of_target.items()
        },
        "reference": outcome.reference,
        "best_baseline": outcome.baseline,
        "verdict": outcome.verdict,
        "notes": [*outcome.notes, *outcome.time_notes],
        "failed": failures,
        "parallel": grid.parallel,
        "environment": environment,
        "grid": settings,
        "cells": _plain(outcome.cells),
        "cells_with_budget": _plain(outcome.with_budget),
    }
    (folder / "comparison.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", **ENCODING)
    drawn = {**of_all_targets(outcome), **of_targets(outcome)}
    (folder / "figures").mkdir(exist_ok=True)
    for (target, name), (_, _, panels) in drawn.items():
        (folder / "figures" / f"{target}_{name}.png").write_bytes(png(panels))
    names = list(outcome.variants)
    sections = [
        _section(
            "Equal number of samples", names, equal_samples(outcome.rows, outcome.baseline), outcome.notes
        ),
        _section("Equal time", names, in_equal_time(outcome.rows, outcome.clock), outcome.time_notes),
        *(
            [_section("Final loss by budget", names, by_budget(names, outcome.budget_rows))]
            if outcome.budget_rows
            else []
        ),
        _section("What was kept", names, what_was_kept(outcome.rows, outcome.cells)),
        _section("Mean held-out loss by target", names, by_target(outcome, with_error=True)),
        *(
            Section(f"{target}: {title}", look_at, pictures=pictures(panels, f"{target} {name}"))
            for (target, name), (title, look_at, panels) in drawn.items()
        ),
        *of_all(outcome),
        Section(
            "All cells",
            tables=[
                Table(
                    ["cell", "auc", "final", "accuracy", "seconds", "CPU seconds"],
                    [
                        [
                            f"{c.target}, {c.variant}, seed {c.seed}"
                            + ("" if pd.isna(c.budget) else f", budget {c.budget:g}"),
                            _number(c.auc),
                            _number(c.final),
                            _percent(c.accuracy),
                            *(
                                _number(c.curve[name] and c.curve[name][-1], ".1f")
                                for name in ("seconds", "cpu_seconds")
                            ),
                        ]
                        for table in (outcome.cells, outcome.with_budget)
                        for c in table.itertuples()
                    ],
                )
            ],
        ),
    ]
    lead = [f"{len(outcome.runs)} runs in {folder}", *(f"Failed: {failure}" for failure in failures)]
    write_page(
        folder / "comparison.html",
        "Comparison: " + ", ".join(names),
        outcome.verdict,
        lead,
        sections,
        [("grid", [settings]), ("environment of the first cell", [yaml_text(environment)])],
    )
    return folder / "comparison.html"


def equal_samples(rows: list[Row], baseline: str) -> Columns:
    """Columns of the losses after equally many samples."""
    return _filled(
        {
            "auc": [_with_error(row.auc) for row in rows],
            "final": [_with_error(row.final) for row in rows],
            "accuracy": [_percent(row.accuracy.mean) for row in rows],
            "auc minus\nrandom's": [_with_error(row.vs_random, "+.3f") for row in rows],
            f"auc minus\n{baseline}'s": [_with_error(row.vs_baseline, "+.3f") for row in rows],
            "mean\nrank": [_number(row.rank.mean, ".1f") for row in rows],
        }
    )


def in_equal_time(rows: list[Row], clock: str) -> Columns:
    """Columns of what each variant reaches in random's time, and of what its steps cost."""
    by_wall = clock == "cpu"  # else the first columns are of the wall clock already
    return _filled(
        {
            "in random's\ntime": [_with_error(row.in_random_time) for row in rows],
            "time to\nrandom's": [_time(row, row.time_to_random) for row in rows],
            "step\nprice": [_number(row.step_price.mean, ".2f") for row in rows],
            "pre-\npared": [_number(row.prepared.mean, ".3f") if row.prepared.mean else "-" for row in rows],
            "wall: time\nto random's": [
                _time(row, row.wall_time_to_random) if by_wall else "-" for row in rows
            ],
            "wall:\nprice": [_number(row.wall_step_price.mean, ".2f") if by_wall else "-" for row in rows],
            "s per\nstep": [_number(row.step_seconds, ".2f") for row in rows],
            "tokens\ntrained": [_number(row.trained_tokens, ",.0f") for row in rows],
        }
    )


def what_was_kept(rows: list[Row], cells: pd.DataFrame) -> Columns:
    """Columns of the share of time that went into choosing, and of the samples that were kept."""
    kept = {
        variant: pd.DataFrame(
            [c["damaged"], c["target_kind"], c["duplicates"], c["length"]] for c in own
        ).mean()
        for variant, own in cells.groupby("variant")["kept"]
    }

    def mean(row: Row, number: int) -> Optional[float]:
        value = kept[row.variant][number] if row.variant in kept else float("nan")
        return None if pd.isna(value) else float(value)

    return _filled(
        {
            "choosing": [_percent(row.selection_share, ".0%") for row in rows],
            "damaged\nkept": [_percent(mean(row, 0)) for row in rows],
            "target\nkept": [_percent(mean(row, 1)) for row in rows],
            "dupli-\ncates": [_percent(mean(row, 2)) for row in rows],
            "length": [_number(mean(row, 3), ".0f") for row in rows],
        }
    )


def by_budget(names: list[str], rows: list[BudgetRow]) -> Columns:
    """Two columns for each budget: the final loss, and what the runs really took; '-' where none fits."""
    found, columns = {(row.variant, row.budget): row for row in rows}, []
    for budget in sorted({row.budget for row in rows}):
        own = [found.get((name, budget)) for name in names]
        columns.append((f"at\n{budget:g}", [_final(row) if row else "-" for row in own]))
        columns.append(("took", [_number(row.cost.mean, ".2f") if row else "-" for row in own]))
    return columns


def _final(row: BudgetRow) -> str:
    """'2.345 ±0.012'; '2.345 2/6' where only two of six cells have such a run, whose mean is no mean of the
    rest."""
    return _with_error(row.final) if row.cells == row.of else f"{row.final.mean:.3f} {row.cells}/{row.of}"


def by_target(outcome: Outcome, with_error: bool) -> Columns:
    """A column of auc for each target."""
    return [
        (target, [_with_error(row.auc) if with_error else _number(row.auc.mean) for row in rows])
        for target, rows in outcome.of_target.items()
    ]


CURVES = "Mean over seeds; the band is one standard error. Lower is better."


def of_all_targets(outcome: Outcome) -> dict[tuple[str, str], tuple[str, str, list[Panel]]]:
    """As ``of_targets``: curves of the means over several targets."""
    if len(outcome.of_target) == 1:
        return {}
    panels = _curves(outcome, outcome.cells, outcome.budget_rows)
    look_at = (
        "Mean over targets, then over seeds; the band is one standard error over seeds. Lower is better."
    )
    return {("all", "curves"): ("held-out loss", look_at, panels)}


def of_targets(outcome: Outcome) -> dict[tuple[str, str], tuple[str, str, list[Panel]]]:
    """Figures by target and name: title, a sentence for the reader, and panels."""
    drawn = {}
    for target, own in outcome.cells.groupby("target", sort=False):
        curves = _curves(outcome, own, outcome.budgets_of_target.get(target, []))
        drawn[target, "curves"] = ("held-out loss", CURVES, curves)
        runs = _averaged(outcome, target)
        for name, plot in {"sources": sources, "damage": damage}.items():
            if panels := plot(runs) if runs else []:
                look_at = "A bar longer than the pool's grey one: the variant prefers these samples."
                drawn[target, name] = (f"{name} of what was kept", look_at, panels)
    return drawn


def of_all(outcome: Outcome) -> list[Section]:
    """Sections on all targets and seeds together: figures, samples with their texts, and incidents."""
    runs, sections = _averaged(outcome), []
    for plot in [plot for plot in PLOTS if plot.name not in ("sources", "damage")]:
        if panels := plot.draw(runs) if runs else []:
            title = "Losses while training" if plot.name == "losses" else plot.title
            sections.append(
                Section(
                    f"{title}, mean of all cells", plot.look_at, pictures=pictures(panels, f"all {plot.name}")
                )
            )
    main = main_variant(outcome.rows, outcome.variants).variant
    shown = {variant: None for variant in (main, outcome.baseline, outcome.reference) if variant is not None}
    whole = [(v, figures.one_after_another(v, own)) for v in shown if (own := _runs(outcome, v))]
    sections += [sample_section(whole, outcome.texts), repeat_section(whole, outcome.texts)]
    return [*sections, incident_section([(str(cell), run) for cell, run in outcome.runs.items()])]


def _curves(outcome: Outcome, cells: pd.DataFrame, rows: list[BudgetRow]) -> list[Panel]:
    styles = figures.styles_of(outcome.variants)
    return [
        *figures.learning_curves(cells, styles, outcome.reference, outcome.clock),
        *figures.final_by_budget(rows, styles),
    ]


def _runs(outcome: Outcome, variant: str, target: Optional[str] = None) -> list[Run]:
    return [
        run for cell, run in outcome.runs.items() if cell.variant == variant and target in (None, cell.target)
    ]


def _averaged(outcome: Outcome, target: Optional[str] = None) -> list[Run]:
    """One averaged run for each variant; none where there are more variants than ``figures.MOST_BARS``."""
    if len(outcome.variants) > figures.MOST_BARS:
        return []
    return [
        figures.averaged(variant, own)
        for variant in outcome.variants
        if (own := _runs(outcome, variant, target))
    ]


def _notes(cells: pd.DataFrame, reference: Optional[str], baseline: str, num_missing: int) -> list[str]:
    chosen = (
        "the best baseline by auc"
        if baseline in set(baselines_of(cells)["variant"])
        else "the grid's first variant"
    )
    notes = [
        "auc is the held-out loss averaged over the run (trapezoids over its steps, from before the first); "
        f"errors are standard errors over {cells['seed'].nunique()} seed(s).",
        "Differences are taken between cells of one target and seed; below 0 is better. "
        f"{baseline} is {chosen}.",
        "Kept: shares of samples trained on after warm-up; length in characters. Duplicates: samples with a "
        "text that others of the pool have too, but for case and white space.",
    ]
    if num_missing:
        notes.append(
            f"{num_missing} cell(s) are missing: means are over those that are there, differences over pairs."
        )
    return notes


def _pool_notes(cells: pd.DataFrame, pools: list[str]) -> list[str]:
    """A sentence on each pool; ``pools`` names that of each cell."""
    shares = {
        "damaged": "damaged",
        "target_kind": "of the target's kind",
        "duplicates": "with a text that others have too",
    }
    notes = []
    for name, own in cells.groupby(pools, sort=False):
        pool = pd.DataFrame(own["pool"].tolist()).mean()
        known = [f"{pool[key]:.1%} {words}" for key, words in shares.items() if pd.notna(pool[key])]
        known.append(f"mean length {pool['length']:.0f}")
        which = "" if len(set(pools)) == 1 else f" {name}"
        notes.append(f"Pool{which}: {', '.join(known)}.")
    return notes


def _time_notes(cells: pd.DataFrame, rows: list[Row], reference: Optional[str], clock: str) -> list[str]:
    """Sentences on the columns of equal time."""
    notes = []
    if reference:
        notes += [
            f"In random's time: held-out loss after as much time as {reference} took. Time to random's: "
            f"until {reference}'s final loss, as a share of {reference}'s whole run of the same target and "
            "seed; retrieval and features are paid before the first step (prepared, in the same unit). Step "
            f"price: mean cost of a step over {reference}'s, without these.",
        ]
        if any(row.num_reached < row.num_pairs for row in rows):
            notes.append(
                f">: in some cells {reference}'s final loss is never reached (n/m: n of m reach it). Each "
                "counts with the share of time that its run has used at its end: the mean is a lower bound."
            )
        of_random = cells[cells["variant"] == reference].set_index(PAIR)
        first = estimate(crossings(of_random, of_random, clock)["time_to_random"]).mean
        if first is not None and first < 0.995:
            notes.append(
                f"{reference} itself, whose time is 1 by definition, is at its final loss for the first time "
                f"after {first:.2f} of it: its curve rises again."
            )
    if clock == "cpu":
        notes.append("Time is CPU seconds of all ranks, from the step records, but where it says wall or s.")
    elif any(curve["cpu_seconds"] is None for curve in cells["curve"]):
        notes.append("Time is wall clock: not all step records have CPU seconds.")
    else:
        notes.append("Time is wall clock, from the step records.")
    notes.append("It leaves out evaluations, loading and self-check.")
    if cells["cells_beside"].any():
        notes.append(
            f"{cells['cells_beside'].max()} other cell(s) ran beside each, so wall-clock times are noisy."
        )
    return notes


def _plain(cells: pd.DataFrame) -> list[dict]:
    """Lines of a table in JSON's types."""
    return cells.astype(object).where(cells.notna(), None).to_dict("records")


def _section(title: str, names: list[str], columns: Columns, notes: tuple | list = ()) -> Section:
    rows = [[name, *(cells[row] for _, cells in columns)] for row, name in enumerate(names)]
    return Section(
        title, tables=[Table(["variant", *(heading for heading, _ in columns)], rows)], notes=notes
    )


def _filled(columns: dict[str, list[str]]) -> Columns:
    """The columns that have a value in some cell."""
    return [(heading, cells) for heading, cells in columns.items() if set(cells) != {"-"}]


def _with_error(value: Estimate, form: str = ".3f") -> str:
    if value.mean is None:
        return "-"
    return format(value.mean, form) + (f" ±{value.error:.3f}" if value.error is not None else "")


def _number(value: Optional[float], form: str = ".3f") -> str:
    return "-" if value is None or pd.isna(value) else format(value, form)


def _percent(value: Optional[float], form: str = ".1%") -> str:
    return _number(value, form)


def _time(row: Row, share: Estimate) -> str:
    """'0.41 ±0.02', or a lower bound: '> 1.93 2/3'."""
    if share.mean is None:
        return "-"
    if row.num_reached < row.num_pairs:
        return f"> {share.mean:.2f} {row.num_reached}/{row.num_pairs}"
    return f"{share.mean:.2f}" + (f" ±{share.error:.2f}" if share.error is not None else "")
