# C candidates, T tokens
"""Compare predictions of ``pipeline.plan`` with measured steps on this machine.

    python -m benchmarks.plan_error [--cases full lora] [--backends exact projected factored]
                                    [--candidates 4] [--tokens 128]

Before each run of ``benchmarks.step_cost`` the machine is measured anew
(``pipeline.planning.hardware.measure``), since its speed may vary.  Results go to
benchmarks/results/plan_error.json, which ``pipeline.plan`` quotes.  The last line printed is JSON.
"""

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path

from benchmarks.step_cost import in_process
from pipeline.config import Backend, ModelConfig, SelectionConfig, TrainingConfig
from pipeline.planning import forecast
from pipeline.planning.hardware import Hardware, measure
from pipeline.planning.model_shapes import read_shapes
from pipeline.planning.passes import Run

OUTPUT = Path(__file__).parent / "results" / "plan_error.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default=".cache/smollm2-135m", help="folder or hub name (default: %(default)s)"
    )
    parser.add_argument("--cases", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    parser.add_argument("--backends", nargs="+", default=list(forecast.BACKENDS), choices=forecast.BACKENDS)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128, help="of every sample")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    compared = []
    for case in arguments.cases:
        for backend in arguments.backends:
            hardware = measure()
            options = {"model": arguments.model, "cases": case, "backend": backend}
            options |= {"candidates": arguments.candidates, "tokens": arguments.tokens}
            result = in_process([f"--{name}={value}" for name, value in options.items()])
            compared.append(compare(result, case, backend, hardware))
            shown = {key: compared[-1][key] for key in ("case", "backend", "predicted_over_measured")}
            print(json.dumps(shown), flush=True)
    found = {**summary(compared), "machine": result["machine"], "compared": compared}
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {arguments.output}")
    print(json.dumps(summary(compared)))


def compare(result: dict, case: str, backend: Backend, hardware: Hardware) -> dict:
    """Predicted and measured seconds of one result of ``step_cost``, and the time of selection over the plain
    pass."""
    settings, measured = result["settings"], result[case]
    shapes = read_shapes(
        ModelConfig(name=settings["model"], lora_rank=settings["lora_rank"] if case == "lora" else 0)
    )
    run = Run(
        selection=SelectionConfig(
            candidates_per_step=settings["candidates"],
            keep_per_step=max(1, settings["candidates"] // 4),
            target_per_step=settings["targets"],
            backend=backend,
            last_blocks=settings.get("last_blocks", 0),
        ),
        training=TrainingConfig(micro_batch_size=settings["candidates"]),
        world_size=result["world_size"],
        zero_stage=settings["stage"],
        tokens=settings["tokens"],
        element_size=4 if hardware.device_type == "cpu" else 2,
        trained_samples=settings["candidates"],
        device_type=hardware.device_type,
    )
    plain, selection = forecast.plain(shapes, run, hardware), forecast.selection(shapes, run, hardware)
    predicted = {
        "plain": plain.total,
        "scoring": selection.without_target,
        "target": selection.seconds["target"],
    }
    seconds = {name: statistics.median(measured["seconds"][name]) for name in predicted}
    found = {
        "predicted_seconds": predicted,
        "measured_seconds": seconds,
        "predicted_over_measured": {name: predicted[name] / seconds[name] for name in predicted},
        "ratio_to_plain": {
            "predicted": selection.without_target / plain.total,
            "measured": measured["time_ratio"],
        },
        "predicted_stages": {"plain": plain.seconds, "selection": selection.seconds},
        "measured_stages": measured["stages"],
    }
    return {
        "case": case,
        "backend": backend,
        "settings": settings,
        **rounded(found),
        "hardware": rounded(asdict(hardware)),
    }


def summary(compared: list[dict]) -> dict:
    """Range of predicted over measured time, and the same of the ratio to the plain pass, which does not
    depend on the machine's speed."""
    times = [ratio for one in compared for ratio in one["predicted_over_measured"].values()]
    to_plain = [one["ratio_to_plain"]["predicted"] / one["ratio_to_plain"]["measured"] for one in compared]
    return rounded(
        {
            "smallest_ratio": min(times),
            "largest_ratio": max(times),
            "smallest_ratio_to_plain": min(to_plain),
            "largest_ratio_to_plain": max(to_plain),
        }
    )


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
