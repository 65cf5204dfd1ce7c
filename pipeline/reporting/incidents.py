"""What did not go as planned, each with its step: warnings, fallbacks, dropped candidates, skipped updates,
interruptions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from pipeline.reporting.enrichment import GAVE_UP
from pipeline.reporting.html import Section, Table
from pipeline.reporting.records import Run
from pipeline.reporting.visible import cut

MAX_ROWS, MAX_TEXT = 40, 400


@dataclass(frozen=True)
class Incident:
    """One thing that did not go as planned."""

    step: int
    kind: str
    what: str


def incidents(run: Run) -> list[Incident]:
    """All incidents of a run, in the order of steps."""
    found = []
    if run.environment.get("slower_attention"):
        found.append(Incident(0, "slower attention kernel", str(run.environment["slower_attention"])))
    for line in run.resumes:
        unusable = [f"not used: {reason}" for reason in line.get("unusable") or []]
        found.append(
            Incident(line["step"], "continued", "; ".join([f"from {line.get('checkpoint', '?')}", *unusable]))
        )
    for row in run.steps.to_dict("records"):
        step = int(row["step"])
        said = [str(sentence) for sentence in row["warnings"]] if isinstance(row["warnings"], list) else []
        found += [
            Incident(step, "back to uniform", sentence)
            if GAVE_UP in sentence
            else Incident(step, "warning", sentence)
            for sentence in said
        ]
        if row["target_dropped"] == 1:
            found.append(
                Incident(step, "target dropped", "the target's gradient was not finite; uniform draw")
            )
        elif row["fallback"] == 1:
            found.append(
                Incident(
                    step,
                    "fallback",
                    "no candidate was aligned with the target; uniform weights on the least bad",
                )
            )
        if isinstance(row["dropped"], list) and row["dropped"]:
            names = cut(", ".join(map(str, row["dropped"])), MAX_TEXT)
            found.append(Incident(step, "candidates dropped", f"their gradients were not finite: {names}"))
        if pd.notna(row["out_of_memory"]) and row["out_of_memory"]:
            found.append(
                Incident(
                    step, "out of memory", f"the scoring pass began again {int(row['out_of_memory'])} time(s)"
                )
            )
        if row["skipped"] == 1:
            scale = f" at loss scale {row['loss_scale']:g}" if pd.notna(row["loss_scale"]) else ""
            found.append(Incident(step, "update skipped", f"a gradient overflowed{scale}"))
    return sorted(found, key=lambda incident: incident.step)


def counts(found: Sequence[Incident]) -> str:
    """Numbers of each kind, the most frequent first: '2 x fallback, 1 x warning'."""
    return ", ".join(
        f"{count} x {kind}" for kind, count in Counter(incident.kind for incident in found).most_common()
    )


def incident_section(runs: Sequence[tuple[str, Run]]) -> Section:
    """A section with the incidents of all (label, run) in one table: the first and the last of them where
    there are more than ``MAX_ROWS``."""
    of_runs = {label: incidents(run) for label, run in runs}
    found = [(label, incident) for label, own in of_runs.items() for incident in own]
    notes = [f"{label}: {counts(own)}." for label, own in of_runs.items() if own] or [
        f"None in {len(runs)} run(s)."
    ]
    unknown = [label for label, run in runs if run.steps["warnings"].isna().all()]
    if unknown:
        notes.append(
            f"Warnings are not known of {cut(', '.join(unknown), MAX_TEXT)}: "
            "their version printed them and did not record them."
        )
    half = MAX_ROWS // 2
    shown = found if len(found) <= MAX_ROWS else [*found[:half], *found[-half:]]
    if len(shown) < len(found):
        notes.append(f"The first and the last {half} of {len(found):,} are shown.")
    rows = [
        [str(incident.step), incident.kind, cut(incident.what, MAX_TEXT), label] for label, incident in shown
    ]
    tables = (
        [Table(["step", "what", "details", "run"], rows, kinds=["short", "word", "text", "word"])]
        if rows
        else []
    )
    return Section("Warnings and fallbacks", tables=tables, notes=notes)
