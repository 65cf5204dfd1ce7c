# C candidates, T tokens
"""Measure what selection costs: time and peak memory of scoring + Gram + solve for C candidates, over a plain
forward and backward.

    python -m benchmarks.step_cost [--backend exact|projected|factored] [--quick]
    deepspeed --num_gpus 2 --module benchmarks.step_cost          # the same on 2 ranks

Both run over the same candidates on one engine and alternate; every token is supervised and every sample has
T tokens, so nothing is saved by padding or short answers.  The target's own forward and backward is another M
samples; it is measured as a stage of its own, and ``time_ratio_with_target`` includes it.  The last line
printed is JSON.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe
from pipeline.config import Config, SelectionConfig
from pipeline.data.collate import collate
from pipeline.data.sample import Sample
from pipeline.data.targets import TargetSet
from pipeline.hook import SelectionHook
from pipeline.scoring.loss import causal_logits, per_sample_loss
from pipeline.step.look import Look
from pipeline.training.engine import start_process_group
from pipeline.training.prepare import load, prepare

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default=".cache/smollm2-135m", help="folder or hub name (default: %(default)s)"
    )
    parser.add_argument("--candidates", type=int, default=16, help="C, over all ranks")
    parser.add_argument("--targets", type=int, default=4, help="M, over all ranks")
    parser.add_argument("--tokens", type=int, default=256, help="T of every sample")
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument(
        "--backend", default="exact", choices=["exact", "projected", "factored"], help="of the Gram matrix"
    )
    parser.add_argument(
        "--projection-size",
        type=int,
        default=SelectionConfig.projection_size,
        help="k of projected and factored",
    )
    parser.add_argument("--last-blocks", type=int, default=0, help="score only these many; 0 for all")
    parser.add_argument("--stage", type=int, default=2, help="ZeRO stage")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of measurements")
    parser.add_argument("--cases", nargs="+", default=["lora", "full"], choices=["lora", "full"])
    parser.add_argument(
        "--output",
        type=Path,
        help="result file (default: benchmarks/results/step_cost_<device>_<backend>.json; none with --quick)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="C = 2, M = 1, T = 64, 1 round: a check of the order of magnitude",
    )
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.candidates, arguments.targets, arguments.tokens, arguments.rounds = 2, 1, 64, 1

    rank, world_size, device = start_process_group(600)
    result: dict[str, Any] = {
        "settings": {k: v for k, v in vars(arguments).items() if k not in ("output", "local_rank")},
        "world_size": world_size,
    }
    result["settings"]["cases"] = list(arguments.cases)
    for case in arguments.cases:
        result[case], result["attention"] = measure(case, arguments, rank, world_size, device)
        if rank == 0:
            print(f"{case}: {json.dumps(result[case])}", flush=True)
    if rank == 0:
        result["machine"] = describe()
        if not arguments.quick:
            ranks = f"_{world_size}_ranks" if world_size > 1 else ""
            depth = f"_last_{arguments.last_blocks}" if arguments.last_blocks else ""
            path = (
                arguments.output
                or RESULTS / f"step_cost_{device.type}_{arguments.backend}{depth}{ranks}.json"
            )
            path.write_text(json.dumps(result, indent=1) + "\n")
            print(f"written to {path}")
        brief = {
            case: {k: result[case][k] for k in ("time_ratio", "memory_ratio")} for case in arguments.cases
        }
        print(
            json.dumps({**brief, "attention": result["attention"], "backend": arguments.backend}), flush=True
        )
    sys.stdout.flush()
    os._exit(0)  # leaving through the interpreter with gloo threads alive aborts now and then


def in_process(arguments: list) -> dict:
    """The result file of one measurement with these arguments, in a process of its own, where memory starts
    afresh."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "step_cost.json"
        command = [
            sys.executable,
            "-m",
            "benchmarks.step_cost",
            *map(str, arguments),
            "--output",
            str(output),
        ]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return json.loads(output.read_text())


