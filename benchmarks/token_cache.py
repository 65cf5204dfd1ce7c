"""Measure memory and time of having a pool tokenised: as lists in memory, written to the token cache, and
found there.

    python -m benchmarks.token_cache --tokenizer FOLDER

The pool is made up: prompts and completions of common words, about ``--tokens`` tokens each.  Each of the
three is a process of its own, which reads the pool, knows its digest, and then takes the candidates of a
hundred steps.  Seconds are wall and CPU time of that; memory is what the process has above its libraries and
tokenizer, at the highest (looked at every 20 ms): resident, and resident without pages of files that are
mapped, which the kernel drops when it needs the room.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from transformers import AutoTokenizer

from benchmarks.machine import describe
from pipeline.config import DataConfig
from pipeline.data import sources
from pipeline.data.chat import tokenize_all
from pipeline.data.sample import Sample, digest
from pipeline.data.stream import CandidateStream
from pipeline.data.token_cache import obtain
from pipeline.data.token_file import TokenFile
from pipeline.training.small_model import located

RESULTS = Path(__file__).parent / "results"
CASES, STEPS, CANDIDATES = ("lists", "first start", "next start"), 100, 32
WORDS = (
    "the of and to in is was for that on with as by at from it an be this which or are not have has had they "
    "you we all water house number people school country"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", required=True, help="folder or hub name")
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 50_000])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "token_cache_cpu.json")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)  # of a process that this one starts
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measured(options.case, options.folder, options.tokenizer)))
        return
    found = {}
    for num_samples in options.samples:
        with tempfile.TemporaryDirectory() as name:
            write_pool(Path(name), num_samples, options.tokens, options.seed)
            found[str(num_samples)] = {case: in_a_process(case, name, options.tokenizer) for case in CASES}
            digests = {of_case["digest"] for of_case in found[str(num_samples)].values()}
            assert len(digests) == 1, digests
            print(num_samples, json.dumps(found[str(num_samples)]), file=sys.stderr, flush=True)
    settings = {"tokens": options.tokens, "seed": options.seed, "steps": STEPS, "candidates": CANDIDATES}
    result = {
        "settings": settings,
        "tokenizer": Path(options.tokenizer).name,
        "samples": found,
        "machine": describe(),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")


def write_pool(folder: Path, num_samples: int, num_tokens: int, seed: int) -> None:
    rng, words = random.Random(seed), WORDS.split()

    def text(count: int) -> str:
        return " ".join(rng.choices(words, k=count))

    with open(folder / "pool.jsonl", "w", encoding="utf-8") as file:
        for _ in range(num_samples):
            half = rng.randint(num_tokens // 4, 3 * num_tokens // 4)
            row = {"prompt": text(half), "completion": " " + text(num_tokens - half - 1)}
            file.write(json.dumps(row) + "\n")


def in_a_process(case: str, folder: str, tokenizer: str) -> dict:
    options = (f"--tokenizer={tokenizer}", f"--case={case}", f"--folder={folder}")
    command = [sys.executable, "-m", "benchmarks.token_cache", *options]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measured(case: str, folder: Path, tokenizer_name: str) -> dict:
    data = DataConfig(pool=[str(folder / "pool.jsonl")], cache_folder=str(folder / "cache"))
    tokenizer = AutoTokenizer.from_pretrained(located(tokenizer_name))
    warm_up(folder, tokenizer)
    samples: Sequence[Sample]
    with Memory() as memory:
        wall, cpu = time.perf_counter(), time.process_time()
        if case == "lists":
            records, _ = sources.read(data.pool, data.on_broken)
            samples, _ = tokenize_all(records, tokenizer, data)
            content = digest(samples)
        else:
            kept = obtain(data.pool, tokenizer, data, "data.pool", lambda: None, shows_progress=False)
            assert kept.is_reused is (case == "next start")
            samples = file = TokenFile(kept.manifest)
            content = file.manifest.content
        seconds = {"wall": round(time.perf_counter() - wall, 2), "cpu": round(time.process_time() - cpu, 2)}
        stream = CandidateStream(samples, CANDIDATES, seed=0)
        begin = time.process_time()
        num_tokens = sum(
            len(sample.input_ids) for step in range(STEPS) for sample in stream.shard(step, 0, 1)
        )
        per_step = (time.process_time() - begin) / STEPS
    return {
        "seconds": seconds,
        "step_milliseconds": round(1000 * per_step, 3),
        "peak_mib": memory.peak("rss"),
        "peak_private_mib": memory.peak("private"),
        "digest": content,
        "tokens_per_candidate": num_tokens / STEPS / CANDIDATES,
        "file_mib": round(sum(path.stat().st_size for path in (folder / "cache").glob("*.arrow")) / 2**20, 1),
    }


def warm_up(folder: Path, tokenizer) -> None:
    """Go both ways once, with a few samples: libraries load parts of themselves at first use."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        write_pool(Path(name), 300, 20, 0)
        data = DataConfig(pool=[f"{name}/pool.jsonl"], cache_folder=f"{name}/cache")
        samples, _ = tokenize_all(sources.read(data.pool, data.on_broken)[0], tokenizer, data)
        kept = obtain(data.pool, tokenizer, data, "data.pool", lambda: None, shows_progress=False)
        assert TokenFile(kept.manifest)[7] == samples[7]


class Memory:
    """The most memory that this process has had, above what it had at first."""

    def __enter__(self) -> "Memory":
        self._first, self._most, self._ended = self._now(), self._now(), threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()

    def peak(self, kind: str) -> float:
        return round((self._most[kind] - self._first[kind]) / 2**20, 1)

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            now = self._now()
            self._most = {kind: max(value, now[kind]) for kind, value in self._most.items()}

    def _now(self) -> dict[str, int]:
        found = psutil.Process().memory_info()
        return {"rss": found.rss, "private": found.rss - found.shared}


if __name__ == "__main__":
    main()
