# C candidates, K kept
"""Compare the cheap ways to the Gram matrix with the exact one: projected, factored, and the last blocks
alone.

    python -m benchmarks.fidelity [--data FOLDER --target gsm8k] [--quick]

A model is fine-tuned for some steps on random samples, so that Adam's state is a real one; then the same
candidates and targets are scored in every way under that state, several times with other candidates.  Against
``exact`` over all blocks:

    spearman   rank correlation of the alignments b
    overlap    share of the kept samples that ``exact`` keeps too
    cosine     of the combined update sum_i w_i phi_i to that of ``exact``, both under the exact metric
    reached    cosine of the combined update to the target's, as a share of what ``exact`` reaches; the row
               ``random`` has what chance reaches

FOLDER holds ``noisy_pool.jsonl`` and ``targets/<name>/dev.jsonl``; without it the demo's data are used.  The
last line printed is JSON.
"""

import argparse
import json
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from tqdm import tqdm

from benchmarks.machine import describe
from benchmarks.step_cost import build
from pipeline.config import Config
from pipeline.data import demo, sources
from pipeline.data.chat import tokenize_all
from pipeline.data.stream import CandidateStream
from pipeline.data.targets import TargetSet
from pipeline.hook import SelectionHook
from pipeline.proposal.proposer import Proposer
from pipeline.proposal.schedule import Every
from pipeline.proposal.uniform import Uniform
from pipeline.selection import registry
from pipeline.selection.contract import GramSignals, Settings
from pipeline.train_step import train_step
from pipeline.training.engine import start_process_group
from pipeline.training.model import load_tokenizer

RESULTS = Path(__file__).parent / "results"
MEASURES = ("spearman", "overlap", "cosine", "reached")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default=".cache/smollm2-135m", help="folder or hub name (default: %(default)s)"
    )
    parser.add_argument("--data", type=Path, help="folder with real data (default: the demo's)")
    parser.add_argument("--target", default="gsm8k", help="name of the target set in --data")
    parser.add_argument("--cases", nargs="+", default=["lora", "full"], choices=["lora", "full"])
    parser.add_argument("--candidates", type=int, default=32, help="C")
    parser.add_argument("--keep", type=int, default=8, help="K")
    parser.add_argument("--targets", type=int, default=8, help="M")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8, help="updates before the comparison")
    parser.add_argument("--looks", type=int, default=4, help="comparisons with other candidates")
    parser.add_argument("--sizes", nargs="+", type=int, default=[8, 16, 32, 64], help="of the projections")
    parser.add_argument("--depths", nargs="+", type=int, default=[15, 8, 4], help="last blocks alone")
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--stage", type=int, default=2, help="ZeRO stage")
    parser.add_argument(
        "--output",
        type=Path,
        help="result file (default: benchmarks/results/fidelity_<device>.json; none with --quick)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="full fine-tuning, C = 8, one comparison, default size of projection",
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.cases, arguments.sizes, arguments.depths = (
            ["full"],
            [Config().selection.projection_size],
            [],
        )
        arguments.candidates, arguments.keep, arguments.targets, arguments.steps, arguments.looks = (
            8,
            3,
            4,
            2,
            1,
        )
        arguments.max_tokens = 48

    _, world_size, device = start_process_group(600)
    if world_size > 1:
        raise SystemExit("fidelity: one rank is enough; the ranks' agreement is what the tests are for")
    result: dict[str, Any] = {
        "settings": {
            k: v.name if isinstance(v, Path) else v for k, v in vars(arguments).items() if k != "output"
        }
    }
    for case in arguments.cases:
        result[case] = compare(case, arguments, world_size)
        print(f"\n{case}: {arguments.looks} x {arguments.candidates} candidates, {arguments.keep} kept")
        for row in result[case]:
            numbers = "  ".join(
                f"{name} {row[name]:6.3f} (worst {row['worst_' + name]:6.3f})" for name in MEASURES
            )
            print(f"  {row['way']:22} {numbers}")
    result["machine"] = describe()
    if not arguments.quick:
        path = arguments.output or RESULTS / f"fidelity_{device.type}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {path}")
    default = Config().selection.projection_size
    size = default if default in arguments.sizes else max(arguments.sizes)
    rows = {row["way"]: {name: row[name] for name in MEASURES} for row in result[arguments.cases[-1]]}
    print(
        json.dumps({backend: rows[f"{backend}, size {size}"] for backend in ("projected", "factored")}),
        flush=True,
    )
    sys.stdout.flush()
    os._exit(0)  # leaving through the interpreter with gloo threads alive aborts now and then


