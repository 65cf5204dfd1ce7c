"""The sentences that stand first on a page: the result, its reference, its price, and how far to trust it."""

from operator import attrgetter

from pipeline.reporting.equal_time import against_random
from pipeline.reporting.records import Run
from pipeline.reporting.summary import Summary, held_out
from pipeline.settings import draws_at_random


def verdict(runs: list[Run], summaries: list[Summary]) -> str:
    """The verdict on the run that ``main_run`` names, against one that draws at random from the whole pool
    where there is such a run, else against the best of the others."""
    mine = main_run(summaries)
    others = [s for s in summaries if s is not mine and s.loss_after is not None]
    if mine.loss_after is None:
        return f"{_progress(runs, summaries, mine)} {_unmeasured(mine)}"
    if not others:
        return f"{_progress(runs, summaries, mine)} {_alone(summaries, mine)}"
    at_random = [s for s in others if draws_at_random(runs[summaries.index(s)].config)]
    reference = at_random[0] if at_random else min(others, key=attrgetter("loss_after"))
    reasons = _incomparable(*(runs[summaries.index(s)] for s in (mine, reference)))
    if reasons:
        return (
            f"{mine.label} ends at a held-out loss of {mine.loss_after:.3f}, {reference.label} at "
            f"{reference.loss_after:.3f}, but the two cannot be compared: {'; '.join(reasons)}."
        )
    parts = [
        _difference(mine, reference),
        _price(mine, reference),
        _equal_time(mine, reference, runs[summaries.index(mine)], runs[summaries.index(reference)]),
        _damage(mine, reference),
        TRUST,
    ]
    return " ".join(filter(None, parts))


TRUST = (
    "It is one run of each: another seed alone moves such numbers, and python -m pipeline.compare, with "
    "several, tells by how much."
)


def main_run(summaries: list[Summary]) -> Summary:
    """The run of the verdict: the first of filter_then_weight, else the first of all."""
    return next((s for s in summaries if s.method == "filter_then_weight"), summaries[0])


def change(difference: float, of: float) -> str:
    """A difference in words, and as a share of ``of``: '0.599 lower (-24.9%)'."""
    word = "lower" if difference < 0 else "higher"
    return f"{abs(difference):.3f} {word} ({difference / of:+.1%})"


def times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio < 9.95 else f"{ratio:.0f} times"


def _progress(runs: list[Run], summaries: list[Summary], mine: Summary) -> str:
    run = runs[summaries.index(mine)]
    how = _how(run)
    if mine.loss_after is None:
        return f"{mine.label} has trained for {mine.num_steps} steps{how}."
    assert mine.loss_before is not None
    return (
        f"{mine.label}: the held-out loss went from {mine.loss_before:.3f} to {mine.loss_after:.3f} "
        f"({(mine.loss_after - mine.loss_before) / mine.loss_before:+.1%}) in {mine.num_steps} steps{how}."
    )


def _how(run: Run) -> str:
    """How a run came to its samples, as the end of a sentence; '' where that was not recorded."""
    is_scored = run.steps["scored"] == 1
    looks = run.steps[is_scored] if is_scored.any() else run.steps
    kept, looked_at = looks["num_kept"].median(), looks["num_candidates"].median()
    if kept != kept or looked_at != looked_at:
        return ""
    if kept == looked_at:
        return f", training on {kept:.0f} samples a step"
    if len(looks) == len(run.steps):
        return f", keeping {kept:.0f} of {looked_at:.0f} candidates a step"
    taken = run.steps.loc[~is_scored, "num_kept"].median()
    return (
        f": {len(looks)} scored steps kept {kept:.0f} of {looked_at:.0f} candidates each, the others trained "
        f"on {taken:.0f} proposed samples"
    )


def _unmeasured(mine: Summary) -> str:
    if mine.loss_before is None:
        return (
            "No held-out loss was measured (data.test is empty), so nothing can be said about what it has "
            "achieved."
        )
    return (
        f"The held-out loss was measured once ({mine.loss_before:.3f}), so nothing can be said about what it "
        "has achieved."
    )


