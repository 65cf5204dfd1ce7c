"""Cells taken together: means with their standard errors, differences in pairs, ranks, and the loss that each
variant reaches in equal time.

Cells of one (target, seed) saw the same candidates, so variants are compared in pairs, where what the cells
share cancels.
"""

from dataclasses import dataclass
from operator import itemgetter
from typing import Optional

import numpy as np
import pandas as pd

OURS, RANDOM = "filter_then_weight", "random"
PAIR = ["target", "seed"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error; each is None where there are too few values for it."""

    mean: Optional[float]
    error: Optional[float]


def estimate(values: pd.Series) -> Estimate:
    """Mean over targets of the means over seeds, and its standard error over seeds after the targets' means
    are removed.

        r_ts = x_ts - mean_s x_ts
        e_s = mean_t r_ts
        error = std_s(e_s) / sqrt(seeds), with seeds - 1 under the variance

    Targets are the benchmark, not a sample of one, so they add no error; and what a seed does to several
    targets at once does not average out over them. With all cells there the error is the standard error of
    the seeds' means over targets.

    Args:
        values: indexed by target and seed; missing ones are NaN or absent.
    """
    values = values.dropna().astype(float)
    if values.empty:
        return Estimate(None, None)
    of_target = values.groupby("target").mean()
    residual = (
        (values - of_target.reindex(values.index.get_level_values("target")).to_numpy())
        .groupby("seed")
        .mean()
    )
    return Estimate(float(of_target.mean()), float(residual.sem()) if len(residual) > 1 else None)


def at_seconds(curve: dict, seconds: float) -> float:
    """Held-out loss after ``seconds`` of training, on straight lines between evaluations; after the last one,
    its loss."""
    return float(np.interp(seconds, curve["seconds"], curve["loss"]))


def seconds_to(curve: dict, loss: float) -> Optional[float]:
    """Training time until the held-out loss is down to ``loss`` for the first time, on straight lines between
    evaluations; None if it never is."""
    times, losses = curve["seconds"], curve["loss"]
    if losses[0] <= loss:
        return 0.0
    for i in range(1, len(losses)):
        if losses[i] <= loss:
            return float(
                times[i - 1]
                + (losses[i - 1] - loss) / (losses[i - 1] - losses[i]) * (times[i] - times[i - 1])
            )
    return None


@dataclass(frozen=True)
class Row:
    """One variant over all cells, or over those of one target."""

    variant: str
    cells: int
    auc: Estimate
    final: Estimate
    accuracy: Estimate
    vs_random: Estimate
    """Mean of auc minus random's, pair by pair; below 0 is better than random."""
    vs_baseline: Estimate
    """Mean of auc minus the best baseline's, pair by pair."""
    rank: Estimate
    """Place by auc among the variants, 1 the best; mean and standard error over targets."""
    in_random_time: Estimate
    """Held-out loss when as much training time has passed as random took for its whole run."""
    time_to_random: Optional[float]
    """Training time until random's final loss, in units of random's whole run: the median over pairs; None if
    most never get there."""
    num_reached: int
    """Cells that reached random's final loss."""
    step_seconds: Optional[float]
    selection_share: Optional[float]


def reference_of(cells: pd.DataFrame) -> Optional[str]:
    """The variant that draws at random."""
    names = cells.loc[cells["method"] == RANDOM, "variant"]
    return None if names.empty else names.iloc[0]


def baselines_of(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells that ours is compared with on equal terms: all but ``full``, which trains on all candidates."""
    return cells[~cells["method"].isin([OURS, "full"])]


def best_baseline(cells: pd.DataFrame) -> str:
    """The baseline variant with the lowest mean auc; the first variant where there is no baseline, or where
    ours has several settings (an ablation)."""
    baselines = baselines_of(cells)
    if baselines.empty or cells.loc[cells["method"] == OURS, "variant"].nunique() > 1:
        return cells["variant"].iloc[0]
    means = {
        variant: estimate(own.set_index(PAIR)["auc"]).mean
        for variant, own in baselines.groupby("variant", sort=False)
    }
    return min(means.items(), key=itemgetter(1))[0]


def rows_of(
    cells: pd.DataFrame, variants: list[str], reference: Optional[str], baseline: Optional[str]
) -> list[Row]:
    """One row for each variant. ``cells`` has one cell a line, with the fields of ``measures.measure``."""
    by_variant = {variant: cells[cells["variant"] == variant].set_index(PAIR) for variant in variants}
    ranks = ranks_of(cells, variants)
    return [_row(variant, by_variant, reference, baseline, ranks) for variant in variants]


def ranks_of(cells: pd.DataFrame, variants: list[str]) -> pd.DataFrame:
    """Place of each variant (column) at each target (row) by its mean auc over seeds; targets that lack a
    variant are left out."""
    means = cells.pivot_table(index="target", columns="variant", values="auc", aggfunc="mean", sort=False)
    return means.reindex(columns=variants).dropna().rank(axis=1)


def _row(
    variant: str, by_variant: dict, reference: Optional[str], baseline: Optional[str], ranks: pd.DataFrame
) -> Row:
    own = by_variant[variant]

    def difference(other: Optional[str]) -> Estimate:
        if other is None or other == variant:
            return Estimate(None, None)
        return estimate(own["auc"] - by_variant[other]["auc"])

    in_time, times = pd.Series(dtype=float), []
    if reference is not None:
        random = by_variant[reference]
        pairs = own.index.intersection(random.index)
        losses = [at_seconds(own.at[pair, "curve"], random.at[pair, "seconds"]) for pair in pairs]
        in_time = pd.Series(losses, index=pairs, dtype=float)
        reached = [
            (seconds_to(own.at[pair, "curve"], random.at[pair, "final"]), random.at[pair, "seconds"])
            for pair in pairs
        ]
        times = [np.inf if seconds is None else seconds / whole for seconds, whole in reached]
    median = float(np.median(times)) if times else np.inf
    rank = ranks[variant]
    return Row(
        variant=variant,
        cells=len(own),
        auc=estimate(own["auc"]),
        final=estimate(own["final"]),
        accuracy=estimate(own["accuracy"]),
        vs_random=difference(reference),
        vs_baseline=difference(baseline),
        rank=Estimate(
            float(rank.mean()) if len(rank) else None, float(rank.sem()) if len(rank) > 1 else None
        ),
        in_random_time=estimate(in_time),
        time_to_random=median if np.isfinite(median) else None,
        num_reached=int(np.isfinite(times).sum()) if times else 0,
        step_seconds=_mean(own["step_seconds"]),
        selection_share=_mean(own["selection_share"]),
    )


def _mean(values: pd.Series) -> Optional[float]:
    values = values.dropna().astype(float)
    return None if values.empty else float(values.mean())
