"""Predict time, memory and traffic of a step for each Gram backend, before any weights are loaded.

python -m pipeline.plan --config launch/recipes/lora.yaml --world_size 8 --hardware h100 [--key value ...]
"""

import json
import sys
from pathlib import Path
from typing import Optional

from jsonargparse import ArgumentParser

from pipeline.config import RANKINGS, Config, build_parser, parse_with, resolved_proposal
from pipeline.planning import forecast, price
from pipeline.planning.forecast import Forecast
from pipeline.planning.hardware import GIB, Hardware, find
from pipeline.planning.model_shapes import ModelShapes, read_shapes
from pipeline.planning.passes import Run
from pipeline.planning.planned_run import plan_run, reference_shapes
from pipeline.planning.price import Features, Price

ERRORS = Path("benchmarks/results/plan_error.json")
STAGES = (
    "forward",
    "backward",
    "attention",
    "loss",
    "weight_gradients",
    "parameters",
    "gradients",
    "update",
    "contraction",
    "metric",
    "gram",
    "exchange",
    "target",
    "solve",
)


def main(arguments: Optional[list[str]] = None) -> int:
    """The exit code: 0, or 2 where a run with these settings would be refused."""
    config, options = parse_with(plan_parser(), arguments, needs_data=False)
    try:
        if options.pool_samples < 0:
            raise ValueError(f"pool_samples is {options.pool_samples}: the smallest value is 0")
        hardware = find(options.hardware)
        shapes = read_shapes(config.model)
        run = plan_run(config, hardware, options.world_size, options.tokens)
        hardware = hardware.computing_in(run.element_size)
        depths = depths_of(config, shapes)
        plain, step = forecast.plain(shapes, run, hardware), forecast.weighted_step(shapes, run, hardware)
        found = forecast.variants(shapes, run, hardware, depths, reference_shapes(config))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    depth = config.selection.last_blocks
    recommended = None
    reason = f"selection.method = {run.method.name} forms no Gram matrix: selection.backend changes nothing"
    if run.method.needs_target:
        recommended, reason = forecast.recommend(
            {backend: f for (backend, d), f in found.items() if d == depth},
            step,
            price.most_scored_share(run),
            hardware,
        )
    features = None
    if price.learns(run):
        num_samples = options.pool_samples
        features = Features(hardware.feature_tokens_per_second, num_samples * run.tokens, num_samples)
    own = found[run.selection.backend if run.method.needs_target else run.method.name, depth]
    priced = price.price(own, step, run, hardware, features)
    say_what(config, shapes, run, hardware)
    say_times(plain, step, found, shapes)
    say_price(priced, features, run, hardware)
    print(
        (f"Recommended: selection.backend = {recommended}. " if recommended else "")
        + f"{reason[0].upper()}{reason[1:]}."
    )
    if advice := forecast.advice(shapes, run):
        print(f"Of {advice}.")
    print(error_so_far())
    if options.json:
        content = as_dict(shapes, run, hardware, plain, step, found, depth, recommended, reason)
        print(json.dumps({**content, "price": price_as_dict(priced, features)}))
    return 0


