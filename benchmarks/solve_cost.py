# C candidates, K kept, F factors, N noise dimensions
"""Measure what rank 0's solve costs: the Filter and the Weight on a Gram matrix of C candidates, K = C / 4
kept.

    OMP_NUM_THREADS=1 python -m benchmarks.solve_cost

The Gram is synthetic: candidates share few directions of falling strength, as gradients of one pool do, have
noise of their own and norms that differ by factors; the target lies among the shared directions.  The solve
is float64 on the CPU whatever the ranks run on, and its time depends on how many candidates the Filter keeps
and how many weights become zero, so both are reported.  One thread: on a busy machine the threads of an
eigenvalue problem this small wait for each other longer than they compute.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from pipeline.selection import registry
from pipeline.selection.contract import Settings, Signals
from pipeline.selection.residual_filter import residual_filter

RESULTS = Path(__file__).parent / "results"
# the shared directions carry 30 % of a candidate's squared norm
NUM_FACTORS, NUM_NOISE, SHARED = 64, 4096, 0.3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--candidates", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096], help="C"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="solves of each size, each on a Gram of its own"
    )
    parser.add_argument(
        "--ridge", type=float, default=Settings().ridge, help="selection.ridge (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "solve_cost.json", help="result file")
    arguments = parser.parse_args()

    result = {"settings": {k: v for k, v in vars(arguments).items() if k != "output"}, "sizes": {}}
    print("candidates    keep    kept    weights > 0    seconds (median)    range               filter alone")
    for num_candidates in arguments.candidates:
        found = measure(num_candidates, arguments.rounds, arguments.ridge)
        result["sizes"][num_candidates] = found
        low, high = min(found["seconds"]), max(found["seconds"])
        print(
            f"{num_candidates:10d} {found['keep']:7d} {found['filtered']:7d} {found['weighted']:14d} "
            f"{found['median_seconds']:19.4f}    {low:.4f} to "
            f"{high:.4f}{found['median_filter_seconds']:16.4f}",
            flush=True,
        )
    result["machine"] = describe()
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {arguments.output}")


def measure(num_candidates: int, rounds: int, ridge: float) -> dict:
    """Seconds of each solve; ``filtered`` and ``weighted`` are medians of how many the Filter kept and how
    many weigh anything."""
    method, keep = registry.get("filter_then_weight"), max(1, num_candidates // 4)
    seconds, filter_seconds, filtered, weighted = [], [], [], []
    for seed in range(rounds):
        rng = np.random.default_rng((num_candidates, seed))
        signals = synthetic(num_candidates, rng)
        begin = time.perf_counter()
        filtered.append(len(residual_filter(signals.gram, keep)[0]))
        filter_seconds.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        selection = method.select(signals, keep, num_candidates, rng, Settings(ridge=ridge))
        seconds.append(time.perf_counter() - begin)
        weighted.append(len(selection.indices))
    return {
        "keep": keep,
        "filtered": int(statistics.median(filtered)),
        "weighted": int(statistics.median(weighted)),
        "median_seconds": round(statistics.median(seconds), 5),
        "median_filter_seconds": round(statistics.median(filter_seconds), 5),
        "seconds": [round(value, 5) for value in seconds],
    }


def synthetic(num_candidates: int, rng: np.random.Generator) -> Signals:
    """Signals of phi_i = n_i (sqrt(s) f_i + sqrt(1 - s) e_i): f_i in F shared directions whose variance falls
    as 1 / rank, e_i noise, n_i a log-normal norm. The target is the mean of four such samples, noise
    included."""
    num_rows = num_candidates + 4
    variance_F = 1 / np.arange(1, NUM_FACTORS + 1)
    shared_CF = rng.normal(size=(num_rows, NUM_FACTORS)) * np.sqrt(SHARED * variance_F / variance_F.sum())
    shared_CF[:, 0] += np.sqrt(SHARED / variance_F.sum())  # what all text has in common
    noise_CN = rng.normal(size=(num_rows, NUM_NOISE), scale=np.sqrt((1 - SHARED) / NUM_NOISE))
    norm_C = rng.lognormal(sigma=0.5, size=num_rows)
    gram_CC = (shared_CF @ shared_CF.T + noise_CN @ noise_CN.T) * np.outer(norm_C, norm_C)
    own, target = slice(num_candidates), slice(num_candidates, None)
    return Signals(
        gram_CC[own, own].copy(), gram_CC[own, target].mean(1), float(gram_CC[target, target].mean())
    )


if __name__ == "__main__":
    main()
