"""Kill runs with SIGKILL at random moments, continue them, and compare the outcome bit by bit with runs that
nobody disturbed.

    python -m benchmarks.kill_resume --kills 36                  # each at ZeRO 0, 1, 2 and 3 in turn
    python -m benchmarks.kill_resume --kills 3 --quick           # minutes: one kill a run

Two ranks on CPU train a tiny random model on the demo data, with a checkpoint every other step.  Every second
kill waits for a phase (scoring, a collective, the optimizer step, a file of a checkpoint, ...), the others
for a random time.  A kill takes all ranks, or one of them, and then the others must end by themselves.
Without ``--quick`` the continued run is killed once more.  Compared are parameters and Adam state (all
tensors of the last checkpoint), step records but for their seconds, kept samples with weights, evaluations,
and the final model.  The last line printed is JSON; ``moments`` are the phases that the kills hit.
"""

import argparse
import json
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe
from benchmarks.ranks import ENVIRONMENT, PRELOADED, address, free_port
from pipeline.data import demo
from tests.same_run import compare

RESULTS, ROOT = Path(__file__).parent / "results", Path(__file__).parents[1]
RANKS, STEPS, SAVE_EVERY = 2, 8, 2
# seconds: run.timeout_seconds, and how long the others may take to notice a kill on a busy machine
TIMEOUT, PATIENCE = 30, 150
PHASES = (
    "start",
    "loading",
    "resuming",
    "evaluation",
    "scoring",
    "collective",
    "backward",
    "optimizer step",
    "records",
    "checkpoint: states",
    "checkpoint: file",
    "checkpoint: commit",
    "checkpoint: prune",
    "between",
    "final model",
)
AIMED_AT = (
    "checkpoint: file",
    "scoring",
    "optimizer step",
    "collective",
    "checkpoint: commit",
    "backward",
    "resuming",
    "records",
)
VARIANTS = (
    {"deepspeed": "zero1", "model.lora_rank": 4},
    # checkpoints fall between scoring passes
    {"deepspeed": "zero2", "model.lora_rank": 0, "selection.score_every": 3},
    {"deepspeed": "zero3", "model.lora_rank": 4},
    {"deepspeed": "zero0", "model.lora_rank": 0},
    {"deepspeed": "zero3", "model.lora_rank": 0, "training.precision": "bf16"},
    {"deepspeed": "zero2", "model.lora_rank": 4, "training.precision": "bf16"},
)
SLOT = struct.Struct(
    "iiq"
)  # a rank's phase and step, and how often it has entered the phase that the kill waits for


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=36)
    parser.add_argument(
        "--quick", action="store_true", help="one kill a run, and no result file unless --output is given"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the moments, and which settings come first (default: %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, help="result file (default: benchmarks/results/kill_resume_cpu.json)"
    )
    arguments = parser.parse_args()
    os.environ |= ENVIRONMENT
    begin, rng = time.perf_counter(), random.Random(arguments.seed)
    output = arguments.output or (None if arguments.quick else RESULTS / "kill_resume_cpu.json")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder)
        kills, undisturbed = list[dict](), dict[str, Path]()
        while len(kills) < arguments.kills:
            index = len({kill["run"] for kill in kills})
            variant = VARIANTS[(index + arguments.seed) % len(VARIANTS)]
            label = " ".join(f"{name.split('.')[-1]}={value}" for name, value in variant.items())
            if label not in undisturbed:
                undisturbed[label] = folder / f"undisturbed_{len(undisturbed)}"
                ended = run(folder, arguments_of(folder, undisturbed[label], variant))
                if ended["codes"] != [0] * RANKS:
                    sys.exit(f"an undisturbed run failed: {label}\n{ended['output']}")
            wanted = 1 if arguments.quick else min(2, arguments.kills - len(kills))
            done = killed_run(folder, folder / f"run_{index}", variant, wanted, len(kills), rng)
            if not done["kills"]:
                sys.exit(f"a run ended before it could be killed: {done['problems']}")
            found = done["problems"] or compare(undisturbed[label], folder / f"run_{index}")
            shutil.rmtree(folder / f"run_{index}")
            for kill in done["kills"]:
                kills.append(
                    {
                        "run": index,
                        "settings": label,
                        **kill,
                        "bitwise_equal": not found,
                        "differences": found[:5],
                    }
                )
                print(
                    f"{len(kills):3d}  {label:45s}  {kill['moment']:20s} step {kill['step']:2d}  "
                    f"{kill['killed']:9s}  {found[0] if found else 'equal'}",
                    flush=True,
                )
            outcome = {
                "kills": len(kills),
                "bitwise_equal": sum(kill["bitwise_equal"] for kill in kills),
                "moments": [kill["moment"] for kill in kills],
            }
            if output:  # after every run, so that a long series is not lost either
                output.write_text(
                    json.dumps(
                        {
                            **outcome,
                            "by_moment": Counter(outcome["moments"]),
                            "ranks": RANKS,
                            "steps": STEPS,
                            "save_every": SAVE_EVERY,
                            "seed": arguments.seed,
                            "seconds": round(time.perf_counter() - begin, 1),
                            "each": kills,
                            "machine": describe(),
                        },
                        indent=1,
                    )
                    + "\n"
                )
    print(json.dumps(outcome))
    sys.exit(outcome["bitwise_equal"] < outcome["kills"])


