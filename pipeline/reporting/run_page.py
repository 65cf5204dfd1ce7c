"""The page about one or several runs: which sections it has, and in which order."""

from pathlib import Path
from typing import Optional

import pandas as pd

from pipeline.reporting.figures import PLOTS, Plot
from pipeline.reporting.html import Section, Table, write_page, yaml_text
from pipeline.reporting.incidents import counts, incident_section, incidents
from pipeline.reporting.pictures import Panel, pictures
from pipeline.reporting.records import Run, labels
from pipeline.reporting.samples import repeat_section, sample_section
from pipeline.reporting.summary import Summary, columns, notes
from pipeline.reporting.verdict import verdict
from pipeline.settings import flatten

# Settings that always differ between runs and say nothing about them.
BOOKKEEPING = ("run.folder", "run.overwrite")


def panels(runs: list[Run]) -> list[tuple[Plot, list[Panel]]]:
    """The plots for which these runs have records, each with its panels."""
    drawn = [(plot, plot.draw(runs)) for plot in PLOTS]
    return [(plot, own) for plot, own in drawn if own]


def write_run_page(
    path: Path,
    runs: list[Run],
    summaries: list[Summary],
    drawn: list[tuple[Plot, list[Panel]]],
    texts: Optional[pd.DataFrame],
    problem: str,
) -> None:
    """Write the page at ``path``.

    Args:
        drawn: what ``panels`` returns for these runs.
        texts: the pool's samples, as ``pipeline.data.texts.read_texts`` returns them, or None.
        problem: a sentence on why there are no texts.
    """
    names, cells, differences = labels(runs), columns(summaries), differing_settings(runs)
    labelled = list(zip(names, runs))
    rows = [[name, *(column[row] for _, column in cells)] for row, name in enumerate(names)]
    numbers = Table(["run", *(heading for heading, _ in cells)], rows)
    sections = [Section("In numbers", tables=[numbers], notes=notes(summaries))]
    figures = {
        plot.name: Section(
            plot.title, plot.look_at, notes=_said(plot, labelled), pictures=pictures(own, plot.name)
        )
        for plot, own in drawn
    }
    sections += [section for name, section in figures.items() if name not in ("seconds", "memory")]
    sections += [sample_section(labelled, texts, problem), repeat_section(labelled, texts, problem)]
    sections += [figures[name] for name in ("seconds", "memory") if name in figures]
    sections.append(incident_section(labelled))
    if differences:
        rows = [[name, *values] for name, values in differences.items()]
        sections.append(
            Section(
                "Settings that differ",
                tables=[Table(["setting", *names], rows, ["short", *["word"] * len(names)])],
            )
        )
    lead = [f"{s.label}: {s.num_steps} steps, {s.folder}" for s in summaries]
    lead += [
        f"{name}: {counts(found)}; see Warnings and fallbacks."
        for name, run in labelled
        if (found := incidents(run))
    ]
    write_page(
        path,
        "Data selection: " + ", ".join(names),
        verdict(runs, summaries),
        lead,
        sections,
        [
            (name, [yaml_text(part) for part in (run.config, run.deepspeed, run.environment) if part])
            for name, run in labelled
        ],
    )


def _said(plot: Plot, runs: list[tuple[str, Run]]) -> list[str]:
    """Sentences that stand with a plot."""
    return [sentence for label, run in runs if plot.words for sentence in plot.words(label, run)]


def differing_settings(runs: list[Run]) -> dict[str, list[str]]:
    """Dotted names of the settings in which the runs differ, with the value of each run; '-' where a run has
    none."""
    flat = [dict(flatten(run.config)) for run in runs]
    names = [
        name
        for name in dict.fromkeys(name for settings in flat for name in settings)
        if name not in BOOKKEEPING
    ]
    values = {name: [str(settings.get(name, "-")) for settings in flat] for name in names}
    return {name: row for name, row in values.items() if len(set(row)) > 1}