def _alone(summaries: list[Summary], mine: Summary) -> str:
    if len(summaries) > 1:
        return "No other run here has a held-out loss at its end, so it is compared with nothing."
    return (
        "There is nothing here to compare it with: whether choosing samples has helped takes a second run "
        f"with selection.method = {'random' if mine.method != 'random' else 'filter_then_weight'}, "
        "and a report on both."
    )


def _incomparable(mine: Run, other: Run) -> list[str]:
    """Reasons why the losses of two runs cannot be compared; none where they can."""
    reasons = []
    if len(mine.steps) != len(other.steps):
        reasons.append(f"they took {len(mine.steps)} and {len(other.steps)} steps")
    ends, starts = ([held_out(run).iloc[place] for run in (mine, other)] for place in (-1, 0))
    for field, what in (("num_samples", "samples"), ("num_tokens", "tokens")):
        sizes = [end[field] for end in ends]
        if sizes[0] == sizes[0] and sizes[1] == sizes[1] and sizes[0] != sizes[1]:
            reasons.append(f"the loss was measured on {sizes[0]:,.0f} and on {sizes[1]:,.0f} held-out {what}")
            break
    before = [start["loss"] for start in starts]
    if not reasons and abs(before[0] - before[1]) > 0.01 * before[1]:
        reasons.append(
            f"they began at {before[0]:.3f} and at {before[1]:.3f}, "
            "so from other models or on other held-out data"
        )
    return reasons


def _difference(mine: Summary, reference: Summary) -> str:
    assert mine.loss_after is not None and reference.loss_after is not None
    difference = mine.loss_after - reference.loss_after
    if abs(difference) < 0.0005:
        return (
            f"After {mine.num_steps} steps {mine.label} and {reference.label} have the same held-out loss, "
            f"{mine.loss_after:.3f}.{_on_the_way(mine, reference)}"
        )
    verdict = "" if difference < 0 else " Choosing has not helped here."
    return (
        f"After {mine.num_steps} steps the held-out loss of {mine.label} is {mine.loss_after:.3f} and that "
        f"of {reference.label} {reference.loss_after:.3f}: "
        f"{change(difference, reference.loss_after)}.{verdict}{_on_the_way(mine, reference)}"
    )


def _on_the_way(mine: Summary, reference: Summary) -> str:
    if mine.loss_mean is None or reference.loss_mean is None:
        return ""
    return (
        f" Averaged over the run it is {change(mine.loss_mean - reference.loss_mean, reference.loss_mean)}."
    )


def _price(mine: Summary, reference: Summary) -> str:
    if not (mine.step_seconds and reference.step_seconds):
        return ""
    once = f", and {mine.prepared} took {mine.prepared_seconds:.2f} s once" if mine.prepared else ""
    if mine.step_cpu_seconds and reference.step_cpu_seconds:
        return (
            f"A step took {times(mine.step_cpu_seconds / reference.step_cpu_seconds)} as much CPU time "
            f"({mine.step_cpu_seconds:.2f} s against {reference.step_cpu_seconds:.2f} s), and "
            f"{times(mine.step_seconds / reference.step_seconds)} as long by the clock{once}."
        )
    return (
        f"A step took {times(mine.step_seconds / reference.step_seconds)} as long "
        f"({mine.step_seconds:.2f} s against {reference.step_seconds:.2f} s){once}."
    )


def _equal_time(mine: Summary, reference: Summary, run: Run, random: Run) -> str:
    """What equal time says, where evaluations on the way tell when the reference's final loss was reached."""
    share = against_random(run, [random])["time_to_random"]
    if share is None or mine.loss_mean is None:
        return ""
    return f"With that it reached the final loss of {reference.label} in {share:.2f} of its time."


def _damage(mine: Summary, reference: Summary) -> str:
    if None in (mine.damaged_kept, reference.damaged_kept):
        return ""
    return (
        f"Of the samples it trained on {mine.damaged_kept:.1%} are damaged, of those of {reference.label} "
        f"{reference.damaged_kept:.1%}."
    )