def plan_parser() -> ArgumentParser:
    parser = build_parser(__doc__.split("\n\n")[0])
    parser.add_argument(
        "--hardware", default="h100", help="h100, h200, a100, or here: measures this machine in a few seconds"
    )
    parser.add_argument("--world_size", type=int, default=0, help="ranks; 0 is one node of the hardware")
    parser.add_argument(
        "--tokens", type=int, default=0, help="tokens of a sample, with any padding; 0 is data.max_tokens"
    )
    parser.add_argument(
        "--pool_samples",
        type=int,
        default=0,
        help="samples of data.pool, for the price of its features; 0: unknown",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON in the last line")
    return parser


def depths_of(config: Config, shapes: ModelShapes) -> list[int]:
    """Numbers of last blocks in the table: all (0), the last quarter, and what the settings say."""
    return sorted(
        {0, max(1, shapes.num_blocks // 4), config.selection.last_blocks},
        key=lambda depth: (depth != 0, -depth),
    )


def say_what(config: Config, shapes: ModelShapes, run: Run, hardware: Hardware) -> None:
    scored = sum(layer.numel for layer in shapes.scored(config.selection.last_blocks))
    s = config.selection
    print(
        f"{shapes.name}: {shapes.parameters:,} parameters in {shapes.num_blocks} blocks, "
        f"{shapes.trained_parameters:,} trained, {scored:,} scored\n"
        f"{run.world_size} x {hardware.name}, ZeRO-{run.zero_stage}"
        f"{' with offloaded optimizer' * run.offloads_optimizer}, {8 * run.element_size} bit; "
        f"C = {s.candidates_per_step}, keep {s.keep_per_step}, target {s.target_per_step}, "
        f"{run.tokens} tokens each; a rank scores {run.rows} candidates, {run.passes[0]} at a time"
    )
    if shapes.uncounted_share > 0.01:
        print(
            f"Not counted: the work of {shapes.uncounted_share:.0%} of the parameters, "
            "which belong to no linear layer."
        )


def say_times(
    plain: Forecast, step: Forecast, found: dict[tuple[str, int], Forecast], shapes: ModelShapes
) -> None:
    stages = [stage for stage in STAGES if any(stage in f.seconds for f in (plain, step, *found.values()))]
    names = {"weight_gradients": "w.grads", "parameters": "params", "contraction": "contract"}
    headings = [names.get(stage, stage) for stage in stages]
    print(
        "\nSeconds by stage; GiB of one rank (peak, and sent to others by selection); x plain without and "
        "with the target's passes; x step: a step that scores so over one that only updates"
    )
    print(
        f"{'':19}"
        + "".join(
            f"{h:>10}" for h in [*headings, "total", "x plain", "x with", "x step", "peak GiB", "sent GiB"]
        )
    )
    rows = {"plain": plain, "weighted step": step}
    rows |= {f"{backend}{f' last {depth}' if depth else ''}": f for (backend, depth), f in found.items()}
    for label, f in rows.items():
        times = [f"{f.seconds[stage]:.4f}" if stage in f.seconds else "" for stage in stages]
        ratios = [f"{f.without_target / plain.total:.2f}", f"{f.total / plain.total:.2f}"]
        is_selection = f is not plain and f is not step
        cells = [
            *times,
            f"{f.total:.4f}",
            *ratios,
            f"{1 + f.total / step.total:.2f}" if is_selection else "",
            f"{f.memory_bytes / GIB:.1f}",
            f"{f.sent_bytes / GIB:.2f}",
        ]
        print(f"{label:19}" + "".join(f"{cell:>10}" for cell in cells))
    print()


def say_price(priced: Price, features: Optional[Features], run: Run, hardware: Hardware) -> None:
    s = run.selection
    if not run.method.looks_at_candidates:
        print(f"selection.method = {run.method.name} scores nothing: a step costs what a plain one does.")
    else:
        number = "{} of".format(" to ".join(f"{n:,}" for n in sorted({*priced.num_scored})))
        cost = " to ".join(f"{ratio:.2f}" for ratio in sorted({*priced.run}))
        how = s.backend if run.method.needs_target else run.method.name
        print(
            f"Over a plain step, one that scores costs {priced.scored:.2f} ({how}), one that does not "
            f"{priced.unscored:.2f}. With selection.score_every = {s.score_every} {number} "
            f"{priced.num_steps:,} steps score: the whole run costs {cost} times as much as one with "
            "selection.method = random."
        )
    if features:
        rate = f"{1e6 / features.tokens_per_second:.2f} s a million tokens on one core of rank 0's processor"
        where = "measured here" if hardware.name == "here" else "measured on an Intel Xeon"
        if features.num_samples:
            size = f"{features.seconds:.1f} s ({rate}, {where}), which the price of the run contains, and "
            size += f"{features.num_bytes / GIB:.2f} GiB"
        else:
            size = f"{rate} ({where}), which the price of the run does not contain (--pool_samples), and "
            size += f"{price.FEATURE_BYTES} bytes a sample"
        print(f"Before it, once, features of data.pool: {size} on rank 0's node, mapped into memory.")
    elif (proposal := resolved_proposal(s)) in RANKINGS:
        print(f"The ranking of data.pool by {proposal}, which is made before the run, is not priced here.")


def error_so_far() -> str:
    """A sentence on how far predictions were from measured runs, from what benchmarks.plan_error left."""
    if not ERRORS.is_file():
        return (
            "These are predictions from counted operations, not yet compared with a run here (python -m "
            "benchmarks.plan_error)."
        )
    found = json.loads(ERRORS.read_text())
    return (
        f"These are predictions from counted operations. Compared with runs on {found['machine']['device']}, "
        f"predicted over measured time was {found['smallest_ratio']:.2f} to {found['largest_ratio']:.2f}, "
        f"and of selection's time over the plain pass's {found['smallest_ratio_to_plain']:.2f} to "
        f"{found['largest_ratio_to_plain']:.2f} ({ERRORS})."
    )


def as_dict(shapes, run, hardware, plain, step, found, depth, recommended, reason) -> dict:
    """The whole plan for --json: ``backends`` at the depth of the settings, ``variants`` every row of the
    table."""

    def one(f: Forecast) -> dict:
        return {
            "seconds": f.seconds,
            "seconds_total": f.total,
            "ratio_to_plain": f.without_target / plain.total,
            "ratio_to_plain_with_target": f.total / plain.total,
            "memory_gib_per_rank": f.memory_bytes / GIB,
            "gib_sent_per_rank": f.sent_bytes / GIB,
        }

    return {
        "model": shapes.name,
        "world_size": run.world_size,
        "hardware": hardware.name,
        "zero_stage": run.zero_stage,
        "tokens": run.tokens,
        "candidates": run.selection.candidates_per_step,
        "last_blocks": depth,
        "plain": one(plain),
        "weighted_step": one(step),
        "backends": {backend: one(f) for (backend, d), f in found.items() if d == depth},
        "variants": [{"backend": backend, "last_blocks": d, **one(f)} for (backend, d), f in found.items()],
        "recommended": recommended,
        "reason": reason,
        "error": error_so_far(),
    }


def price_as_dict(priced: Price, features: Optional[Features]) -> dict:
    """The price for --json, in plain steps; of the run with the fewest scored steps and with the most."""
    found = {
        "scored_step": priced.scored,
        "unscored_step": priced.unscored,
        "steps": priced.num_steps,
        "scored_steps": priced.num_scored,
        "run": priced.run,
    }
    if features:
        is_known = features.num_samples > 0
        found["features"] = {
            "seconds_per_million_tokens": 1e6 / features.tokens_per_second,
            "bytes_per_sample": price.FEATURE_BYTES,
            "seconds": features.seconds if is_known else None,
            "bytes": features.num_bytes if is_known else None,
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
