"""Train for a long time and watch from outside whether memory, descriptors, threads and files stay flat.

    python -m benchmarks.soak --minutes 120       # --minutes 4 --output FILE tries it out

Two ranks on CPU fine-tune the demo model (2 million parameters) with selection, a checkpoint every 20 steps
of which two stay, and an evaluation every 25.  At the end rank 0 gets SIGTERM, and both must leave with code
75.  The time without its first tenth is cut into twelve parts.  A series' floor, its lowest value in each
part, is flat if the straight line through the twelve rises by no more than LIMITS an hour.  The records grow
by design and are only reported.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from matplotlib.figure import Figure

from benchmarks.kill_resume import ROOT
from benchmarks.machine import describe
from benchmarks.ranks import ENVIRONMENT, address, free_port
from pipeline.ranks.stopping import REQUEUE
from pipeline.training.checkpoint_files import FOLDER, checkpoints

RANKS, SECONDS_BETWEEN_SAMPLES, MOST_SAMPLES, KEEP_LAST, PARTS = 2, 10, 200, 2, 12
LIMITS = {"memory_mib": 0.01, "descriptors": 1, "threads": 1, "shared_memory_mib": 1, "checkpoints_mib": 0.01}
"""Rise an hour that counts as flat: below 1 a share of the mean, else in the series' unit."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/soak"),
        help="of the run; emptied first (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "benchmarks/results/soak_cpu.json",
        help="result, figure beside it",
    )
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.parent.mkdir(parents=True, exist_ok=True)
    log, port = arguments.folder.with_suffix(".log"), free_port()
    with open(log, "w") as output:
        ranks = [start(rank, port, settings(arguments.folder), output) for rank in range(RANKS)]
    samples = watch(ranks, port, arguments.folder, 60 * arguments.minutes)
    if any(rank.poll() is not None for rank in ranks):
        sys.exit(f"a rank has ended: codes {[rank.poll() for rank in ranks]}\n{log.read_text()[-3000:]}")
    ranks[0].send_signal(signal.SIGTERM)
    codes = [rank.wait(300) for rank in ranks]
    found = judge(samples) | {
        "exit_codes": codes,
        "checkpoints_left": len(checkpoints(arguments.folder / FOLDER)),
        "limits_an_hour": LIMITS,
        "warnings": log.read_text().count("WARNING"),
        "machine": describe(),
    }
    found["flat"] = found["flat"] and codes == [REQUEUE] * RANKS and found["checkpoints_left"] == KEEP_LAST
    arguments.output.write_text(json.dumps({**found, "samples": thinned(samples)}, indent=1) + "\n")
    draw(samples).savefig(arguments.output.with_suffix(".png"), dpi=110)
    print(json.dumps(found))
    sys.exit(not found["flat"])


def settings(folder: Path) -> dict:
    return {
        "model.name": "demo",
        "model.lora_rank": 0,
        "data.pool": "[demo:pool]",
        "data.target": "[demo:target]",
        "data.test": "[demo:test]",
        "data.max_tokens": 64,
        "training.steps": 10**6,
        "training.micro_batch_size": 4,
        "training.learning_rate": 5e-4,
        "training.evaluate_every": 25,
        "training.save_every": 20,
        "training.keep_last": KEEP_LAST,
        "training.verify_every": 50,
        "run.folder": folder,
    }


def start(rank: int, port: int, settings: dict, output) -> subprocess.Popen:
    environment = os.environ | ENVIRONMENT | address(rank, RANKS, port)
    command = [
        sys.executable,
        "-m",
        "pipeline.train",
        *(f"--{name}={value}" for name, value in settings.items()),
    ]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)


def watch(ranks: list[subprocess.Popen], port: int, folder: Path, seconds: float) -> list[dict]:
    """Samples from the first step on, until the time is over or a rank has ended."""
    samples, begin = [], None
    while all(rank.poll() is None for rank in ranks) and (
        begin is None or time.monotonic() - begin < seconds
    ):
        time.sleep(SECONDS_BETWEEN_SAMPLES if begin else 1)
        steps = (folder / "steps.jsonl").read_text().count("\n") if (folder / "steps.jsonl").is_file() else 0
        if steps and all(rank.poll() is None for rank in ranks):
            begin = begin or time.monotonic()
            samples.append(
                {
                    "seconds": round(time.monotonic() - begin, 1),
                    "steps": steps,
                    **measure(ranks, port, folder),
                }
            )
    return samples


def measure(ranks: list[subprocess.Popen], port: int, folder: Path) -> dict:
    processes = [psutil.Process(rank.pid) for rank in ranks]
    signs = [str(port), *(str(rank.pid) for rank in ranks)]
    shared = sum(
        size(path) for path in Path("/dev/shm").glob("*") if any(sign in path.name for sign in signs)
    )
    return {
        **{f"memory_mib_{rank}": process.memory_info().rss / 2**20 for rank, process in enumerate(processes)},
        **{f"descriptors_{rank}": process.num_fds() for rank, process in enumerate(processes)},
        **{f"threads_{rank}": process.num_threads() for rank, process in enumerate(processes)},
        "shared_memory_mib": shared / 2**20,
        "checkpoints_mib": sum(size(path) for path in (folder / FOLDER).glob("*/*")) / 2**20,
        "records_mib": sum(size(path) for path in folder.glob("*.jsonl")) / 2**20,
    }


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # deleted meanwhile
        return 0


def judge(samples: list[dict]) -> dict:
    """Mean, extremes and rise of the floor an hour of each series, and which of them rise too fast."""
    end = samples[-1]["seconds"]
    late = [sample for sample in samples if sample["seconds"] >= end / 10]
    parts = np.array_split(np.arange(len(late)), PARTS)
    hours = [np.mean([late[i]["seconds"] for i in part]) / 3600 for part in parts]
    series, rising = {}, []
    for name in [name for name in samples[0] if name not in ("seconds", "steps")]:
        values = np.array([sample[name] for sample in late])
        slope = float(np.polyfit(hours, [values[part].min() for part in parts], 1)[0])
        series[name] = {
            "mean": values.mean(),
            "lowest": values.min(),
            "highest": values.max(),
            "rise_of_floor_per_hour": slope,
        }
        limit = LIMITS.get(name.rstrip("_0123456789"))
        if limit is not None and slope > limit * (values.mean() if limit < 1 else 1):
            rising.append(name)
    return {
        "minutes": round(end / 60, 1),
        "steps": samples[-1]["steps"],
        "flat": not rising,
        "rising": rising,
        "series": {
            name: {key: round(float(value), 3) for key, value in found.items()}
            for name, found in series.items()
        },
    }


def thinned(samples: list[dict]) -> list[dict]:
    every = -(-len(samples) // MOST_SAMPLES)
    return [{name: round(value, 3) for name, value in sample.items()} for sample in samples[::every]]


def draw(samples: list[dict]) -> Figure:
    minutes = [sample["seconds"] / 60 for sample in samples]
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = {
        "memory_mib": "resident memory, MiB",
        "descriptors": "open descriptors",
        "threads": "threads",
        "_mib": "files, MiB",
    }
    for axes, (part, title) in zip(figure.subplots(2, 2).flat, panels.items()):
        for name in samples[0]:
            if name.startswith(part) or (part == "_mib" and name.endswith(part)):
                axes.plot(
                    minutes,
                    [sample[name] for sample in samples],
                    label=name.replace("_mib", "").replace("_", " "),
                )
        axes.set(title=title, xlabel="minutes")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
