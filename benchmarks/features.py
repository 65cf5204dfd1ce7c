# C candidates, k features of the backend, D of the file
"""Compare inner products of the features that pipeline.score writes with those of the gradients.

    python -m benchmarks.features [--model .cache/smollm2-135m] [--quick]

A model is fine-tuned for some steps on random samples, so that Adam's state is a real one; then candidates
and a target are scored under that state by ``exact``, and by the backends that leave features, as they are (D
= k) and sketched to D numbers.  Against ``exact``:

    alignment   rank correlation of <f_i, f_T> with <phi_i, phi_T>
    cosines     rank correlation of the cosines of all pairs of candidates
    error       root mean square of (<f_i, f_j> - <phi_i, phi_j>) / (|phi_i| |phi_j|) over all pairs
    twins       rank of each sample's nearest neighbour by ``exact`` among its neighbours by features
                (median; 1: the nearest too)

The last line printed is JSON.
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
import torch
from scipy.stats import spearmanr
from tqdm import tqdm

from benchmarks.fidelity import data
from benchmarks.machine import describe
from benchmarks.step_cost import build
from pipeline.config import Config
from pipeline.data.stream import CandidateStream
from pipeline.data.targets import TargetSet
from pipeline.datastore.sketch import CountSketch
from pipeline.hook import SelectionHook
from pipeline.proposal.proposer import Proposer
from pipeline.proposal.schedule import Every
from pipeline.proposal.uniform import Uniform
from pipeline.train_step import train_step
from pipeline.training.engine import start_process_group

RESULTS = Path(__file__).parent / "results"
MEASURES = ("alignment", "cosines", "error", "twins")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default=".cache/smollm2-135m", help="folder or hub name (default: %(default)s)"
    )
    parser.add_argument("--data", type=Path, help="as for benchmarks.fidelity (default: the demo's)")
    parser.add_argument("--target", default="gsm8k", help="name of the target set in --data")
    parser.add_argument("--cases", nargs="+", default=["lora", "full"], choices=["lora", "full"])
    parser.add_argument("--candidates", type=int, default=16, help="C")
    parser.add_argument("--targets", type=int, default=4, help="samples of the target")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3, help="updates before the comparison")
    parser.add_argument("--draws", type=int, default=2, help="seeds of projections and sketches")
    parser.add_argument(
        "--size", type=int, default=Config().selection.projection_size, help="selection.projection_size"
    )
    parser.add_argument("--features", nargs="+", type=int, default=[256, 1024, 4096], help="D")
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--stage", type=int, default=2, help="ZeRO stage")
    parser.add_argument("--output", type=Path, default=RESULTS / "features_cpu.json")
    parser.add_argument("--quick", action="store_true", help="LoRA, C = 8, one draw; writes nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.cases, arguments.candidates, arguments.targets, arguments.steps, arguments.draws = (
            ["lora"],
            8,
            4,
            2,
            1,
        )
        arguments.max_tokens = 48

    _, _, device = start_process_group(600)
    settings = {
        k: v.name if isinstance(v, Path) else v
        for k, v in vars(arguments).items()
        if k not in ("output", "cases")
    }
    result: dict[str, Any] = {"settings": {"cases": [], **settings}, "machine": describe()}
    for case in arguments.cases:
        result[case] = compare(case, arguments, device)
        result["settings"]["cases"].append(case)
        print(f"\n{case}: {arguments.candidates} candidates")
        for row in result[case]:
            print(
                f"  {row['way']:28} k {row['width']:7}  "
                + "  ".join(f"{name} {row[name]:6.3f}" for name in MEASURES),
                flush=True,
            )
        if not arguments.quick:
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")
            print(f"written to {arguments.output}")
    print(json.dumps({case: result[case][-1] for case in arguments.cases}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # leaving through the interpreter with gloo threads alive aborts now and then


def compare(case: str, arguments, device: torch.device) -> list[dict]:
    """Rows, one for each backend and D: means over the draws."""
    pool, targets, pad_token_id = data(arguments)
    engine, _ = build(case, arguments, 1)
    stream = CandidateStream(pool, arguments.candidates, seed=0)
    settings = replace(
        Config().selection, candidates_per_step=arguments.candidates, keep_per_step=4, warmup_steps=0
    )
    random = replace(settings, method="random")
    draws_at_random = SelectionHook.attach(engine, None, random, pad_token_id)
    proposer = Proposer(stream, random, Uniform(), Every(1), seed=0)
    for step in tqdm(range(arguments.steps), desc=f"{case}: updates", unit="step"):
        train_step(hook=draws_at_random, proposer=proposer, step=step)

    target_set = TargetSet(targets, arguments.targets, seed=0, rotate=False)
    settings = replace(
        settings, geometry="update", projection_size=arguments.size, scoring_micro_batch_size=8
    )
    candidates = stream.shard(arguments.steps, 0, 1)
    exact = SelectionHook.attach(engine, target_set, settings, pad_token_id).score(candidates).gram
    gram = np.block(
        [[exact.gram_CC, exact.alignment_C[:, None]], [exact.alignment_C, exact.target_norm_squared]]
    )
    found: dict[str, list[dict]] = {}
    for backend in ("projected", "factored"):
        for seed in tqdm(range(arguments.draws), desc=f"{case}: {backend}", unit="draw"):
            hook = SelectionHook.attach(
                engine, target_set, replace(settings, backend=backend), pad_token_id, seed
            )
            rows = hook.score(candidates).features_Rk
            assert rows is not None
            width = rows.shape[1]
            for size in [width, *(size for size in arguments.features if size < width)]:
                sketched = (
                    rows if size == width else CountSketch(width, size, f"{seed} features", device)(rows)
                )
                way = f"{backend}, size {arguments.size}" + ("" if size == width else f", D = {size}")
                measured = {**measures(gram, sketched.double().cpu().numpy()), "width": width, "kept": size}
                found.setdefault(way, []).append(measured)
    engine.destroy()
    return [
        {
            "way": way,
            **{
                name: round(statistics.mean(row[name] for row in rows), 4)
                for name in (*MEASURES, "width", "kept")
            },
        }
        for way, rows in found.items()
    ]


def measures(gram: np.ndarray, features: np.ndarray) -> dict[str, float]:
    """The MEASURES of features (C + 1, D) beside the exact Gram matrix (C + 1, C + 1); the target is last."""
    products = features @ features.T
    norms, own_norms = np.sqrt(np.diagonal(gram)), np.sqrt(np.diagonal(products))
    pairs = np.triu_indices(len(gram) - 1, 1)
    cosines, own_cosines = gram / np.outer(norms, norms), products / np.outer(own_norms, own_norms)
    nearest = _without_itself(cosines[:-1, :-1]).argmax(1)
    order = (-_without_itself(own_cosines[:-1, :-1])).argsort(1)
    return {
        "alignment": float(spearmanr(gram[:-1, -1], products[:-1, -1]).statistic),
        "cosines": float(spearmanr(cosines[pairs], own_cosines[pairs]).statistic),
        "error": float(np.sqrt((((products - gram) / np.outer(norms, norms))[pairs] ** 2).mean())),
        "twins": float(np.median([1 + list(row).index(twin) for row, twin in zip(order, nearest)])),
    }


def _without_itself(cosines: np.ndarray) -> np.ndarray:
    return np.where(np.eye(len(cosines), dtype=bool), -np.inf, cosines)


if __name__ == "__main__":
    main()
