"""Selection in TRL's SFTTrainer: one class and two arguments. A tiny model and tokenizer, on CPU, in seconds.

pip install 'trl>=1.16,<2'
PYTHONPATH=. python examples/sft.py
PYTHONPATH=. accelerate launch --cpu --num_processes 2 examples/sft.py
"""

import os
import random

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from pipeline.config import SelectionConfig
from pipeline.integrations.trainer import SelectionMixin


class SelectionSFTTrainer(SelectionMixin, SFTTrainer):
    """An SFTTrainer that selects among its samples, and weighs them."""


draw = random.Random(0)
words = ["<pad>", "<eos>", "up", "down", *map(str, range(20))]
split = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
split.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=split, pad_token="<pad>", eos_token="<eos>")


def row(is_wanted: bool) -> dict:
    """Numbers that count up (wanted) or down, modulo 20."""
    first, step = draw.randrange(20), 1 if is_wanted else -1
    numbers = [str((first + step * i) % 20) for i in range(draw.randrange(4, 9))]
    return {
        "prompt": f"up {numbers[0]} " if is_wanted else f"down {numbers[0]} ",
        "completion": " ".join(numbers[1:]),
    }


pool = Dataset.from_list([row(i % 2 == 0) for i in range(320)])
examples = Dataset.from_list([row(True) for _ in range(8)])
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
)
arguments = SFTConfig(
    output_dir=os.environ.get("OUTPUT", "runs/sft"),
    per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", "1")),
    num_train_epochs=1,
    learning_rate=3e-3,
    logging_steps=5,
    save_strategy="no",
    report_to=[],
    use_cpu=not torch.cuda.is_available(),
    bf16=False,
)
trainer = SelectionSFTTrainer(
    model,
    arguments,
    processing_class=tokenizer,
    train_dataset=pool,
    target_dataset=examples,
    selection=SelectionConfig(candidates_per_step=16, keep_per_step=4),
)
trainer.train()
if trainer.is_world_process_zero():
    logs = [entry for entry in trainer.state.log_history if "selection_scored" in entry]
    scored = sum(entry["selection_scored"] for entry in logs) / len(logs)
    cosine = [entry["selection_cosine"] for entry in logs if "selection_cosine" in entry][-1]
    print(f"{trainer.state.global_step} updates, {scored:.0%} of them scored; last cosine {cosine:.3f}")
