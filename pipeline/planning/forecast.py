"""Forecasts from counted work: seconds, GiB and a recommendation."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Optional, get_args

from pipeline.config import Backend
from pipeline.planning import backends, memory, passes
from pipeline.planning.hardware import GIB, Hardware
from pipeline.planning.model_shapes import ModelShapes
from pipeline.planning.passes import Run
from pipeline.planning.work import Compute, Transfer, Work, seconds, sent_bytes

BACKENDS: tuple[Backend, ...] = get_args(Backend)
"""All of them, the most faithful to Adam's metric and to the sum over all gradients first."""
FIDELITY_IS_WORTH = 1.25
"""Longest update with a more faithful backend that is still recommended, as a multiple of the fastest.

An update counts its weighted step too. The number is a choice, not a finding.
"""


@dataclass(frozen=True)
class Forecast:
    """One action of a step, on the rank that needs longest."""

    seconds: dict[str, float]
    """Time of each stage."""
    memory_bytes: float
    """Peak of one rank."""
    sent_bytes: float
    """Mean over ranks, without ZeRO's own traffic, counted as ``Look.bytes_sent`` counts."""

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def without_target(self) -> float:
        return self.total - self.seconds.get("target", 0.0)


def plain(shapes: ModelShapes, run: Run, hardware: Hardware) -> Forecast:
    """Forward and backward of the same candidates as a training step makes them, gradients reduced once."""
    work = _sum(passes.plain(shapes, run, num_samples) for num_samples in run.passes)
    work["gradients"] = passes.reduced_gradients(shapes, run)
    return _forecast(work, run, hardware, memory.training(shapes, run, run.passes), 0.0)


def weighted_step(shapes: ModelShapes, run: Run, hardware: Hardware) -> Forecast:
    """Forward and backward of the kept samples and the optimizer's update."""
    work = _sum(passes.plain(shapes, run, num_samples) for num_samples in run.training_passes)
    num_reductions = len(run.training_passes) if run.zero_stage >= 2 else 1
    work["gradients"] = passes.reduced_gradients(shapes, run) * num_reductions
    work["update"] = passes.update(shapes, run)
    return _forecast(work, run, hardware, memory.training(shapes, run, run.training_passes), 0.0)


def selection(
    shapes: ModelShapes, run: Run, hardware: Hardware, reference: Optional[ModelShapes] = None
) -> Forecast:
    """A look as the method needs it, up to scoring pass, Gram matrix and solve; the target is one stage."""
    work = selection_work(shapes, run, reference)
    sent = sum(sent_bytes(items) for stage, items in work.items() if stage not in ("parameters", "target"))
    if run.method.needs_target:
        sent += sent_bytes(backends.target(shapes, run))
    return _forecast(work, run, hardware, memory.selection(shapes, run, reference), sent)


def selection_work(shapes: ModelShapes, run: Run, reference: Optional[ModelShapes] = None) -> dict[str, Work]:
    """The work of a look, by stage.

    ``reference`` is the reference model's shapes, for a method that needs one; it is whole on every rank.
    """
    if not run.method.looks_at_candidates:
        return {}
    if not run.method.takes_backward:
        parts = [passes.losses(shapes, run, num_samples) for num_samples in run.passes]
        if reference:
            parts += [
                passes.losses(reference, replace(run, zero_stage=0), num_samples)
                for num_samples in run.passes
            ]
        return _sum([*parts, backends.around(run)])
    if run.method.needs_norms:
        parts = [passes.scoring(shapes, run, num_samples) for num_samples in run.passes]
        return _sum([*parts, backends.norms(shapes, run), backends.around(run)])
    target = _sum(passes.scoring(shapes, run, num_samples) for num_samples in run.target_passes)
    return _sum(
        [
            *(passes.scoring(shapes, run, num_samples) for num_samples in run.passes),
            backends.stages(shapes, run),
            {
                "target": [
                    *(item for items in target.values() for item in items),
                    *backends.target(shapes, run),
                ]
            },
            backends.around(run),
        ]
    )


