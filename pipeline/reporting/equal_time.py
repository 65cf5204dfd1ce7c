"""Equal time: what a run's steps cost, and when it is where another run ends.

A run pays for its steps, and from its very start for what it had to prepare once: retrieval, features
(setup.json). Evaluations, loading and the self-check are left out: all runs have the same.

A clock is ``cpu``, CPU seconds of all ranks together, which other programs on the machine disturb little, or
``wall``.
"""

from typing import Optional

import numpy as np

from pipeline.reporting.records import Run
from pipeline.reporting.summary import held_out
from pipeline.settings import draws_at_random

CLOCKS = {"cpu": "cpu_seconds", "wall": "seconds"}
"""Name of a clock -> that of its seconds, in a curve as in setup.json."""
STEP_SECONDS = {"cpu": "cpu_seconds", "wall": "seconds_total"}
"""Name of a clock -> that of its seconds in the table of steps."""


def seconds_after(run: Run, clock: str) -> Optional[np.ndarray]:
    """Seconds that the run has cost after 0, 1, 2, ... steps; the first value is what it prepared once. None
    where a step has no seconds."""
    of_steps = run.steps.sort_values("step")[STEP_SECONDS[clock]].astype(float)
    if of_steps.isna().any():
        return None
    return run.setup[CLOCKS[clock]] + np.concatenate([[0.0], of_steps.cumsum()])


def clock_of(runs: list[Run]) -> str:
    """The clock that serves all runs: cpu where all have recorded it and none trained on another device,
    whose work is no work of a CPU."""
    on_cpu = all(run.environment.get("device", "cpu") == "cpu" for run in runs)
    return "cpu" if on_cpu and all(seconds_after(run, "cpu") is not None for run in runs) else "wall"


def curve_of(run: Run) -> dict:
    """Held-out loss by steps and by seconds: lists ``step`` and ``loss``, and a list for each clock, None
    where it was not recorded."""
    points = held_out(run)
    steps = points["step"].to_numpy(int)
    clocks = {CLOCKS[clock]: seconds_after(run, clock) for clock in CLOCKS}
    return {
        "step": steps.tolist(),
        "loss": points["loss"].astype(float).tolist(),
        **{name: None if after is None else after[steps].tolist() for name, after in clocks.items()},
    }


def at_seconds(curve: dict, clock: str, seconds: float) -> float:
    """Held-out loss after ``seconds``, on straight lines between evaluations; after the last one, its
    loss."""
    return float(np.interp(seconds, curve[CLOCKS[clock]], curve["loss"]))


def seconds_to(curve: dict, clock: str, loss: float) -> Optional[float]:
    """Seconds until the held-out loss is down to ``loss`` for the first time, on straight lines between
    evaluations; None if it never is."""
    times, losses = curve[CLOCKS[clock]], curve["loss"]
    if losses[0] <= loss:
        return times[0]
    for i in range(1, len(losses)):
        if losses[i] <= loss:
            return float(
                times[i - 1]
                + (losses[i - 1] - loss) / (losses[i - 1] - losses[i]) * (times[i] - times[i - 1])
            )
    return None


def time_to_random(curve: dict, random: dict, clock: str) -> tuple[float, bool]:
    """Seconds until the final loss of ``random``, as a share of its whole time, and True; where the curve
    never gets there the share that it has used at its end, and False."""
    whole = random[CLOCKS[clock]][-1]
    seconds = seconds_to(curve, clock, random["loss"][-1])
    return (curve[CLOCKS[clock]][-1] if seconds is None else seconds) / whole, seconds is not None


def step_price(curve: dict, random: dict, clock: str) -> float:
    """Mean cost of a step over that of a step of ``random``, without what was prepared once."""

    def of_a_step(curve: dict) -> float:
        seconds, steps = curve[CLOCKS[clock]], curve["step"]
        return (seconds[-1] - seconds[0]) / (steps[-1] - steps[0])

    return of_a_step(curve) / of_a_step(random)


def against_random(mine: Run, runs: list[Run]) -> dict[str, Optional[float]]:
    """``step_price`` and ``time_to_random`` of a run against the one among the others that draws at random.

    Both are None where there is none, or fewer than two evaluations; the time also where the run never gets
    to random's final loss.
    """
    random = next((run for run in runs if run is not mine and draws_at_random(run.config)), None)
    nothing: dict[str, Optional[float]] = {"step_price": None, "time_to_random": None}
    if random is None or min(len(held_out(run)) for run in (mine, random)) < 2:
        return nothing
    clock, curve, of_random = clock_of([mine, random]), curve_of(mine), curve_of(random)
    if curve[CLOCKS[clock]] is None or of_random[CLOCKS[clock]] is None:
        return nothing
    share, is_reached = time_to_random(curve, of_random, clock)
    price = step_price(curve, of_random, clock)
    return {"step_price": price, "time_to_random": share if is_reached else None}
