"""The sentences that stand first on a grid's page: the result, its reference, its price, and how far to trust
it."""

from operator import attrgetter
from typing import Optional

from pipeline.comparison.statistics import OURS, Row
from pipeline.reporting.verdict import times


def main_variant(rows: list[Row], methods: dict[str, str]) -> Row:
    """The variant of the verdict: ours, of several the best by auc; where there is none of ours,
    the first variant."""
    ours = [row for row in rows if methods[row.variant] == OURS and row.auc.mean is not None]
    return (
        min(ours, key=attrgetter("auc.mean"))
        if ours
        else next(row for row in rows if row.auc.mean is not None)
    )


def verdict(
    rows: list[Row],
    methods: dict[str, str],
    reference: Optional[str],
    baseline: str,
    num_targets: int,
    num_seeds: int,
) -> str:
    """The verdict in sentences. Arguments are the fields of ``outcome.Outcome``, and how many targets and
    seeds have finished cells."""
    mine, by_name = main_variant(rows, methods), {row.variant: row for row in rows}
    size = f"{num_targets} target{'s' * (num_targets != 1)} x {num_seeds} seed{'s' * (num_seeds != 1)}"
    opening = f"The held-out loss of {mine.variant}, averaged over training, is {mine.auc.mean:.3f} ({size})"
    several = sum(method == OURS for method in methods.values())
    if several > 1 and methods[mine.variant] == OURS:
        opening += f"; it is the best of {several} variants of {OURS}, chosen after the fact"
    against = {reference: mine.vs_random} | ({baseline: mine.vs_baseline} if baseline != reference else {})
    parts = [
        _difference(name, found.mean, found.error)
        for name, found in against.items()
        if name is not None and name != mine.variant and found.mean is not None
    ]
    if not parts:
        return f"{opening}. There is nothing here to compare it with: add random to the grid's variants."
    sentences = [f"{opening}: {', and '.join(parts)}."]
    if reference and reference != mine.variant:
        sentences.append(_price(mine, by_name[reference]))
    if num_seeds == 1:
        sentences.append("With one seed no error can be given, and differences may be chance.")
    return " ".join(filter(None, sentences))


def _difference(name: str, mean: float, error: Optional[float]) -> str:
    if abs(mean) < 0.0005:
        return f"the same as that of {name}"
    word = "lower" if mean < 0 else "higher"
    if error is None:
        return f"{abs(mean):.3f} {word} than that of {name}"
    chance = ", which is within two standard errors and may be chance" if abs(mean) < 2 * error else ""
    return f"{abs(mean):.3f} \u00b1 {error:.3f} {word} than that of {name}{chance}"


def _price(mine: Row, reference: Row) -> str:
    price, share, loss = mine.step_price.mean, mine.time_to_random.mean, mine.in_random_time.mean
    if price is None or share is None or loss is None or reference.final.mean is None:
        return ""
    ahead = "ahead" if loss < reference.final.mean else "behind"
    reached = (
        f"it reaches the final loss of {reference.variant} after {share:.2f} of its time"
        if mine.num_reached == mine.num_pairs
        else f"{mine.num_reached} of {mine.num_pairs} cells reach the final loss of {reference.variant}"
    )
    return (
        f"A step costs {times(price)} as much as one of {reference.variant}: {reached}, and when as much "
        f"time has passed as {reference.variant} needs for its whole run, {mine.variant} is {ahead} "
        f"({loss:.3f} against {reference.final.mean:.3f})."
    )