def variants(
    shapes: ModelShapes,
    run: Run,
    hardware: Hardware,
    depths: list[int],
    reference: Optional[ModelShapes] = None,
) -> dict[tuple[str, int], Forecast]:
    """Forecasts by (backend, last_blocks); without a Gram matrix the only one, by (method, last_blocks)."""
    if not run.method.needs_target:
        return {(run.method.name, run.selection.last_blocks): selection(shapes, run, hardware, reference)}
    return {
        (backend, depth): selection(
            shapes,
            replace(run, selection=replace(run.selection, backend=backend, last_blocks=depth)),
            hardware,
        )
        for depth in depths
        for backend in BACKENDS
    }


def recommend(
    found: dict[str, Forecast], step: Forecast, scored_share: float, hardware: Hardware
) -> tuple[str, str]:
    """(backend, reason): the most faithful backend that fits into memory and is nearly as fast as any other.

    An update is timed: a weighted step and its share of a selection, as ``scored_share`` of the steps score.
    """
    fitting = {
        name: forecast for name, forecast in found.items() if forecast.memory_bytes <= hardware.memory_bytes
    }
    available = hardware.memory_bytes / GIB
    if not fitting:
        name = min(found, key=lambda name: found[name].memory_bytes)
        need = found[name].memory_bytes / GIB
        return name, (
            f"none of the three fits: {name} needs least, {need:.1f} of {available:.1f} GiB per rank. Lower "
            "selection.scoring_micro_batch_size, use more ranks, a higher ZeRO stage, or offload"
        )
    update = {name: forecast.total * scored_share + step.total for name, forecast in fitting.items()}
    fastest = min(update, key=lambda name: update[name])
    reasons = []
    for name in BACKENDS:
        if name not in fitting:
            reasons.append(
                f"{name} needs {found[name].memory_bytes / GIB:.1f} of {available:.1f} GiB per rank"
            )
            continue
        times = update[name] / update[fastest]
        if times <= FIDELITY_IS_WORTH:
            merit = {
                "exact": "has Adam's metric and whole gradients",
                "projected": "keeps Adam's metric",
                "factored": "forms no gradient and approximates the metric by rank one",
            }[name]
            cost = (
                "the fastest that fits"
                if name == fastest
                else f"{times:.2f} x as long per update as {fastest}, the fastest"
            )
            return name, "; ".join([*reasons, f"{name} {merit} and is {cost}"])
        reasons.append(
            f"{name} would take {times:.2f} x as long per update as {fastest}, most of it in its "
            f"{_dearest(found[name], found[fastest])}"
        )
    raise AssertionError("the fastest is within any factor of itself")


def advice(shapes: ModelShapes, run: Run) -> str:
    """A setting under which ``exact`` would not wait for one owner after the other; '' where it does not."""
    if not run.method.needs_target:
        return ""
    numel = sum(layer.numel for layer in backends.ways(shapes, run)[0])
    in_turn = backends.turns(run, numel, run.rows)
    if in_turn == 1:
        return ""
    enough = -(-run.rows * numel * run.factor_size // (1 << 20))
    return (
        f"exact at ZeRO-{run.zero_stage}: whole layers belong to one rank, so owners receive and multiply "
        f"one after the other, {in_turn:.1f} x as long. ZeRO-3 splits every layer over all ranks; "
        f"selection.exchange_mib of {enough:,} would hold all owners' rows at once"
    )


def _dearest(forecast: Forecast, other: Forecast) -> str:
    """The stage that makes most of the difference."""
    return max(forecast.seconds, key=lambda stage: forecast.seconds[stage] - other.seconds.get(stage, 0.0))


def _forecast(work: dict[str, Work], run: Run, hardware: Hardware, peak: float, sent: float) -> Forecast:
    found = {stage: seconds(items, hardware, run.world_size) for stage, items in work.items() if items}
    # ZeRO-3 fetches parameters ahead: only the part that computing does not hide costs time.
    if found.get("parameters"):
        hidden = sum(
            found.get(stage, 0.0)
            for stage in ("forward", "backward", "attention", "loss", "weight_gradients")
        )
        found["parameters"] = max(0.0, found["parameters"] - hidden)
    return Forecast(found, peak, sent)


def _sum(parts: Iterable[dict[str, list[Compute | Transfer]]]) -> dict[str, Work]:
    total: dict[str, Work] = {}
    for part in parts:
        for stage, items in part.items():
            total[stage] = [*total.get(stage, []), *items]
    return total