def killed_run(
    folder: Path, run_folder: Path, variant: dict, wanted: int, number: int, rng: random.Random
) -> dict:
    """The kills of a run, and what went wrong besides: it is killed ``wanted`` times, continued each time,
    and then left to end."""
    kills: list[dict] = []
    while len(kills) < wanted:
        # From the first step, or from the start of a continued run.
        aim: dict[str, Any] = {"phase": None, "seconds": rng.uniform(0, 6)}
        if (number + len(kills)) % 2 == 0:
            at = AIMED_AT[(number + len(kills)) // 2 % len(AIMED_AT)]
            if at == "resuming" and not kills:
                at = "checkpoint: states"
            entries = {
                "collective": 60,
                "records": 8,
                "backward": STEPS,
                "scoring": 2,  # more than two of the steps may not be worth it
                "optimizer step": STEPS,
            }.get(at, 2)
            aim = {"phase": at, "entry": rng.randint(1, entries), "seconds": rng.uniform(0, 0.01)}
        aim["victims"] = "all ranks" if rng.random() < 0.5 else f"rank {rng.randrange(RANKS)}"
        ended = run(folder, arguments_of(folder, run_folder, variant), aim)
        if ended["moment"] is None:
            if ended["codes"] != [0] * RANKS:
                return {
                    "kills": kills,
                    "problems": [f"the run failed before the kill: {ended['codes']} {ended['output']}"],
                }
            if not kills:  # it was over before the moment came: once more, from the beginning
                shutil.rmtree(run_folder)
                continue
            break
        kills.append(
            {
                "moment": ended["moment"],
                "step": ended["step"],
                "killed": aim["victims"],
                "others_ended": ended["others_ended"],
            }
        )
        if not ended["others_ended"]:
            return {
                "kills": kills,
                "problems": [f"a rank went on for more than {PATIENCE} s after the other was killed"],
            }
    ended = run(folder, arguments_of(folder, run_folder, variant))
    problems = (
        []
        if ended["codes"] == [0] * RANKS
        else [f"the continued run failed: {ended['codes']} {ended['output']}"]
    )
    return {"kills": kills, "problems": problems}


def arguments_of(folder: Path, run_folder: Path, variant: dict) -> list[str]:
    settings = {
        "model.name": folder / "model",
        "data.pool": "[demo:pool]",
        "data.target": "[demo:target]",
        "data.test": f"[{folder}/test.jsonl]",
        "data.max_tokens": 32,
        "selection.candidates_per_step": 12,
        "selection.keep_per_step": 4,
        "selection.target_per_step": 4,
        "selection.warmup_steps": 2,
        "training.steps": STEPS,
        "training.micro_batch_size": 2,
        "training.learning_rate": 1e-2,
        "training.evaluate_every": 3,
        "training.save_every": SAVE_EVERY,
        "run.folder": run_folder,
        "run.timeout_seconds": TIMEOUT,
        "resume": "auto",
        **variant,
        "deepspeed": ROOT / f"ds_configs/{variant['deepspeed']}.json",
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def run(folder: Path, arguments: list[str], aim: dict | None = None) -> dict:
    """Exit codes of the ranks of one run and the end of their output; killed as ``aim`` says, also the phase
    and step that the kill hit.

    ``folder`` takes the ranks' output and what they show of themselves.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    board = folder / "board"
    board.write_bytes(bytes(SLOT.size * RANKS))
    log, port = folder / "log", free_port()
    log.write_bytes(b"")
    aimed_at = PHASES.index(aim["phase"]) if aim and aim["phase"] else -1
    processes = [
        context.Process(target=rank_process, args=(rank, port, board, log, aimed_at, arguments))
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    outcome = {"moment": None, "step": None, "others_ended": True}
    if aim:
        outcome |= kill(processes, board, aim)
    for process in processes:
        process.join()
    return {
        **outcome,
        "codes": [process.exitcode for process in processes],
        "output": log.read_text(errors="replace")[-3000:],
    }


def kill(processes: list, board: Path, aim: dict) -> dict:
    """Moment, step and outcome of a kill: waits for its time, stops all ranks to see where they are, and
    kills. {} where a rank has ended before."""

    def alive() -> bool:
        return all(process.exitcode is None for process in processes)

    due = None
    with open(board, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:

        def read(rank: int) -> tuple[int, int, int]:
            return SLOT.unpack_from(memory, rank * SLOT.size)

        while alive():
            slots = [read(rank) for rank in range(RANKS)]
            if due is None:
                if aim["phase"] is None:
                    begun = all(PHASES[phase] not in ("start", "loading") for phase, _, _ in slots)
                else:
                    begun = any(entered >= aim["entry"] for _, _, entered in slots)
                due = time.monotonic() + aim["seconds"] if begun else None
            if due is not None and time.monotonic() >= due:
                break
            time.sleep(0.0002)
        if not alive():
            return {}
        for process in processes:
            os.kill(process.pid, signal.SIGSTOP)
        victims = range(RANKS) if aim["victims"] == "all ranks" else [int(aim["victims"].split()[1])]
        phase, step, _ = read(victims[0])
        for rank in victims:
            os.kill(processes[rank].pid, signal.SIGKILL)
        others = [process for rank, process in enumerate(processes) if rank not in victims]
        for process in others:
            os.kill(process.pid, signal.SIGCONT)
        deadline = time.monotonic() + PATIENCE
        for process in others:
            process.join(max(0.0, deadline - time.monotonic()))
        others_ended = all(process.exitcode is not None for process in others)
        for process in others:
            if process.exitcode is None:
                process.kill()
        return {"moment": PHASES[phase], "step": step, "others_ended": others_ended}


def rank_process(rank: int, port: int, board: Path, log: Path, aimed_at: int, arguments: list[str]) -> None:
    """One rank: the training program, with the phase it is in on the board."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= address(rank, RANKS, port)
    torch.set_num_threads(1)
    from pipeline import train

    with open(board, "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    mark_phases(memory, rank, aimed_at)
    train.run(arguments)


def mark_phases(memory: mmap.mmap, rank: int, aimed_at: int) -> None:
    """Wrap what is called in each phase, so that the board shows the innermost one."""
    import deepspeed

    from pipeline.reporting.records import Recorder
    from pipeline.step.scorer import Scorer
    from pipeline.training import checkpoint, checkpoint_files, prepare, run, run_folder

    state: dict[str, Any] = {"stack": [PHASES.index("start")], "step": 0, "entered": 0}

    def show() -> None:
        SLOT.pack_into(memory, rank * SLOT.size, state["stack"][-1], state["step"], state["entered"])

    @contextmanager
    def within(phase: int):
        state["entered"] += phase == aimed_at
        state["stack"].append(phase)
        show()
        try:
            yield
        finally:
            state["stack"].pop()
            show()

    def wrap(owner, name: str, phase: str, lasting: bool = False) -> None:
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            if name == "step":
                state["step"] = args[0].global_steps
            with within(PHASES.index(phase)):
                result = original(*args, **kwargs)
            if lasting:
                state["stack"][0] = PHASES.index("between")
                show()
            return result

        setattr(owner, name, wrapped)

    wrap(prepare, "load_model", "loading")
    wrap(checkpoint.Checkpoints, "__init__", "loading", lasting=True)
    wrap(checkpoint.Checkpoints, "load", "resuming")
    wrap(run_folder, "continue_records", "resuming")
    wrap(run, "held_out_loss", "evaluation")
    wrap(Scorer, "measure", "scoring")
    wrap(deepspeed.DeepSpeedEngine, "backward", "backward")
    wrap(deepspeed.DeepSpeedEngine, "step", "optimizer step")
    wrap(Recorder, "_append", "records")
    wrap(checkpoint.Checkpoints, "save", "checkpoint: states")
    wrap(checkpoint.DurableWriter, "save", "checkpoint: file")
    wrap(checkpoint_files, "commit", "checkpoint: commit")
    wrap(checkpoint_files, "prune", "checkpoint: prune")
    wrap(run_folder, "save_model", "final model")
    for name in (
        "all_reduce",
        "all_gather",
        "all_to_all_single",
        "broadcast",
        "reduce_scatter_tensor",
        "all_gather_into_tensor",
        "reduce",
    ):
        wrap(torch.distributed, name, "collective")


def make_inputs(folder: Path) -> None:
    """A random model with its tokenizer, and a few test samples."""
    from pipeline.training.small_model import demo_records, make

    make(
        demo_records()[:64],
        folder / "model",
        hidden_size=32,
        num_layers=2,
        vocabulary=300,
        max_tokens=64,
        batch_tokens=2048,
        epochs=1,
    )
    rows = demo.generate(demo.POOL_SAMPLES, seed=0)["test"][:8]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
