"""The samples that a run kept most and least, and those that it took twice, with their texts."""

from collections.abc import Sequence
from typing import Optional

import numpy as np
import pandas as pd

from pipeline.reporting.figures import relative_weights
from pipeline.reporting.html import Section, Table
from pipeline.reporting.records import BLIND, Run
from pipeline.reporting.visible import cut

NUM_SHOWN = 8
MAX_TEXT, MAX_NAME = 240, 40
"""Characters that are shown of a text, and of an id."""


def tally(run: Run) -> pd.DataFrame:
    """One row a sample that was looked at or trained on after warm-up, by id: how often steps have ``seen``
    it as a candidate and ``kept`` it then, its mean ``weight`` (uniform = 1) where they did, its mean
    ``alignment``, and how often it was ``trained`` on, by steps that score nothing too."""
    kept = relative_weights(run)
    trained = run.kept.loc[~run.kept["warmup"], "id"].astype(str).value_counts(sort=False)
    passed = run.passed if run.passed is not None else pd.DataFrame(columns=["step", "id", "alignment"])
    passed = passed[~passed["step"].isin(run.steps.loc[run.steps["warmup"], "step"])]
    looks = pd.DataFrame(
        {
            "id": [*kept["id"].astype(str), *passed["id"].astype(str)],
            "alignment": pd.to_numeric(pd.Series([*kept["alignment"], *passed["alignment"]], dtype=object)),
            "weight": [*kept["relative"], *[np.nan] * len(passed)],
        }
    )
    groups = looks.groupby("id", sort=False)
    found = pd.DataFrame(
        {
            "seen": groups.size(),
            "kept": groups["weight"].count(),
            "weight": groups["weight"].mean(),
            "alignment": groups["alignment"].mean(),
        }
    )
    found = found.reindex(found.index.union(trained.index, sort=False)).assign(trained=trained)
    counts = ["seen", "kept", "trained"]
    return found.assign(**found[counts].fillna(0).astype(int))


def most_kept(samples: pd.DataFrame) -> pd.DataFrame:
    """The samples trained on most often; of equals those kept most often, then those with the largest weight,
    then with the best alignment."""
    return samples[samples["trained"] > 0].sort_values(
        ["trained", "kept", "weight", "alignment"], ascending=False, kind="stable"
    )[:NUM_SHOWN]


def least_kept(samples: pd.DataFrame) -> pd.DataFrame:
    """The candidates with the smallest share of kept among seen; of equals those seen most often, then those
    with the worst alignment."""
    samples = samples[samples["seen"] > 0]
    order = samples.assign(share=samples["kept"] / samples["seen"], unseen=-samples["seen"])
    return order.sort_values(["share", "unseen", "alignment"], kind="stable")[samples.columns][:NUM_SHOWN]


def repeats(run: Run, texts: pd.DataFrame) -> pd.DataFrame:
    """One row a text that the run has kept under several ids, by digest, the most frequent first: ``ids``,
    how many ``times`` it was kept, and how many times at most in one step (``together``)."""
    kept = run.kept.assign(id=run.kept["id"].astype(str))
    kept = kept.assign(digest=kept["id"].map(texts["digest"])).dropna(subset="digest")
    kept = kept[kept.groupby("digest")["id"].transform("nunique") > 1]
    rows = [
        {
            "digest": digest,
            "ids": sorted(set(own["id"])),
            "times": len(own),
            "together": int(own.groupby("step").size().max()),
        }
        for digest, own in kept.groupby("digest", sort=False)
    ]
    found = pd.DataFrame(rows, columns=["digest", "ids", "times", "together"]).set_index("digest")
    return found.sort_values(["times", "together"], ascending=False, kind="stable")


