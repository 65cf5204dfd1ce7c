# C candidates, W ranks
"""Count the traffic of a step as the number of ranks grows, compare it with the planner's formulas, and carry
these to 512 ranks.

    python -m benchmarks.scaling                  # on 1, 2, 4 and 8 processes of this machine; minutes
    python -m benchmarks.scaling --processes 1 2  # on fewer

Counted are the bytes that all ranks together send to each other in one selection, by
``pipeline.ranks.collectives`` as they are sent; ZeRO's own traffic (gradients, gathered parameters) is
DeepSpeed's and is only in the model.  What follows for up to 512 ranks is a model: the formulas that are
compared with the counts, the planner's profile of an H100 node and network (datasheets and assumed shares of
peak), ranks that never wait for each other, links without congestion.  Nothing of it has been measured.
"""

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.machine import describe
from pipeline.config import Config, ModelConfig, SelectionConfig, TrainingConfig
from pipeline.data.sample import Sample
from pipeline.data.targets import TargetSet
from pipeline.hook import SelectionHook
from pipeline.planning import forecast
from pipeline.planning.forecast import BACKENDS
from pipeline.planning.hardware import BUILT_IN
from pipeline.planning.model_shapes import read_shapes
from pipeline.planning.planned_run import plan_run
from pipeline.selection.contract import Selection
from pipeline.step.weighted_step import weighted_step
from pipeline.training.prepare import load, prepare

OUTPUT = Path(__file__).parent / "results" / "scaling.json"
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
STAGES, TOKENS, TARGETS = (2, 3), 10, 8
CANDIDATES_PER_RANK, KEPT_PER_RANK = 8, 1
# The lowest stages at which weights, gradients and Adam state fit on 8 cards (benchmarks/plan_table.py).
MODELLED = {
    "llama-1b, LoRA": ("llama-1b", 16, 0),
    "llama-7b, LoRA": ("llama-7b", 16, 0),
    "llama-7b, all": ("llama-7b", 0, 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--processes", nargs="+", type=int, default=[1, 2, 4, 8], help="numbers of processes to count on"
    )
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="result file; the figure stands beside it"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        small_llama().save_pretrained(model)
        counted = [
            row for world_size in arguments.processes for row in count(world_size, str(model), Path(folder))
        ]
        formulas = [row for world_size in RANKS for row in predicted_small(world_size, str(model))]
    for row in counted:
        print(json.dumps(row))
    found = {
        "counted": counted,
        "formulas": formulas,
        "hardware": "h100",
        "tokens": 2048,
        "candidates_per_rank": CANDIDATES_PER_RANK,
        "modelled": [row for name in MODELLED for row in modelled(name)],
        "machine": describe(),
    }
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    draw(found).savefig(arguments.output.with_suffix(".png"), dpi=110)
    print(f"written to {arguments.output}, figure beside it")


# -- counted --


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
    )
    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False))


def settings(world_size: int, stage: int, model: str) -> Config:
    return Config(
        deepspeed=f"ds_configs/zero{stage}.json",
        model=ModelConfig(name=model, lora_rank=0, attention="eager"),
        selection=SelectionConfig(
            candidates_per_step=2 * world_size,
            keep_per_step=world_size,
            target_per_step=TARGETS,
            warmup_steps=0,
            projection_size=8,
        ),
        training=TrainingConfig(micro_batch_size=1, precision="fp32"),
    )


def predicted_small(world_size: int, model: str) -> list[dict]:
    """Bytes that all ranks together send in one selection under ``settings``, as the planner has them."""
    rows, shapes = [], read_shapes(ModelConfig(name=model, lora_rank=0))
    hardware = replace(BUILT_IN["h100"], device_type="cpu")
    for stage in STAGES:
        run = plan_run(settings(world_size, stage, model), hardware, world_size, TOKENS)
        row = {"world_size": world_size, "zero_stage": stage}
        for backend in BACKENDS:
            changed = replace(run, selection=replace(run.selection, backend=backend))
            row[backend] = round(world_size * forecast.selection(shapes, changed, hardware).sent_bytes)
        rows.append(row)
    return rows


