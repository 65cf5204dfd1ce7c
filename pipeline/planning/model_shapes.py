# O out_features, I in_features
"""The shape of a model as far as it decides the cost of a selection step: its linear layers and its blocks.

Shapes come from the model itself, built without weights on the meta device and with the adapters of
``model.lora_*``, and ``scored_layers`` says what is scored: nothing here knows names of layers.
"""

from dataclasses import dataclass
from typing import Optional

import torch
from transformers import LlamaConfig, Qwen3Config

from pipeline.config import ModelConfig
from pipeline.scoring.factors import blocks, scored_layers
from pipeline.scoring.loss import LanguageModel
from pipeline.training.model import model_without_weights, on_meta_device

LLAMA_32_1B = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    tie_word_embeddings=True,
)
NAMED = {  # for plans where no hub can be reached; sizes as published in the models' config.json
    "llama-1b": LLAMA_32_1B,
    "meta-llama/Llama-3.2-1B": LLAMA_32_1B,
    "Qwen/Qwen3-0.6B": Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    # Llama 2 7B and 70B: H. Touvron et al. (arXiv 2307.09288), table 1 and meta-llama/Llama-2-{7b,70b}-hf
    "llama-7b": LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        tie_word_embeddings=False,
    ),
    "llama-70b": LlamaConfig(
        vocab_size=32000,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    ),
}


@dataclass(frozen=True)
class Linear:
    """One linear layer, an adapter's included."""

    name: str
    out_features: int
    in_features: int
    block: Optional[int]
    """Number of its transformer block, None outside of them (lm_head)."""
    is_trained: bool
    is_scored: bool
    """Trained, and tied to nothing."""

    @property
    def numel(self) -> int:
        return self.out_features * self.in_features


@dataclass(frozen=True)
class ModelShapes:
    name: str
    linears: tuple[Linear, ...]
    num_blocks: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    parameters: int
    trained_parameters: int

    @property
    def uncounted_share(self) -> float:
        """Share of parameters in matrices of neither linear layers nor embeddings: fused experts, say.

        Their work is not counted.
        """
        # The embedding; a tied lm_head is a linear layer and is this table too.
        tables = self.vocab_size * self.hidden_size
        known = sum(layer.numel for layer in self.linears) + tables
        return max(0.0, 1 - known / self.parameters)

    def backward(self, last_blocks: int = 0) -> list[Linear]:
        """Layers on the way of the scoring backward: those of the last blocks and those after them."""
        first = self.first_block(last_blocks)
        return [layer for layer in self.linears if layer.block is None or layer.block >= first]

    def scored(self, last_blocks: int = 0) -> list[Linear]:
        return [layer for layer in self.backward(last_blocks) if layer.is_scored]

    def first_block(self, last_blocks: int) -> int:
        return max(0, self.num_blocks - last_blocks) if last_blocks else 0


def read_shapes(settings: ModelConfig) -> ModelShapes:
    """Shapes of ``model.name``: a folder, a hub name, or one of ``NAMED``.

    Raises ValueError naming the setting where it is neither.
    """
    try:
        if settings.name in NAMED:
            return shapes_of(on_meta_device(NAMED[settings.name], settings), settings.name)
        return shapes_of(model_without_weights(settings), settings.name)
    except ValueError as error:
        if str(error).startswith("model.name"):
            raise ValueError(f"{error}; without either, plan for one of {', '.join(NAMED)}") from error
        raise ValueError(f"model: no plan can be made for {settings.name}: {error}") from error


def shapes_of(model: LanguageModel, name: str) -> ModelShapes:
    config = model.config.get_text_config()
    block_of = {f"{prefix}.": number for number, prefix in enumerate(blocks(model))}
    scored = scored_layers(model)
    num_heads = config.num_attention_heads
    return ModelShapes(
        name=name,
        linears=tuple(
            Linear(
                layer_name,
                layer.out_features,
                layer.in_features,
                next((number for prefix, number in block_of.items() if layer_name.startswith(prefix)), None),
                layer.weight.requires_grad,
                layer_name in scored,
            )
            for layer_name, layer in model.named_modules()
            if isinstance(layer, torch.nn.Linear)
        ),
        num_blocks=len(block_of),
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocab_size=config.vocab_size,
        num_heads=num_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
        parameters=sum(p.numel() for p in model.parameters()),
        trained_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )
