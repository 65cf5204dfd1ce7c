# B samples, T tokens
"""Counted operations are those that PyTorch counts, on models as large as those of plans, without weights."""

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.planning import passes
from pipeline.planning.model_shapes import NAMED, shapes_of
from pipeline.scoring.factors import leaf_module, scored_layers, scoring_pass
from pipeline.training.model import on_meta_device
from tests.planning.plan_cases import sizes
from tests.planning.test_flops import counted, total

B, T = 2, 64
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name, lora_rank, checkpoints",
    [("llama-1b", 0, False), ("llama-1b", 0, True), ("llama-1b", 16, True), ("Qwen/Qwen3-0.6B", 0, False)],
)
def test_passes_with_and_without_recomputed_activations(name, lora_rank, checkpoints):
    """With the last product of a block or without it, as torch.utils.checkpoint stops early or may not."""
    model = on_meta_device(NAMED[name], ModelConfig(name=name, lora_rank=lora_rank)).train()
    if checkpoints:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if checkpoints and lora_rank:  # as peft does for a model that is checkpointed when it gets its adapters
        model.enable_input_require_grads()
    input_ids_BT = torch.zeros(B, T, dtype=torch.long, device="meta")
    # With a mask that is made already transformers need not look at positions, which are not there.
    mask = torch.ones(B, 1, T, T, dtype=torch.bool, device="meta")

    def plain():
        model(input_ids=input_ids_BT, attention_mask=mask, use_cache=False).logits.sum().backward()

    def score():
        with scoring_pass(model, scored_layers(model, 4), lambda *_: None, leaf_module(model, 4)):
            plain()

    shapes, run = shapes_of(model, name), sizes({"last_blocks": 4}, tokens=T, checkpoints=checkpoints)
    assert total(passes.plain(shapes, run, B)) == counted(plain)
    assert total(passes.scoring(shapes, run, B)) == counted(score)
