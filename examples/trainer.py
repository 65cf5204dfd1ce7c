"""Selection in Hugging Face's Trainer, on CPU, in seconds: a tiny model, and five marked lines that differ.

PYTHONPATH=. python examples/trainer.py
PYTHONPATH=. accelerate launch --cpu --num_processes 2 examples/trainer.py
PYTHONPATH=. ZERO_STAGE=2 deepspeed --num_gpus 2 examples/trainer.py
"""

import os
import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from pipeline.config import SelectionConfig  # <-
from pipeline.integrations.trainer import SelectionTrainer  # <-

draw = random.Random(0)


def row(is_wanted: bool) -> dict:
    """Numbers that count up (wanted) or down, modulo 20."""
    first, step = draw.randrange(20), 1 if is_wanted else -1
    ids = [(first + step * i) % 20 for i in range(8)]
    return {"input_ids": ids, "labels": ids}


pool = [row(i % 2 == 0) for i in range(320)]
examples = [row(True) for _ in range(8)]
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=20, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
)
stage = os.environ.get("ZERO_STAGE")
arguments = TrainingArguments(
    output_dir=os.environ.get("OUTPUT", "runs/trainer"),
    per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", "1")),
    num_train_epochs=1,
    learning_rate=3e-3,
    logging_steps=5,
    save_strategy="no",
    report_to=[],
    use_cpu=not torch.cuda.is_available(),
    deepspeed=None
    if stage is None
    else {
        "zero_optimization": {"stage": int(stage)},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    },
)
trainer = SelectionTrainer(  # <-
    model,
    arguments,
    train_dataset=pool,
    target_dataset=examples,  # <-
    selection=SelectionConfig(candidates_per_step=16, keep_per_step=4),  # <-
)
trainer.train()
if trainer.is_world_process_zero():
    logs = [entry for entry in trainer.state.log_history if "selection_scored" in entry]
    scored = sum(entry["selection_scored"] for entry in logs) / len(logs)
    cosine = [entry["selection_cosine"] for entry in logs if "selection_cosine" in entry][-1]
    print(f"{trainer.state.global_step} updates, {scored:.0%} of them scored; last cosine {cosine:.3f}")
