"""The numbers of one cell, from the records of its run."""

import json
from typing import Any, Optional

import numpy as np
import pandas as pd

from pipeline.comparison.grid import Cell
from pipeline.comparison.running import FINISHED
from pipeline.reporting.equal_time import curve_of
from pipeline.reporting.records import Run
from pipeline.reporting.summary import area_mean, held_out, summarise
from pipeline.selection import registry
from pipeline.settings import draws_at_random


def measure(cell: Cell, run: Run, texts: pd.DataFrame) -> dict:
    """The numbers of a cell as plain values, which go into a result file.

    ``auc`` is the mean held-out loss over the run: trapezoids between the evaluations, the first included,
    over the optimizer steps, divided by their number. All steps of a run train on equally many samples, so
    over samples it is the same. ``curve`` is that of ``equal_time.curve_of``: its seconds begin with what the
    run prepared once.
    """
    points, summary, curve = held_out(run), summarise([run])[0], curve_of(run)
    kept = run.kept[~run.kept["warmup"]]
    losses, accuracy = curve["loss"], points["accuracy"].iloc[-1]
    return {
        "target": cell.target,
        "variant": cell.variant,
        "seed": cell.seed,
        "budget": cell.budget,
        "method": run.method,
        "proposal": run.config["selection"].get("proposal", "uniform"),
        "draws_at_random": draws_at_random(run.config),
        "auc": area_mean(np.array(curve["step"], float), np.array(losses)),
        "before": losses[0],
        "final": losses[-1],
        "accuracy": None if pd.isna(accuracy) else float(accuracy),
        "curve": curve,
        "setup": {**run.setup},
        "step_seconds": summary.step_seconds,
        "selection_share": summary.selection_share,
        "cells_beside": json.loads((cell.folder / FINISHED).read_text())["parallel"] - 1,
        "trained_samples": len(run.kept),
        "trained_tokens": _total(run.steps["trained_tokens"]),
        "fallbacks": summary.num_fallbacks,
        "dropped": summary.num_dropped,
        "kept": {
            "damaged": summary.damaged_kept,
            "damaged_weight": summary.damaged_weight,
            "target_kind": summary.target_kept,
            "by_source": _shares(kept["source"]),
            "by_damage": _shares(kept["damage"]),
            **of_texts(kept["id"], texts),
        },
        "pool": {
            "damaged": summary.damaged_pool,
            "target_kind": summary.target_pool,
            **of_texts(pd.Series(texts.index), texts),
        },
    }


def of_texts(ids: pd.Series, texts: pd.DataFrame) -> dict[str, Optional[float]]:
    """Share of samples whose text stands in the pool more than once, and the mean length in characters."""
    rows = texts.reindex(ids[ids.isin(texts.index)])
    if rows.empty:
        return {"duplicates": None, "length": None}
    return {
        "duplicates": float(rows["is_duplicate"].astype(bool).mean()),
        "length": float(rows["length"].mean()),
    }


def same_candidates(runs: list[Run]) -> None:
    """Compare what ``runs`` of one target and seed kept with what ``full`` saw. Raises ValueError where one
    kept a sample in a step in which ``full`` did not see it.

    ``full`` keeps all candidates, so its records name them. Runs whose candidates are meant to be others are
    left out: with a proposal of their own, another pool, target examples mixed in, steps that score nothing,
    or another number of candidates.
    """

    def stream(run: Run) -> Optional[list[Any]]:
        selection, data = run.config["selection"], run.config.get("data") or {}
        is_plain = selection.get("proposal", "uniform") == "uniform"
        is_mixed = bool((run.config.get("training") or {}).get("target_mix"))
        skips = selection["score_every"] != 1 and registry.get(run.method).looks_at_candidates
        if not is_plain or is_mixed or skips:
            return None
        return [selection["candidates_per_step"], data.get("pool"), data.get("pool_weights")]

    for whole in [run for run in runs if run.method == "full" and stream(run) is not None][:1]:
        seen = whole.kept.groupby("step")["id"].agg(set)
        for run in [run for run in runs if stream(run) == stream(whole)]:
            for step, ids in run.kept.groupby("step")["id"].agg(set).items():
                if strange := ids - seen.get(step, ids):
                    raise ValueError(
                        f"{run.folder}: step {step} trained on {min(strange)}, "
                        f"which {whole.folder} did not look at"
                    )


def _shares(values: pd.Series) -> dict[str, float]:
    return {str(name): float(share) for name, share in values.value_counts(normalize=True).items()}


def _total(values: pd.Series) -> Optional[int]:
    return int(values.sum()) if values.notna().all() else None
