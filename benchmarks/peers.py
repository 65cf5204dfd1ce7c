# C candidates, T tokens
"""Compare ours with what one would use instead: seconds, peak memory and error of the Gram matrix of
Adam-scaled per-sample gradients.

    pip install --no-deps -r benchmarks/requirements.txt    # the peers
    python -m benchmarks.peers [--quick]

All in one process, in turns, on the same model, candidates, loss (mean cross-entropy of each sample) and Adam
state; peer_grams.py says what each does.  The model is in eval mode, in fp32 on CPU and bf16 on CUDA, without
gradient checkpointing, and trains the weights of its linear layers alone.  Peak memory is that of the process
(resident) or of the card, model and moments included; ``idle_gib`` is what is there before.  The error is the
largest |K_ij - K'_ij| / (|phi_i| |phi_j|) against K' in float64.

``vmap`` has no batching rule for PyTorch's flash attention on CPU and runs that one operation sample by
sample.  Peers that cannot be asked for this matrix are named in LEFT_OUT, with the reason.  The last line
printed is JSON.
"""

import argparse
import json
import statistics
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.machine import describe
from benchmarks.peer_grams import OPTIONAL, PEERS, Problem, pose, reference, relative_error
from benchmarks.step_cost import peak_bytes, random_tokens, timed
from pipeline.training.engine import resolve_dtype
from pipeline.training.small_model import located

RESULTS = Path(__file__).parent / "results"
INSTALL = "pip install --no-deps -r benchmarks/requirements.txt"
NUM_OTHERS = 8  # samples whose squared gradients are the Adam state; 2 with --quick
LEFT_OUT = {
    "kronfluence 1.0.1": "its diagonal strategy weighs gradients by 1 / (lambda + damping) with a lambda "
    "that it fits itself and keeps in files of its own; exp_avg_sq is not an input. Scores are query by "
    "training sample, with a backward pass for each side",
    "dattri 0.3.0": "TracInAttributor always projects gradients to 512 numbers and knows no Adam metric; its "
    "gradients come from vmap(grad), which is measured here",
    "traker 0.3.2": "its metric is the inverse covariance of projected gradients; its gradients come from "
    "vmap(grad) over all parameters, or from a loop, both of which are measured here",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default=".cache/smollm2-135m", help="folder or hub name (default: %(default)s)"
    )
    parser.add_argument("--candidates", type=int, default=8, help="C")
    parser.add_argument("--tokens", type=int, default=256, help="T of every sample")
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="measurements of each peer, in turns, after a first run for memory",
    )
    parser.add_argument("--cases", nargs="+", default=["lora", "full"], choices=["lora", "full"])
    parser.add_argument(
        "--output",
        type=Path,
        help="result file (default: benchmarks/results/peers_<device>.json; none with --quick)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="full case, C = 2, T = 32, 1 round: a check of the order of magnitude",
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.candidates, arguments.tokens, arguments.rounds, arguments.cases = 2, 32, 1, ["full"]

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = {"settings": {k: v for k, v in vars(arguments).items() if k != "output"}}
    result["settings"]["dtype"] = str(resolve_dtype("auto", device)).removeprefix("torch.")
    for case in arguments.cases:
        result[case] = measure(case, arguments, device)
        print_table(case, result[case])
    result["left_out"] = LEFT_OUT
    for name, reason in LEFT_OUT.items():
        print(f"left out: {name}: {reason}")
    result["machine"] = describe()
    result["machine"]["versions"] |= {name: installed_version(name) for name in OPTIONAL}
    if not arguments.quick:
        path = arguments.output or RESULTS / f"peers_{device.type}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {path}")
    brief = {
        case: {name: brief_of(found) for name, found in result[case]["peers"].items()}
        for case in arguments.cases
    }
    print(json.dumps(brief["full"] if arguments.quick else brief), flush=True)


