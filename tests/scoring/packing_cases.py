"""The ranks' side of test_packing.py: real engines whose samples stand in packed rows."""

from dataclasses import replace
from pathlib import Path

import torch

from pipeline.data.sample import Sample
from tests import reference
from tests.scoring.engine_cases import (
    FACTORED,
    IDENTITY,
    LAST,
    PLAIN,
    PROJECTED,
    Case,
    Variant,
    build_engine,
    candidates,
    close,
    settings_of,
    share,
)

VARIANTS = (
    PLAIN,
    PROJECTED,
    FACTORED,
    LAST,
    IDENTITY,
    Variant(micro_batch=2, exchange_bytes=5000),
    Variant(logits_mib=0.003),
    Variant(micro_batch=2, geometry="identity", contraction="token_token"),
)
CASES = [
    Case(2, "full", is_packed=True, variants=VARIANTS),
    Case(3, "full", is_packed=True, variants=VARIANTS),
    Case(2, "lora", is_packed=True, gradient_accumulation_steps=2, note="accumulation"),
    Case(3, "lora", is_packed=True, checkpointing=True, variants=VARIANTS, note="checkpointing"),
]


def run(model_folder: str, folder: str) -> dict:
    """Held-out losses and signals packed and padded, and what the self-check says of models."""
    from pipeline.hook import SelectionHook
    from pipeline.training import self_check
    from pipeline.training.engine import start_process_group
    from pipeline.training.evaluation import held_out_loss

    rank, world_size, _ = start_process_group(120)
    found = {"held_out": [], "signals": [], "self_checks": {}}
    own = share(candidates(2), rank, world_size)
    for stage in (2, 3):
        case = Case(stage)
        settings = settings_of(case, model_folder, Path(folder) / f"packing-{rank}-{stage}.json", world_size)
        engine = build_engine(case, settings)
        held_out = reference.random_samples([9, 2, 14, 1, 6], seed=7)
        found["held_out"].append(
            [held_out_loss(engine, held_out, 0, 2, is_packed) for is_packed in (True, False)]
        )
        for method in ("grad_norm", "max_loss"):
            signals = []
            for is_packed in (True, False):
                changed = replace(settings.selection, method=method, scoring_micro_batch_size=2)
                hook = SelectionHook.attach(engine, None, changed, 0, is_packed=is_packed)
                look = hook.select(own, 2)
                signals.append({key: value for key, value in vars(look.signals).items() if value is not None})
            found["signals"].append(signals)
        close(engine)
    long_enough = [Sample(s.input_ids * 2, s.input_ids * 2) for s in own]
    for name, model in models().items():
        engine = engine_of(model.float())
        hook = SelectionHook.attach(
            engine, None, replace(settings.selection, method="grad_norm"), 0, is_packed=True
        )
        found["self_checks"][name] = self_check.run(hook, long_enough)
        close(engine)
    return found


def llama(**options):
    return reference.tiny_llama(attention="sdpa", **options).eval()


def small(model_class, config_class, **options):
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=reference.VOCABULARY,
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=6,
        max_position_embeddings=64,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = config_class(**{**sizes, **options})
    config._attn_implementation = "sdpa"  # eager takes its softmax in float32
    return model_class(config).double().eval()


def models() -> dict[str, torch.nn.Module]:
    """A window of attention, which transformers keeps within samples; a convolution's state and positions
    counted in the row, which go across them."""
    import transformers as hf

    return {
        "llama": llama(),
        "sliding_window": small(
            hf.MistralForCausalLM,
            hf.MistralConfig,
            intermediate_size=50,
            num_key_value_heads=3,
            sliding_window=4,
        ),
        "convolution": small(
            hf.Lfm2ForCausalLM,
            hf.Lfm2Config,
            intermediate_size=50,
            num_key_value_heads=3,
            layer_types=["conv", "full_attention"],
        ),
        "positions_of_the_row": small(hf.OPTForCausalLM, hf.OPTConfig, ffn_dim=50, word_embed_proj_dim=36),
    }


def engine_of(model):
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": 2},
        "steps_per_print": 10**9,
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
    }
    return deepspeed.initialize(model=model, config=config, model_parameters=list(model.parameters()))[0]
