"""Train with this tree and with an earlier revision, and compare what comes out bit by bit.

    python -m benchmarks.same_results --against REV
    python -m benchmarks.same_results --against REV --cells 'zero3 lora*' --keep runs/same

Two ranks on CPU fine-tune the demo model for 6 steps at ZeRO 0, 1, 2 and 3, with LoRA and without, through
each backend; every step scores what comes next. In three more cells this tree goes on from a checkpoint that
REV has written after step 3. This tree is the one on disk, uncommitted changes included. Every setting is
pinned, so that a later default changes nothing; a tree gets those that it knows. Compared are kept ids,
weights, alignments, losses, match with the target, gradient norms, held-out losses and final parameters.

A cell in which a tree fails is different, unless both refuse it in the same words. The last line printed is
JSON, and the exit code is 1 where a cell is different. On two cores all of it takes some ten minutes.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Optional

from benchmarks.difference import first_difference
from benchmarks.ranks import ENVIRONMENT
from benchmarks.trees import ROOT, Ended, Tree, git, tree_of, worktree

SAVED_AT = 3
PINNED: dict[str, Any] = {
    "resume": None,
    "model.name": "demo",
    "model.revision": None,
    "model.trust_remote_code": False,
    "model.chat_template": None,
    "model.attention": "sdpa",
    "model.packing": False,
    "model.gradient_checkpointing": False,
    "model.lora_rank": 4,
    "model.lora_alpha": 8,
    "model.lora_targets": "all-linear",
    "data.pool": ["demo:pool"],
    "data.pool_weights": None,
    "data.target": ["demo:target"],
    "data.test": ["demo:test"],
    "data.columns": {},
    "data.max_tokens": 48,
    "data.on_long": "truncate",
    "data.on_broken": "error",
    "data.loss_on": "assistant",
    "data.rotate_targets": True,
    "data.cache_folder": "",
    "selection.method": "filter_then_weight",
    "selection.candidates_per_step": 8,
    "selection.keep_per_step": 4,
    "selection.target_per_step": 4,
    "selection.geometry": "update",
    "selection.momentum": "cancel",
    "selection.ridge": 0.1,
    "selection.temperature": 0.9,
    "selection.reference_model": None,
    "selection.warmup_steps": 2,  # Adam's metric measures in four of six steps
    "selection.proposal": "uniform",
    "selection.prior": True,
    "selection.seed_scores": None,
    "selection.pool_share": "auto",
    "selection.score_every": 1,
    "selection.time_share": None,
    "selection.scoring_micro_batch_size": 2,  # two forwards of a rank: rows of the first wait for the other
    "selection.backend": "exact",
    "selection.projection_size": 8,
    "selection.contraction": "auto",
    "selection.last_blocks": 0,
    "selection.logits_mib": 1,
    "selection.exchange_mib": 1,  # rows travel in several exchanges
    "training.steps": 6,
    "training.target_mix": 0.0,
    "training.micro_batch_size": 1,  # two micro-batches of a rank: gradients are accumulated
    "training.learning_rate": 2e-3,
    "training.schedule": "linear",
    "training.learning_rate_warmup_steps": 1,
    "training.betas": [0.9, 0.999],
    "training.eps": 1e-8,
    "training.weight_decay": 0.01,
    "training.gradient_clipping": 1.0,
    "training.adam": "torch",
    "training.precision": "fp32",
    "training.evaluate_every": 3,
    "training.evaluation_micro_batch_size": 16,
    "training.evaluation_answers": 0,
    "training.save_every": SAVED_AT,
    "training.keep_last": 0,
    "training.keep_every": 0,
    "training.verify_every": 2,
    "run.overwrite": False,
    "run.seed": 1,
    "run.timeout_seconds": 600,
    "run.save_model": True,
}
"""All settings but ``deepspeed`` and ``run.folder``, which are each run's own."""
ZERO3 = {
    "stage3_gather_16bit_weights_on_model_save": True,
    # adapters and norms stay whole, linear layers are partitioned
    "stage3_param_persistence_threshold": 10_000,
}
PRESETS = {
    f"zero{stage}.json": {"zero_optimization": {"stage": stage, **(ZERO3 if stage == 3 else {})}}
    for stage in range(4)
}