def measure(case: str, arguments, rank: int, world_size: int, device: torch.device) -> tuple[dict, str]:
    engine, attention = build(case, arguments, world_size)
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.candidates + arguments.targets, arguments.tokens)
    tokens = random_tokens(engine.module, shape, generator).tolist()
    samples = [Sample(ids, ids) for ids in tokens]
    targets = TargetSet(samples[arguments.candidates :], arguments.targets, seed=0)
    share = arguments.candidates // world_size
    own = samples[rank * share : (rank + 1) * share]
    settings = SelectionConfig(
        candidates_per_step=arguments.candidates,
        keep_per_step=max(1, arguments.candidates // 4),
        warmup_steps=0,
        backend=arguments.backend,
        projection_size=arguments.projection_size,
        last_blocks=arguments.last_blocks,
    )
    hook = SelectionHook.attach(engine, targets, settings, pad_token_id=0)
    input_ids_CT, labels_CT = collate(own, 0, device=device)

    def plain() -> None:
        engine.backward(per_sample_loss(causal_logits(engine, input_ids_CT), labels_CT).mean())

    looks: list[Look] = []

    def scoring() -> None:
        looks.append(hook.select(own))

    # until all have a second moment: lora_A has no gradient in the first update
    for _ in range(2 if case == "lora" else 1):
        plain()
        engine.step()
    # and a warm-up for the clock
    peak = {"plain": peak_bytes(plain, device), "scoring": peak_bytes(scoring, device)}
    if device.type == "cuda":  # the hook starts the peak anew at every stage
        peak["scoring"] = max(peak["scoring"], *looks[-1].peak_bytes.values())
    seconds: dict[str, list[float]] = {"plain": [], "scoring": [], "target": []}
    stages = []
    for _ in range(arguments.rounds):
        seconds["plain"].append(timed(plain, device))
        engine.step()
        both = timed(scoring, device)
        assert not looks[-1].is_warmup
        stages.append(looks[-1].seconds)
        seconds["target"].append(stages[-1]["target"])
        seconds["scoring"].append(both - stages[-1]["target"])
    ratios = [s / p for s, p in zip(seconds["scoring"], seconds["plain"])]
    with_target = [(s + m) / p for s, m, p in zip(seconds["scoring"], seconds["target"], seconds["plain"])]
    found = {
        "time_ratio": round(statistics.median(ratios), 3),
        "time_ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "time_ratio_with_target": round(statistics.median(with_target), 3),
        "memory_ratio": round(peak["scoring"] / peak["plain"], 3),
        "peak_gib": {name: round(value / 2**30, 3) for name, value in peak.items()},
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "stages": {
            name: round(statistics.median(stage.get(name, 0.0) for stage in stages), 4) for name in stages[0]
        },
        "scored_parameters": sum(
            out_features * in_features for out_features, in_features in hook.owners.shapes.values()
        ),
    }
    engine.destroy()
    return found, attention


def build(case: str, arguments, world_size: int):
    """``(engine, attention kernel)``."""
    config = Config()
    config.model.name, config.model.lora_rank = arguments.model, arguments.lora_rank if case == "lora" else 0
    config.training.micro_batch_size = arguments.candidates // world_size
    config.selection.candidates_per_step = config.selection.keep_per_step = arguments.candidates
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"zero_optimization": {"stage": arguments.stage}}, file)
        file.flush()
        config.deepspeed = file.name
        prepared = prepare(config)
    loaded = load(config, prepared)
    return loaded.engine, loaded.attention.kernel


def random_tokens(model, shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Token ids, past those that tokenizers keep for themselves; of a small model, as many as it knows."""
    vocab_size = model.config.get_text_config().vocab_size
    return torch.randint(100, min(40_000, vocab_size), shape, generator=generator)


def timed(action, device: torch.device) -> float:
    """Seconds of ``action``, in the state in which training would leave the allocator."""
    begin = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def peak_bytes(action, device: torch.device) -> int:
    """Most memory of the process, or of the card, while ``action`` runs."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        action()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free now would count as used
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory starts anew
    action()
    peak = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(peak.split()[1]) * 1024


if __name__ == "__main__":
    main()
