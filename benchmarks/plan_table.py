# C candidates
"""The table of predictions in docs/planning.md: what selection will cost for models of 1, 7 and 70 B on 8 to
512 GPUs.

    python -m benchmarks.plan_table

Every row is what ``pipeline.plan`` says for its recommended backend; nothing is measured. Results go to
benchmarks/results/plan_table.json, the table is printed in Markdown.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.config import Config, ModelConfig, SelectionConfig, TrainingConfig
from pipeline.planning import forecast, price
from pipeline.planning.hardware import GIB, find
from pipeline.planning.model_shapes import read_shapes
from pipeline.planning.planned_run import plan_run

OUTPUT = Path(__file__).parent / "results" / "plan_table.json"
HARDWARE, TOKENS, STEPS = "h100", 2048, 1000
CANDIDATES_PER_GPU, KEPT_PER_GPU, TARGETS = 8, 1, 32


@dataclass(frozen=True)
class Case:
    model: str
    lora_rank: int
    """0: full fine-tuning."""
    num_gpus: int
    zero_stage: int
    """The lowest at which weights, gradients and Adam state fit with room, but for LoRA on few GPUs: 0, where
    layers are shared."""
    scoring_micro_batch_size: int
    checkpoints: bool


CASES = (
    Case("llama-1b", 16, 8, 0, 8, False),
    Case("llama-1b", 0, 8, 2, 8, False),
    Case("llama-1b", 0, 64, 2, 8, False),
    Case("llama-7b", 16, 8, 0, 4, True),
    Case("llama-7b", 0, 64, 3, 4, True),
    Case("llama-70b", 16, 64, 3, 2, True),
    Case("llama-70b", 0, 512, 3, 2, True),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    found = {"hardware": HARDWARE, "tokens": TOKENS, "rows": [predict(case) for case in CASES]}
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    print(markdown(found))


def predict(case: Case) -> dict:
    """Seconds, ratios and memory of each backend, and the recommended one."""
    config = Config(
        deepspeed=f"ds_configs/zero{case.zero_stage}.json",
        model=ModelConfig(name=case.model, lora_rank=case.lora_rank, gradient_checkpointing=case.checkpoints),
        selection=SelectionConfig(
            candidates_per_step=CANDIDATES_PER_GPU * case.num_gpus,
            keep_per_step=KEPT_PER_GPU * case.num_gpus,
            target_per_step=TARGETS,
            scoring_micro_batch_size=case.scoring_micro_batch_size,
            exchange_mib=512,
        ),
        training=TrainingConfig(micro_batch_size=1, steps=STEPS),
    )
    hardware, shapes = find(HARDWARE), read_shapes(config.model)
    run = plan_run(config, hardware, case.num_gpus, TOKENS)
    plain, step = forecast.plain(shapes, run, hardware), forecast.weighted_step(shapes, run, hardware)
    found = {backend: f for (backend, _), f in forecast.variants(shapes, run, hardware, [0]).items()}
    recommended, reason = forecast.recommend(found, step, price.most_scored_share(run), hardware)
    priced = price.price(found[recommended], step, run, hardware)
    backends = {
        backend: {
            "seconds": round(f.total, 3),
            "ratio_to_plain": round(f.without_target / plain.total, 2),
            "ratio_to_plain_with_target": round(f.total / plain.total, 2),
            "memory_gib": round(f.memory_bytes / GIB, 1),
            "gib_sent": round(f.sent_bytes / GIB, 2),
        }
        for backend, f in found.items()
    }
    return {
        **asdict(case),
        "candidates": config.selection.candidates_per_step,
        "kept": config.selection.keep_per_step,
        "targets": TARGETS,
        "plain_seconds": round(plain.total, 3),
        "weighted_step": {"seconds": round(step.total, 3), "memory_gib": round(step.memory_bytes / GIB, 1)},
        "backends": backends,
        "recommended": recommended,
        "reason": reason,
        "price": {
            "scored_step": round(priced.scored, 2),
            "unscored_step": round(priced.unscored, 3),
            "scored_steps": list(priced.num_scored),
            "run": [round(ratio, 2) for ratio in priced.run],
        },
    }


def markdown(found: dict) -> str:
    lines = [
        "| model | trained | GPUs | ZeRO | C, kept | backend | selection | x plain, with target | weighted "
        "step | scored step | run | peak of a GPU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        best, step, priced = row["backends"][row["recommended"]], row["weighted_step"], row["price"]
        run = " to ".join(f"{ratio:.1f}" for ratio in priced["run"])
        trained = f"LoRA r = {row['lora_rank']}" if row["lora_rank"] else "all"
        peak = max(best["memory_gib"], step["memory_gib"])
        lines.append(
            f"| {row['model']} | {trained} | {row['num_gpus']} | "
            f"{row['zero_stage']} | {row['candidates']}, {row['kept']} | {row['recommended']} | "
            f"{best['seconds']:.2f} s | {best['ratio_to_plain']:.2f}, "
            f"{best['ratio_to_plain_with_target']:.2f} | {step['seconds']:.2f} s | "
            f"{priced['scored_step']:.1f} | {run} | {peak:.0f} GiB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
