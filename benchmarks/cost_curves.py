# C candidates, T tokens
"""Measure how the cost of selection grows with the number of candidates and with their length.

    python -m benchmarks.cost_curves [--backends exact factored] [--cases full lora]

Each point is a run of ``benchmarks.step_cost`` in a process of its own: scoring + Gram + solve over a plain
forward and backward of the same candidates, and the bare seconds.  Writes a JSON file and a figure.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.step_cost import in_process

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default=".cache/smollm2-135m", help="folder or hub name (default: %(default)s)"
    )
    parser.add_argument(
        "--backends", nargs="+", default=["exact", "factored"], choices=["exact", "projected", "factored"]
    )
    parser.add_argument("--cases", nargs="+", default=["full"], choices=["full", "lora"])
    parser.add_argument(
        "--candidates",
        nargs="+",
        type=int,
        default=[8, 16, 32, 64],
        help="C of the first curve, at --short tokens",
    )
    parser.add_argument("--short", type=int, default=64, help="T of the first curve")
    parser.add_argument(
        "--tokens",
        nargs="+",
        type=int,
        default=[128, 512, 2048],
        help="T of the second curve, for --few candidates",
    )
    parser.add_argument("--few", type=int, default=2, help="C of the second curve")
    parser.add_argument("--rounds", type=int, default=1, help="pairs of measurements of a point")
    parser.add_argument(
        "--output",
        type=Path,
        default=RESULTS / "cost_curves.json",
        help="result file; the figure stands beside it",
    )
    arguments = parser.parse_args()

    shapes = [(c, arguments.short) for c in arguments.candidates] + [
        (arguments.few, t) for t in arguments.tokens
    ]
    points = []
    for case in arguments.cases:
        for backend in arguments.backends:
            for num_candidates, num_tokens in shapes:
                shape = {"backend": backend, "candidates": num_candidates, "tokens": num_tokens}
                constant = {"model": arguments.model, "targets": 1, "rounds": arguments.rounds}
                options = {"cases": case, **shape, **constant}
                result = in_process([f"--{name}={value}" for name, value in options.items()])
                points.append({"case": case, **shape, **result[case]})
                ratios = {name: result[case][name] for name in ("time_ratio", "memory_ratio")}
                print(json.dumps({"case": case, **shape, **ratios}))
    settings = {k: v for k, v in vars(arguments).items() if k != "output"}
    arguments.output.write_text(
        json.dumps({"settings": settings, "points": points, "machine": result["machine"]}, indent=1) + "\n"
    )
    draw(points, arguments).savefig(arguments.output.with_suffix(".png"), dpi=110)
    print(f"written to {arguments.output}, figure beside it")


def draw(points: list[dict], arguments) -> Figure:
    """Figure of time and memory over a plain pass: against C on the left, against T on the right."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    curves = (
        ("candidates", arguments.candidates, "tokens", arguments.short),
        ("tokens", arguments.tokens, "candidates", arguments.few),
    )
    labels = (f"candidates, {arguments.short} tokens each", f"tokens of each of {arguments.few} candidates")
    for row, (measure, title) in zip(
        figure.subplots(2, 2, sharey="row"), (("time_ratio", "time"), ("memory_ratio", "peak memory"))
    ):
        for axis, (varied, values, fixed, constant), label in zip(row, curves, labels):
            for case in arguments.cases:
                for backend in arguments.backends:
                    own = {
                        p[varied]: p[measure]
                        for p in points
                        if (p["case"], p["backend"], p[fixed]) == (case, backend, constant)
                    }
                    axis.plot(
                        values, [own[value] for value in values], marker="o", label=f"{case}, {backend}"
                    )
            axis.margins(y=0.1)
            axis.axhline(1, color="#999999", linewidth=1, linestyle="--")
            axis.set(
                xscale="log",
                xticks=values,
                xlabel=label,
                ylabel=f"{title}, in plain passes",
                ylim=(0, None),
            )
            axis.set_xticks(values, [str(value) for value in values])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    figure.axes[0].legend()
    return figure


if __name__ == "__main__":
    main()