def compare(case: str, arguments, world_size: int) -> list[dict]:
    """Rows, one for each way of scoring: means over the looks, and the worst."""
    pool, targets, pad_token_id = data(arguments)
    engine, _ = build(case, arguments, world_size)
    stream = CandidateStream(pool, arguments.candidates, seed=0)
    target_set = TargetSet(targets, arguments.targets, seed=0)
    config = Config()
    settings = replace(
        config.selection,
        candidates_per_step=arguments.candidates,
        keep_per_step=arguments.keep,
        warmup_steps=0,
    )
    ways = {
        "exact": settings,
        **{
            f"{backend}, size {size}": replace(settings, backend=backend, projection_size=size)
            for backend in ("projected", "factored")
            for size in arguments.sizes
        },
        **{f"exact, last {n} blocks": replace(settings, last_blocks=n) for n in arguments.depths},
    }
    random = replace(settings, method="random")
    draws_at_random = SelectionHook.attach(engine, None, random, pad_token_id)
    proposer = Proposer(stream, random, Uniform(), Every(1), seed=0)
    for step in tqdm(range(arguments.steps), desc=f"{case}: updates", unit="step"):
        train_step(hook=draws_at_random, proposer=proposer, step=step)

    found: dict[str, list[dict[str, float]]] = {way: [] for way in [*list(ways)[1:], "random"]}
    for step in tqdm(
        range(arguments.steps, arguments.steps + arguments.looks), desc=f"{case}: comparisons", unit="look"
    ):
        signals, weights = dict[str, GramSignals | None](), dict[str, np.ndarray]()
        for way, changed in ways.items():
            hook = SelectionHook.attach(engine, target_set, changed, pad_token_id)
            look = hook.select(stream.shard(step, 0, 1), step)
            assert look.signals is not None
            signals[way], weights[way] = look.signals.gram, dense(look.selection, arguments.candidates)
        exact = signals["exact"]
        assert exact is not None
        draw = registry.get("random").select(
            None, arguments.keep, arguments.candidates, np.random.default_rng(step), Settings()
        )
        weights["random"], signals["random"] = dense(draw, arguments.candidates), None
        for way, rows in found.items():
            rows.append(measures(exact, weights["exact"], signals[way], weights[way]))
    engine.destroy()
    return [
        {
            "way": way,
            **{name: round(statistics.mean(row[name] for row in rows), 4) for name in MEASURES},
            **{f"worst_{name}": round(min(row[name] for row in rows), 4) for name in MEASURES},
        }
        for way, rows in found.items()
    ]


def measures(
    exact: GramSignals, exact_C: np.ndarray, other: GramSignals | None, other_C: np.ndarray
) -> dict[str, float]:
    """The MEASURES of one look, from dense weights (C,); ``other`` is None where nothing was scored."""

    def norm(weights_C: np.ndarray) -> np.ndarray:
        return np.sqrt(weights_C @ exact.gram_CC @ weights_C)

    def cosine_to_target(weights_C: np.ndarray) -> np.ndarray:
        return weights_C @ exact.alignment_C / (norm(weights_C) * np.sqrt(exact.target_norm_squared))

    both = (exact_C > 0) & (other_C > 0)
    return {
        "spearman": float(spearmanr(exact.alignment_C, other.alignment_C).statistic) if other else 0.0,
        "overlap": float(both.sum() / (exact_C > 0).sum()),
        "cosine": float(exact_C @ exact.gram_CC @ other_C / (norm(exact_C) * norm(other_C))),
        "reached": float(cosine_to_target(other_C) / cosine_to_target(exact_C)),
    }


def dense(selection, num_candidates: int) -> np.ndarray:
    weights_C = np.zeros(num_candidates)
    weights_C[selection.indices] = selection.weights
    return weights_C


def data(arguments) -> tuple[list, list, int]:
    """(pool, targets, pad token), the first two tokenised."""
    config = Config()
    config.model.name, config.data.max_tokens = arguments.model, arguments.max_tokens
    tokenizer = load_tokenizer(config.model)
    if arguments.data:
        files = [
            arguments.data / "noisy_pool.jsonl",
            arguments.data / "targets" / arguments.target / "dev.jsonl",
        ]
    else:
        folder = Path(".cache/demo")
        demo.main(["--folder", str(folder)])
        files = [folder / "pool.jsonl", folder / "target.jsonl"]

    def read(file: Path) -> list:
        records, _ = sources.read([str(file)], "error", str(file))
        samples, _ = tokenize_all(records, tokenizer, config.data, str(file))
        return samples

    return read(files[0]), read(files[1]), tokenizer.pad_token_id


if __name__ == "__main__":
    main()