@dataclass(frozen=True)
class Cell:
    """One comparison."""

    name: str
    changes: dict[str, Any]
    """Pinned settings with other values."""
    is_resumed: bool = False
    """This tree goes on from REV's checkpoint, instead of training from the beginning."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--against", required=True, metavar="REV", help="commit, tag or branch to compare with"
    )
    parser.add_argument(
        "--cells", default="*", metavar="PATTERN", help="those whose names match, as in 'zero3 lora*'"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="leave runs, logs and the demo model there"
    )
    arguments = parser.parse_args()
    chosen = [cell for cell in cells() if fnmatchcase(cell.name, arguments.cells)]
    if not chosen:
        parser.error(
            f"--cells: none matches {arguments.cells}; there are {', '.join(cell.name for cell in cells())}"
        )
    try:
        commit = git("rev-parse", "--verify", f"{arguments.against}^{{commit}}")
    except subprocess.CalledProcessError:
        parser.error(f"--against: there is no commit {arguments.against}")
    os.environ |= ENVIRONMENT
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an exception: the worktree is removed
    with ExitStack() as stack:
        folder = (arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for name, preset in PRESETS.items():
            (folder / name).write_text(json.dumps(preset))
        before = stack.enter_context(tree_of(stack.enter_context(worktree(commit)), folder / "before"))
        now = stack.enter_context(tree_of(ROOT, folder / "now"))
        outcome = compare_trees(chosen, before, now)
    print(json.dumps(outcome))
    sys.exit(bool(outcome["different"]))


def cells() -> list[Cell]:
    """The resumed ones begin with the run of REV in the cell whose name they continue."""
    grid = {
        f"zero{stage} {kind} {backend}": {
            "deepspeed": f"zero{stage}.json",
            "model.lora_rank": rank,
            "selection.backend": backend,
        }
        for stage in range(4)
        for kind, rank in (("lora", 4), ("full", 0))
        for backend in ("exact", "projected", "factored")
    }
    resumed = ("zero0 lora exact", "zero2 lora exact", "zero3 lora exact")
    fresh = [Cell(name, changes) for name, changes in grid.items()]
    return fresh + [Cell(f"{name} resumed", grid[name], is_resumed=True) for name in resumed]


def compare_trees(chosen: list[Cell], before: Tree, now: Tree) -> dict[str, Any]:
    """Content of the last line: the numbers of cells and of equal ones, and the first difference of the
    others."""
    for tree in (before, now):
        for name in sorted(tree.known - {*PINNED, "deepspeed", "run.folder"}):
            print(f"{name} is not pinned, and has its default in {tree.root}", flush=True)
    different, runs = list[dict[str, str]](), dict[str, Ended]()
    for cell in chosen:
        begin, origin = time.perf_counter(), cell.name.removesuffix(" resumed")
        settings = {**PINNED, **cell.changes}
        if origin not in runs:
            runs[origin] = before.run(origin, settings)
        if cell.is_resumed:
            settings["resume"] = str(before.folder / origin / "checkpoints" / f"checkpoint-{SAVED_AT}")
        ended = now.run(cell.name, settings)
        problem = judge(runs[origin], ended, before.folder / origin, now.folder / cell.name)
        if problem:
            different.append({"cell": cell.name, "first": problem})
        else:
            problem = f"equal: both refuse it, {ended.problem}" if ended.problem else "equal"
        print(f"{cell.name:40s} {time.perf_counter() - begin:5.1f} s  {problem}", flush=True)
    return {"cells": len(chosen), "equal": len(chosen) - len(different), "different": different}


def judge(was: Ended, ended: Ended, before: Path, now: Path) -> Optional[str]:
    """The first difference between a run of each tree, in words; None if there is none."""
    if not was.problem and not ended.problem:
        return first_difference(before, now)
    if was == ended and was.is_refusal:
        return None
    return f"before: {was.problem or 'trained'}; now: {ended.problem or 'trained'}"


if __name__ == "__main__":
    main()