def sample_section(
    runs: Sequence[tuple[str, Run]], texts: Optional[pd.DataFrame], problem: str = ""
) -> Section:
    """A section with the most and the least kept samples of each (label, run). ``texts`` are what
    ``pipeline.data.texts.read_texts`` returns, or None, and ``problem`` says why."""
    tables, notes = [], [problem] if problem else []
    for label, run in runs:
        if run.method in BLIND:
            notes.append(f"{label} takes samples without looking at them.")
            continue
        samples = tally(run)
        if samples.empty:
            notes.append(f"{label}: the method has not chosen yet, so there is nothing to show.")
            continue
        if run.passed is None:
            notes.append(
                f"{label}: this run has not recorded which candidates it left out, "
                "so the least kept are not known."
            )
        unseen = int((samples["trained"] - samples["kept"]).sum())
        if unseen:
            notes.append(
                f"{label}: of {samples['trained'].sum():,} samples trained on {unseen:,} were taken as "
                "proposed, by steps that scored nothing."
            )
        titles = {"Most trained on" if unseen else "Most kept": most_kept(samples)}
        if run.passed is not None and samples["seen"].any():
            if (samples["kept"] == samples["seen"]).all():
                notes.append(f"{label}: every sample that it looked at was kept.")
            else:
                titles["Least kept"] = least_kept(samples)
        tables += [_table(f"{title}, {label}", rows, run, texts) for title, rows in titles.items()]
    if texts is not None and any(not set(tally(run).index) <= set(texts.index) for _, run in runs):
        notes.append(
            "A sample without text has an id that is not in the pool's files any more, or stands there twice."
        )
    look_at = (
        "Are the most kept the kind of sample you want to teach, and the least kept rightly left out? Kept: "
        "times kept of times looked at, after warm-up; trained on: times in all, as proposed too; weight: "
        "mean, uniform = 1; alignment: mean cosine of the sample's update to the target's."
    )
    return Section("Most and least kept samples", look_at, tables=tables, notes=notes)


def repeat_section(
    runs: Sequence[tuple[str, Run]], texts: Optional[pd.DataFrame], problem: str = ""
) -> Section:
    """A section on the texts that each (label, run) has kept under several ids."""
    tables, notes = [], [problem] if problem else []
    for label, run in runs:
        if texts is None:
            break
        found = repeats(run, texts)
        known = run.kept["id"].astype(str).isin(texts.index).sum()
        if not known:
            notes.append(f"{label}: no sample that it trained on is in the pool's files any more.")
            continue
        share, in_pool = found["times"].sum() / known, texts["is_duplicate"].mean()
        together = int((found["together"] > 1).sum())
        notes.append(
            f"{label}: {share:.1%} of the {known:,} samples trained on have a text that it also trained on "
            f"under another id, {len(found)} texts in all, {together} of them twice or more in one step. In "
            f"the pool {in_pool:.1%} of the samples share their text."
        )
        rows = [
            [
                f"{row.times}",
                f"{row.together}",
                _text(texts, row.ids[0]),
                cut(", ".join(row.ids), 2 * MAX_NAME),
            ]
            for row in found[:NUM_SHOWN].itertuples()
        ]
        if rows:
            headings = ["times", "most in\none step", "text", "ids"]
            tables.append(
                Table(
                    headings, rows, kinds=["short", "short", "text", "word"], title=f"Most repeated, {label}"
                )
            )
    look_at = (
        "Texts that differ in case and white space alone. A filter that matches residuals should seldom take "
        "two of a kind at once."
    )
    return Section("Duplicates", look_at, tables=tables, notes=notes)


def _table(title: str, samples: pd.DataFrame, run: Run, texts: Optional[pd.DataFrame]) -> Table:
    own = run.kept.drop_duplicates("id").set_index("id")[["source", "damage"]]
    own.index = own.index.astype(str)
    rows, is_told = [], not run.kept["looked_at"].all()  # how often, where it is not how often it was kept
    for name, sample in samples.iterrows():
        about = (
            own.loc[name]
            if name in own.index
            else texts.loc[name]
            if texts is not None and name in texts.index
            else None
        )
        seen = f" of {sample['seen']:.0f}" if run.passed is not None else ""
        rows.append(
            [
                f"{sample['kept']:.0f}{seen}" if sample["seen"] else "-",
                *([f"{sample['trained']:.0f}"] if is_told else []),
                _text(texts, name),
                _number(sample["weight"], ".2f"),
                _number(sample["alignment"], "+.2f"),
                "" if about is None else cut(about["source"], MAX_NAME),
                "" if about is None else cut(about["damage"], MAX_NAME),
                cut(name, MAX_NAME),
            ]
        )
    counts = ["kept", *(["trained\non"] if is_told else [])]
    headings = [*counts, "text", "weight", "align-\nment", "source", "damage", "id"]
    kinds = [*["short"] * len(counts), "text", "short", "short", "word", "word", "word"]
    return Table(headings, rows, kinds=kinds, title=title)


def _text(texts: Optional[pd.DataFrame], name: str) -> str:
    if texts is None or name not in texts.index:
        return "-"
    text = texts.at[name, "text"]
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}\u2026"


def _number(value: float, form: str) -> str:
    return "-" if pd.isna(value) else format(value, form)
