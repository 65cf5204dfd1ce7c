"""Selection in a DeepSpeed loop of one's own, on CPU, in seconds.

A tiny model sees two kinds of text, and selection keeps those that resemble the target's.

PYTHONPATH=. python examples/own_loop.py
PYTHONPATH=. deepspeed --num_gpus 2 examples/own_loop.py
"""

import random

import deepspeed
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.config import SelectionConfig
from pipeline.data.sample import Sample
from pipeline.data.stream import CandidateStream
from pipeline.data.targets import TargetSet
from pipeline.hook import SelectionHook
from pipeline.proposal.proposer import Proposer
from pipeline.proposal.schedule import Every
from pipeline.proposal.uniform import Uniform
from pipeline.train_step import train_step
from pipeline.training.engine import start_process_group

rank, world_size, device = start_process_group(timeout_seconds=120)
draw = random.Random(0)


def sample(is_wanted: bool) -> Sample:
    """Numbers that count up (wanted) or down, modulo 20."""
    first, step = draw.randrange(20), 1 if is_wanted else -1
    ids = [(first + step * i) % 20 for i in range(draw.randrange(6, 12))]
    return Sample(ids, ids, source="wanted" if is_wanted else "other")


torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=21, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
)
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.AdamW(model.parameters(), lr=3e-3),
    config={
        "train_micro_batch_size_per_gpu": 4 // world_size,
        "zero_optimization": {"stage": 2},
        "steps_per_print": 10**9,
    },
)
targets = TargetSet([sample(is_wanted=True) for _ in range(8)], target_per_step=8, seed=0)
settings = SelectionConfig(candidates_per_step=16, keep_per_step=4)
hook = SelectionHook.attach(engine, targets, settings, pad_token_id=20)

pool = [sample(is_wanted=draw.random() < 0.5) for _ in range(20 * settings.candidates_per_step)]
stream = CandidateStream(pool, settings.candidates_per_step, seed=0)  # the same order on every rank
proposer = Proposer(stream, settings, Uniform(), Every(1), seed=0)  # every step is scored

for step in range(20):
    trained = train_step(hook=hook, proposer=proposer, step=step)
    if rank == 0:
        candidates = [pool[i] for i in trained.plan.proposed.positions_n]
        kept = [candidates[i] for i in trained.look.selection.indices]
        print(
            f"step {step}: kept {len(kept)} of {len(candidates)}, "
            f"{sum(one.source == 'wanted' for one in kept)} of them wanted; cosine "
            f"{trained.look.selection.cosine}"
        )
