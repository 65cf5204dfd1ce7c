"""The outcome of a grid: read from its finished cells, told as tables, a result file and a page."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

import pandas as pd

from pipeline.comparison import figures
from pipeline.comparison.grid import Cell, Grid, written
from pipeline.comparison.measures import measure, same_candidates
from pipeline.comparison.statistics import Estimate, Row, baselines_of, best_baseline, reference_of, rows_of
from pipeline.comparison.verdict import main_variant, verdict
from pipeline.data.texts import read_texts
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
    reference: Optional[str]
    """The variant that draws at random."""
    baseline: str
    rows: list[Row]
    """One row a variant, over all targets."""
    of_target: dict[str, list[Row]]
    notes: list[str]
    texts: pd.DataFrame
    """Texts of the pool, as ``data.texts.read_texts`` returns them."""

    @property
    def verdict(self) -> str:
        num_targets, num_seeds = self.cells["target"].nunique(), self.cells["seed"].nunique()
        return verdict(self.rows, self.variants, self.reference, self.baseline, num_targets, num_seeds)


def gather(cells: list[Cell], done: list[Cell], notes: list[str]) -> Outcome:
    """The outcome of the cells that are ``done`` among all ``cells``. Raises ValueError where records are
    broken or candidates differ."""
    runs = {cell: read_run(cell.folder) for cell in done}
    for target, seed in {(cell.target, cell.seed): None for cell in done}:
        same_candidates([run for cell, run in runs.items() if (cell.target, cell.seed) == (target, seed)])
    texts = read_texts(done[0].config.data)  # the same pool everywhere: grid.differences_in_data
    table = pd.DataFrame([measure(cell, run, texts) for cell, run in runs.items()])
    methods = {cell.variant: cell.config.selection.method for cell in cells}
    reference, baseline = reference_of(table), best_baseline(table)

    def rows(own: pd.DataFrame) -> list[Row]:
        return rows_of(own, list(methods), reference, baseline)

    return Outcome(
        variants=methods,
        cells=table,
        runs=runs,
        reference=reference,
        baseline=baseline,
        rows=rows(table),
        of_target={target: rows(own) for target, own in table.groupby("target", sort=False)},
        notes=[*notes, *_notes(table, reference, baseline, len(cells) - len(done))],
        texts=texts,
    )


def headline(variants: list[str], outcome: Optional[Outcome]) -> dict:
    """``auc`` and ``final`` of each variant, and the standard error of its auc; None where no cell has
    finished."""
    rows = {row.variant: row for row in outcome.rows} if outcome else {}
    nothing = {"auc": None, "final": None, "se": None}
    return {
        name: {"auc": rows[name].auc.mean, "final": rows[name].final.mean, "se": rows[name].auc.error}
        if name in rows
        else nothing
        for name in variants
    }


def say(outcome: Outcome) -> None:
    """Print the tables and their notes."""
    names = list(outcome.variants)
    print_table("variant", names, equal_samples(outcome.rows, outcome.baseline), [])
    print_table("variant", names, time_and_kept(outcome.rows, outcome.cells), [])
    if len(outcome.of_target) > 1:
        print_table(
            "auc by target", names, by_target(outcome, with_error=len(outcome.of_target) <= MOST_TARGETS), []
        )
    for note in outcome.notes:
        print(note)
    print(outcome.verdict)


def write(folder: Path, grid: Grid, outcome: Outcome, failures: list[str]) -> Path:
    """Path of the page comparison.html, after writing it, comparison.json and figures/."""
    environment = next(iter(outcome.runs.values())).environment
    settings = hide(yaml_text(written(grid)))
    result = {
        "variants": {row.variant: asdict(row) for row in outcome.rows},
        "targets": {
            target: {row.variant: asdict(row) for row in rows} for target, rows in outcome.of_target.items()
        },
        "reference": outcome.reference,
        "best_baseline": outcome.baseline,
        "verdict": outcome.verdict,
        "notes": outcome.notes,
        "failed": failures,
        "parallel": grid.parallel,
        "environment": environment,
        "grid": settings,
        "cells": outcome.cells.to_dict("records"),
    }
    (folder / "comparison.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", **ENCODING)
    drawn = of_targets(outcome)
    (folder / "figures").mkdir(exist_ok=True)
    for (target, name), (_, _, panels) in drawn.items():
        (folder / "figures" / f"{target}_{name}.png").write_bytes(png(panels))
    names = list(outcome.variants)
    sections = [
        _section(
            "Equal number of samples", names, equal_samples(outcome.rows, outcome.baseline), outcome.notes
        ),
        _section("Time, and what was kept", names, time_and_kept(outcome.rows, outcome.cells)),
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
                    ["cell", "auc", "final", "accuracy", "seconds"],
                    [
                        [
                            f"{c.target}, {c.variant}, seed {c.seed}",
                            _number(c.auc),
                            _number(c.final),
                            _percent(c.accuracy),
                            _number(c.seconds, ".1f"),
                        ]
                        for c in outcome.cells.itertuples()
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


def time_and_kept(rows: list[Row], cells: pd.DataFrame) -> Columns:
    """Columns of the time that each variant took, and of the samples that it kept."""
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
            "in random's\ntime": [_number(row.in_random_time.mean) for row in rows],
            "time to\nrandom's": [_time(row) for row in rows],
            "s per\nstep": [_number(row.step_seconds, ".2f") for row in rows],
            "choosing": [_percent(row.selection_share, ".0%") for row in rows],
            "damaged\nkept": [_percent(mean(row, 0)) for row in rows],
            "target\nkept": [_percent(mean(row, 1)) for row in rows],
            "dupli-\ncates": [_percent(mean(row, 2)) for row in rows],
            "length": [_number(mean(row, 3), ".0f") for row in rows],
        }
    )


def by_target(outcome: Outcome, with_error: bool) -> Columns:
    """A column of auc for each target."""
    return [
        (target, [_with_error(row.auc) if with_error else _number(row.auc.mean) for row in rows])
        for target, rows in outcome.of_target.items()
    ]


def of_targets(outcome: Outcome) -> dict[tuple[str, str], tuple[str, str, list[Panel]]]:
    """Figures by target and name: title, a sentence for the reader, and panels."""
    drawn, styles = {}, figures.styles_of(outcome.variants)
    for target, own in outcome.cells.groupby("target", sort=False):
        curves = figures.learning_curves(own, styles)
        drawn[target, "curves"] = (
            "held-out loss",
            "Mean over seeds; the band is one standard error. Lower is better.",
            curves,
        )
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
    pool = pd.DataFrame(cells["pool"].tolist()).mean()
    shares = {
        "damaged": "damaged",
        "target_kind": "of the target's kind",
        "duplicates": "with a text that others have too",
    }
    chosen = (
        "the best baseline by auc"
        if baseline in set(baselines_of(cells)["variant"])
        else "the grid's first variant"
    )
    known = [f"{pool[key]:.1%} {words}" for key, words in shares.items() if pd.notna(pool[key])]
    notes = [
        "auc is the held-out loss averaged over the run (trapezoids over its steps, from before the first); "
        f"errors are standard errors over {cells['seed'].nunique()} seed(s).",
        "Differences are taken between cells of one target and seed, which see the same candidates in the "
        f"same order; below 0 is better. {baseline} is {chosen}.",
        "Kept: shares of samples trained on after warm-up; length in characters. Duplicates: samples with a "
        "text that others of the pool have too, but for case and white space.",
        f"Pool: {', '.join(known)}, mean length {pool['length']:.0f}.",
    ]
    if reference:
        notes.append(
            f"In random's time: held-out loss after as much training time as {reference} took. Time to "
            f"random's: training time until {reference}'s final loss, as a share of {reference}'s run "
            "(median; how many of the cells got there)."
        )
    notes.append("Times come from the step records: without evaluations, loading and self-check.")
    if cells["cells_beside"].any():
        notes.append(f"{cells['cells_beside'].max()} other cell(s) ran beside each, so the times are noisy.")
    if num_missing:
        notes.append(
            f"{num_missing} cell(s) are missing: means are over those that are there, differences over pairs."
        )
    return notes


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


def _time(row: Row) -> str:
    if row.in_random_time.mean is None:
        return "-"
    reached = f"{row.num_reached}/{row.cells}"
    return f"never {reached}" if row.time_to_random is None else f"{row.time_to_random:.2f}x {reached}"
