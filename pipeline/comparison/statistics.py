"""Cells taken together: means with their standard errors, differences in pairs, ranks, and what each variant
reaches in equal time.

Cells of one (target, seed) begin alike and see candidates in the same order where nothing but the method
differs, so variants are compared in pairs, where what the cells share cancels.
"""

from dataclasses import dataclass
from operator import itemgetter
from typing import Optional

import pandas as pd

from pipeline.reporting.equal_time import CLOCKS, at_seconds, step_price, time_to_random

OURS = "filter_then_weight"
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
    """Held-out loss when as much time has passed as random took for its whole run."""
    time_to_random: Estimate
    """Time until random's final loss, in units of random's whole run. A pair in which the variant never gets
    there counts with the share that it has used at its end, so with such a pair the mean is a lower bound."""
    num_reached: int
    """Pairs in which the variant reaches random's final loss."""
    num_pairs: int
    """Pairs of a cell of this variant and one of random's."""
    step_price: Estimate
    """Mean cost of a step in units of random's, without what was prepared once."""
    prepared: Estimate
    """Cost of what was prepared once, in units of random's whole run."""
    wall_time_to_random: Estimate
    """``time_to_random`` by wall clock."""
    wall_step_price: Estimate
    step_seconds: Optional[float]
    """Mean wall time of a step, over all cells."""
    selection_share: Optional[float]
    trained_tokens: Optional[float]
    """Mean over cells."""


def reference_of(cells: pd.DataFrame) -> Optional[str]:
    """The variant that draws at random from the whole pool."""
    names = cells.loc[cells["draws_at_random"], "variant"]
    return None if names.empty else names.iloc[0]


def baselines_of(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells that ours is compared with on equal terms: all but ``full``, which trains on all candidates, and
    those whose proposal is an oracle."""
    return cells[~cells["method"].isin([OURS, "full"]) & (cells["proposal"] != "oracle")]


def best_baseline(cells: pd.DataFrame) -> str:
    """The baseline variant with the lowest mean auc; the first variant where there is no baseline, or where
    it is ours and has further settings beside it (an ablation)."""
    baselines, first = baselines_of(cells), cells["variant"].iloc[0]
    ours = cells.loc[cells["method"] == OURS, "variant"].unique()
    if baselines.empty or (len(ours) > 1 and first in ours):
        return first
    means = {
        variant: estimate(own.set_index(PAIR)["auc"]).mean
        for variant, own in baselines.groupby("variant", sort=False)
    }
    return min(means.items(), key=itemgetter(1))[0]


def rows_of(
    cells: pd.DataFrame, variants: list[str], reference: Optional[str], baseline: Optional[str], clock: str
) -> list[Row]:
    """One row for each variant. ``cells`` has one cell a line, with the fields of ``measures.measure``;
    ``clock`` is one of ``equal_time.CLOCKS``."""
    by_variant = {variant: cells[cells["variant"] == variant].set_index(PAIR) for variant in variants}
    ranks = ranks_of(cells, variants)
    return [_row(variant, by_variant, reference, baseline, ranks, clock) for variant in variants]


def ranks_of(cells: pd.DataFrame, variants: list[str]) -> pd.DataFrame:
    """Place of each variant (column) at each target (row) by its mean auc over seeds; targets that lack a
    variant are left out."""
    means = cells.pivot_table(index="target", columns="variant", values="auc", aggfunc="mean", sort=False)
    return means.reindex(columns=variants).dropna().rank(axis=1)


def crossings(own: pd.DataFrame, random: Optional[pd.DataFrame], clock: str) -> pd.DataFrame:
    """What each pair of a cell and random's says in equal time: a line a pair. Both tables are indexed by
    pair."""
    pairs = own.index[:0] if random is None else own.index.intersection(random.index)
    lines = []
    for pair in pairs:
        curve, of_random = own.at[pair, "curve"], random.at[pair, "curve"]  # type: ignore[union-attr]
        whole = of_random[CLOCKS[clock]][-1]
        share, is_reached = time_to_random(curve, of_random, clock)
        lines.append(
            {
                "loss": at_seconds(curve, clock, whole),
                "time_to_random": share,
                "is_reached": is_reached,
                "step_price": step_price(curve, of_random, clock),
                "prepared": curve[CLOCKS[clock]][0] / whole,
                "whole": curve[CLOCKS[clock]][-1] / whole,
            }
        )
    names = ["loss", "time_to_random", "is_reached", "step_price", "prepared", "whole"]
    return pd.DataFrame(lines, index=pairs, columns=names)


def _row(
    variant: str,
    by_variant: dict,
    reference: Optional[str],
    baseline: Optional[str],
    ranks: pd.DataFrame,
    clock: str,
) -> Row:
    own = by_variant[variant]

    def difference(other: Optional[str]) -> Estimate:
        if other is None or other == variant:
            return Estimate(None, None)
        return estimate(own["auc"] - by_variant[other]["auc"])

    random = None if reference is None else by_variant[reference]
    timed, by_wall, rank = crossings(own, random, clock), crossings(own, random, "wall"), ranks[variant]
    if variant == reference:
        # The unit, also where its curve was at its final loss before: outcome.py has a note on that.
        timed, by_wall = (table.assign(time_to_random=1.0) for table in (timed, by_wall))
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
        in_random_time=estimate(timed["loss"]),
        time_to_random=estimate(timed["time_to_random"]),
        num_reached=int(timed["is_reached"].sum()),
        num_pairs=len(timed),
        step_price=estimate(timed["step_price"]),
        prepared=estimate(timed["prepared"]),
        wall_time_to_random=estimate(by_wall["time_to_random"]),
        wall_step_price=estimate(by_wall["step_price"]),
        step_seconds=_mean(own["step_seconds"]),
        selection_share=_mean(own["selection_share"]),
        trained_tokens=_mean(own["trained_tokens"]),
    )


def _mean(values: pd.Series) -> Optional[float]:
    values = values.dropna().astype(float)
    return None if values.empty else float(values.mean())