def measure(case: str, arguments, device: torch.device) -> dict:
    """Time, memory and error of every peer on one problem; a peer that is not installed, or fails, has a line
    that says so instead of numbers."""
    problem = build(case, arguments, device)
    expected_CC = reference(problem)
    for name in filter(find_spec, OPTIONAL):
        import_module(name)  # what its code takes is then resident for all alike
    idle = peak_bytes(lambda: None, device)
    found, able = dict[str, dict[str, Any]](), list[str]()
    for name in PEERS:
        if name in OPTIONAL and not find_spec(name):
            found[name] = {"absent": f"not installed: {INSTALL}"}
            continue
        try:
            found[name] = first_run(name, problem, expected_CC)
            able.append(name)
            print(f"{case}: {name}: {found[name]}", flush=True)
        except Exception as error:  # a peer's failure is a result too, and must not cost the others theirs
            if name.startswith("ours"):
                raise
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
    seconds: dict[str, list[float]] = {name: [] for name in able}
    for _ in range(arguments.rounds):
        for name in able:
            with PEERS[name](problem) as run:
                seconds[name].append(timed(run, device))
    for name in able:
        ratios = [theirs / ours for theirs, ours in zip(seconds[name], seconds["ours"])]
        found[name] |= {
            "time_ratio_to_ours": round(statistics.median(ratios), 3),
            "time_ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
            "memory_ratio_to_ours": round(found[name]["peak_gib"] / found["ours"]["peak_gib"], 3),
            "seconds": [round(value, 4) for value in seconds[name]],
        }
    return {
        "idle_gib": round(idle / 2**30, 3),
        "scored_parameters": sum(v.numel() for v in problem.exp_avg_sq.values()),
        "peers": found,
    }


def first_run(name: str, problem: Problem, expected_CC: torch.Tensor) -> dict:
    """Peak memory and error of a first run, which also warms up for the clock."""
    grams = []
    with PEERS[name](problem) as run:
        peak = peak_bytes(lambda: grams.append(run()), problem.device)
    return {
        "max_rel_error": float(f"{relative_error(grams[0], expected_CC):.3g}"),
        "peak_gib": round(peak / 2**30, 3),
    }


def build(case: str, arguments, device: torch.device) -> Problem:
    """The problem of a pretrained model and random tokens. Adapters get values, so that lora_A has a
    gradient, as after some training."""
    model = AutoModelForCausalLM.from_pretrained(
        located(arguments.model), dtype=resolve_dtype("auto", device), attn_implementation="sdpa"
    )
    if case == "lora":
        adapters = LoraConfig(
            r=arguments.lora_rank,
            lora_alpha=2 * arguments.lora_rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, adapters, autocast_adapter_dtype=False)
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.01)
    generator = torch.Generator().manual_seed(0)
    num_others = 2 if arguments.quick else NUM_OTHERS
    ids = random_tokens(model, (arguments.candidates + num_others, arguments.tokens), generator).to(device)
    return pose(model.to(device), ids[: arguments.candidates], ids[arguments.candidates :])


def print_table(case: str, measured: dict) -> None:
    print(
        f"{case}: {measured['scored_parameters']:,} scored parameters, {measured['idle_gib']} GiB before the "
        "run\npeer               time / ours        (range)   peak GiB   largest error"
    )
    for name, found in measured["peers"].items():
        if "seconds" not in found:
            print(f"{name:16s} {found}")
            continue
        low, high = found["time_ratio_range"]
        print(
            f"{name:16s} {found['time_ratio_to_ours']:13.2f} {f'({low:.2f} to {high:.2f})':>16s} "
            f"{found['peak_gib']:8.2f} {found['max_rel_error']:15.1e}",
            flush=True,
        )


def brief_of(found: dict) -> dict:
    return {
        key: found[key] for key in ("time_ratio_to_ours", "max_rel_error", "absent", "failed") if key in found
    }


def installed_version(name: str):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
