# C candidates, K kept, M targets
"""Measure what packing is worth: real tokens per second of a scoring pass and of a weighted step, packed and
padded, at the lengths of a pool.

    python -m benchmarks.packing --pool POOL.jsonl --tokenizer FOLDER

Samples are drawn from the pool as its chat template and data.max_tokens make them; a random Llama reads their
tokens modulo its own vocabulary, so that lengths and supervised shares are real and the output layer does not
outweigh a small body.  One rank, ZeRO-1, LoRA off. Two sizes of micro-batch: all samples of the step at once
(selection.scoring_micro_batch_size = 0, which is the default), whose padding is that of unsorted samples, and
a few, which the scoring pass and the weighted step sort by length.  Packed and padded alternate within a
round, on the same samples; a round takes others than the one before.  Ratios are medians over rounds, of
process CPU time and of wall time: where others use the cores, only the first means something.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.machine import describe
from pipeline.config import Config, DataConfig, SelectionConfig
from pipeline.data import sources
from pipeline.data.chat import tokenize_all
from pipeline.data.sample import IGNORED, Sample
from pipeline.data.targets import TargetSet
from pipeline.hook import SelectionHook
from pipeline.selection.contract import Selection
from pipeline.step.look import Look
from pipeline.step.weighted_step import weighted_step
from pipeline.training.attention import choose
from pipeline.training.engine import build_engine, start_process_group
from pipeline.training.prepare import prepare
from pipeline.training.small_model import located

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pool", required=True, help="a file or dataset as in data.pool")
    parser.add_argument("--tokenizer", required=True, help="folder or hub name")
    parser.add_argument("--max-tokens", type=int, default=DataConfig.max_tokens)
    parser.add_argument("--candidates", type=int, default=32, help="C")
    parser.add_argument("--keep", type=int, default=8, help="K")
    parser.add_argument("--targets", type=int, default=8, help="M")
    parser.add_argument(
        "--micro-batch", type=int, default=4, help="samples in one forward, where it is not all of them"
    )
    parser.add_argument("--hidden-size", type=int, default=192, help="a multiple of 32")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--backend", default="exact", choices=["exact", "projected", "factored"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, help="result file (default: benchmarks/results/packing_<device>.json)"
    )
    options = parser.parse_args()

    _, _, device = start_process_group(600)
    samples = drawn(options)
    step = options.candidates + options.targets
    found = {}
    for size in (0, options.micro_batch):
        attention, engine = build(options, size)
        rounds = []
        # the first warms up, and gives every weight its second moment
        for number in range(options.rounds + 1):
            batch = samples[number * step : (number + 1) * step]
            orders = (False, True) if number % 2 else (True, False)
            measured = one_round(
                options,
                engine,
                size,
                batch[: options.candidates],
                batch[options.candidates :],
                orders,
                device,
            )
            rounds += [measured] if number else []
            print(
                f"{size or 'all'} at once, round {number}: {json.dumps(measured)}",
                file=sys.stderr,
                flush=True,
            )
        num_parameters = sum(parameter.numel() for parameter in engine.module.parameters())
        engine.destroy()
        found["all at once" if size == 0 else f"{size} at a time, sorted by length"] = summary(rounds)
    lengths = np.array([len(sample.input_ids) for sample in samples])
    result = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("output", "pool", "tokenizer")},
        "pool": Path(options.pool).name,
        "tokenizer": Path(options.tokenizer).name,
        "device_type": device.type,
        "attention": attention.kernel,
        "parameters": num_parameters,
        "lengths": {
            "mean": round(lengths.mean(), 1),
            "samples": len(lengths),
            "at max_tokens": round((lengths == options.max_tokens).mean(), 3),
            **{f"quantile {q}": int(np.quantile(lengths, q)) for q in (0.1, 0.5, 0.9)},
        },
        "found": found,
        "machine": describe(),
    }
    path = options.output or RESULTS / f"packing_{device.type}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # leaving through the interpreter with gloo threads alive aborts now and then


def drawn(options) -> list[Sample]:
    """Samples of all rounds, in the pool's tokens modulo the model's."""
    records, _ = sources.read([options.pool], "error", "--pool")
    wanted = (options.rounds + 1) * (options.candidates + options.targets)
    records = random.Random(options.seed).sample(records, wanted)
    tokenizer = AutoTokenizer.from_pretrained(located(options.tokenizer))
    samples, _ = tokenize_all(records, tokenizer, DataConfig(max_tokens=options.max_tokens))
    if len(samples) < wanted:
        raise ValueError(
            f"{wanted - len(samples)} of {wanted} samples of {options.pool} have nothing to train on"
        )

    def known(token: int) -> int:
        return token if token == IGNORED else token % options.vocabulary

    return [Sample([*map(known, sample.input_ids)], [*map(known, sample.labels)]) for sample in samples]


def build(options, size: int):
    """The attention kernel, and an engine around a random Llama that runs on it."""
    config = Config()
    config.selection.candidates_per_step, config.selection.keep_per_step = options.candidates, options.keep
    config.training.micro_batch_size = size or options.keep
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"zero_optimization": {"stage": 1}}, file)
        file.flush()
        config.deepspeed = file.name
        prepared = prepare(config)
    shape = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden_size,
        intermediate_size=options.hidden_size * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden_size // 32,
        tie_word_embeddings=True,
        max_position_embeddings=options.max_tokens,
        bos_token_id=None,
        eos_token_id=None,
    )
    attention = choose("auto", prepared.device, prepared.dtype, shape)
    torch.manual_seed(options.seed)
    model = LlamaForCausalLM._from_config(shape, attn_implementation=attention.implementation).to(
        prepared.dtype
    )
    return attention, build_engine(model, prepared.merged, config.training)


def one_round(
    options, engine, size: int, candidates: list[Sample], targets: list[Sample], orders, device: torch.device
) -> dict:
    """Seconds of a scoring pass and of a weighted step, padded and packed in one of the ``orders``, on the
    same samples."""
    settings = SelectionConfig(
        candidates_per_step=options.candidates,
        keep_per_step=options.keep,
        target_per_step=options.targets,
        warmup_steps=0,
        scoring_micro_batch_size=size,
        backend=options.backend,
    )
    target_set = TargetSet(targets, options.targets, seed=0)
    kept = Selection(np.arange(options.keep), np.full(options.keep, 1 / options.keep))
    seconds, looks = {}, list[Look]()
    for is_packed in orders:
        hook = SelectionHook.attach(engine, target_set, settings, 0, is_packed=is_packed)
        seconds["packed" if is_packed else "padded"] = {
            "step": timed(
                lambda is_packed=is_packed: weighted_step(engine, candidates, kept, 0, is_packed), device
            ),
            "scoring": timed(lambda hook=hook: looks.append(hook.select(candidates)), device),
        }
        assert not looks[-1].is_warmup
    return {
        "seconds": seconds,
        "tokens": {"scoring": count(candidates + targets), "step": count(candidates[: options.keep])},
        "padded_tokens": {
            "scoring": padded(candidates, size) + padded(targets, size),
            "step": padded(candidates[: options.keep], size),
        },
    }


def count(samples: list[Sample]) -> int:
    """Tokens of all samples together."""
    return sum(len(sample.input_ids) for sample in samples)


def padded(samples: list[Sample], size: int) -> int:
    """Tokens with padding, in micro-batches of ``size`` samples alike in length; one batch for 0."""
    ordered = sorted(samples, key=lambda sample: len(sample.input_ids))
    return sum(
        max(len(sample.input_ids) for sample in part) * len(part)
        for part in parts(ordered, size or len(samples))
    )


def parts(samples: list[Sample], size: int) -> list[list[Sample]]:
    return [samples[first : first + size] for first in range(0, len(samples), size)]


def summary(rounds: list[dict]) -> dict:
    found: dict[str, dict] = {}
    for what in ("scoring", "step"):
        found[what] = {
            "tokens": [r["tokens"][what] for r in rounds],
            "padded_tokens": [r["padded_tokens"][what] for r in rounds],
        }
        for clock in ("cpu", "wall"):
            times = {name: [r["seconds"][name][what][clock] for r in rounds] for name in ("padded", "packed")}
            rates = {name: [t / s for t, s in zip(found[what]["tokens"], times[name])] for name in times}
            ratios = [packed / padded for packed, padded in zip(rates["packed"], rates["padded"])]
            found[what][clock] = {
                "seconds": {name: [round(value, 4) for value in values] for name, values in times.items()},
                "tokens_per_second": {
                    name: round(statistics.median(values), 1) for name, values in rates.items()
                },
                "ratio": round(statistics.median(ratios), 3),
                "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
            }
    return found


def timed(action, device: torch.device) -> dict[str, float]:
    """Seconds of this process's CPU time and of wall time; on a GPU the first says little."""
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


if __name__ == "__main__":
    main()