def count(world_size: int, model: str, folder: Path) -> list[dict]:
    """Bytes that real ranks send in it, and whether they are those of ``predicted_small``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")  # the imports are paid for once
    ranks = [
        context.Process(target=_rank, args=(rank, world_size, port, model, folder))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise SystemExit(f"{world_size} processes ended with codes {[process.exitcode for process in ranks]}")
    by_rank = [json.loads((folder / f"{world_size}-{rank}.json").read_text()) for rank in range(world_size)]
    rows = []
    for row, parts in zip(predicted_small(world_size, model), zip(*by_rank)):
        sums = Counter[str]()
        for part in parts:
            sums.update(part)
        counted: dict[str, int] = {name: sums[name] for name in BACKENDS}
        rows.append(
            {
                "world_size": world_size,
                "zero_stage": row["zero_stage"],
                **counted,
                "predicted": {name: row[name] for name in BACKENDS},
                "agrees": all(counted[name] == row[name] for name in BACKENDS),
            }
        )
    return rows


def _rank(rank: int, world_size: int, port: int, model: str, folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    found = []
    for stage in STAGES:
        config = settings(world_size, stage, model)
        engine = load(config, prepare(config)).engine
        own, kept = _samples(2), Selection(np.arange(world_size), np.full(world_size, 1 / world_size))
        weighted_step(engine, own, kept, 0)  # so that there are moments
        counts = {}
        for backend in BACKENDS:
            hook = SelectionHook.attach(
                engine,
                TargetSet(_samples(TARGETS), TARGETS, 0),
                replace(config.selection, backend=backend),
                0,
            )
            counts[backend] = hook.select(own, step=1).bytes_sent
        found.append(counts)
        engine.destroy()
    (folder / f"{world_size}-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)


def _samples(number: int) -> list[Sample]:
    ids = np.random.default_rng(0).integers(1, 60, (number, TOKENS)).tolist()
    return [Sample(row, row) for row in ids]


# -- modelled --


def modelled(name: str) -> list[dict]:
    """Seconds of selection and of the weighted step, with 8 candidates a rank, of which one is kept."""
    model, lora_rank, stage = MODELLED[name]
    shapes, rows = read_shapes(ModelConfig(name=model, lora_rank=lora_rank)), []
    for world_size in RANKS:
        config = Config(
            deepspeed=f"ds_configs/zero{stage}.json",
            model=ModelConfig(name=model, lora_rank=lora_rank, gradient_checkpointing=True),
            selection=SelectionConfig(
                candidates_per_step=CANDIDATES_PER_RANK * world_size,
                keep_per_step=KEPT_PER_RANK * world_size,
                target_per_step=32,
                scoring_micro_batch_size=4,
                exchange_mib=512,
            ),
            training=TrainingConfig(micro_batch_size=1),
        )
        hardware = BUILT_IN["h100"]
        run = plan_run(config, hardware, world_size, tokens=2048)
        step = forecast.weighted_step(shapes, run, hardware)
        for (backend, _), found in forecast.variants(shapes, run, hardware, [0]).items():
            rows.append(
                {
                    "case": name,
                    "backend": backend,
                    "world_size": world_size,
                    "selection_seconds": round(found.total, 4),
                    **{
                        f"{stage}_seconds": round(found.seconds.get(stage, 0.0), 4)
                        for stage in ("exchange", "target", "solve")
                    },
                    "step_seconds": round(step.total, 4),
                    "gib_sent": round(found.sent_bytes / 2**30, 3),
                }
            )
    return rows


def per_rank(rows: list[dict], stage: int, backend: str) -> list[tuple]:
    """(ranks, bytes sent by one of them) of a backend at a ZeRO stage."""
    return [
        (row["world_size"], row[backend] / row["world_size"])
        for row in rows
        if row["zero_stage"] == stage and row["world_size"] > 1
    ]


def draw(found: dict) -> Figure:
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for stage, style in zip(STAGES, ("-", "--")):
        for backend, colour in zip(BACKENDS, ("C0", "C1", "C2")):
            left.plot(
                *zip(*per_rank(found["formulas"], stage, backend)),
                style,
                color=colour,
                linewidth=1,
                label=f"{backend}, ZeRO-{stage}",
            )
            if points := per_rank(found["counted"], stage, backend):
                left.plot(*zip(*points), "o", color=colour)
    left.set(
        xscale="log",
        yscale="log",
        xlabel="ranks",
        ylabel="bytes sent by a rank",
        title="small model: formula (lines), counted (dots)",
    )
    names = list(MODELLED)
    for axis, name in ((middle, names[1]), (right, names[2])):
        for backend in BACKENDS:
            rows = [row for row in found["modelled"] if (row["case"], row["backend"]) == (name, backend)]
            axis.plot(
                [row["world_size"] for row in rows],
                [row["selection_seconds"] for row in rows],
                marker=".",
                label=backend,
            )
        axis.plot(
            [row["world_size"] for row in rows],
            [row["step_seconds"] for row in rows],
            color="#999999",
            label="weighted step",
        )
        axis.set(
            xscale="log",
            xlabel="ranks (8 candidates each)",
            ylabel="seconds",
            ylim=(0, None),
            title=f"{name}: model, H100",
        )
    for axis in (left, middle, right):
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
