"""Tokenizer and model: pretrained weights, LoRA adapters, attention kernel."""

from dataclasses import replace
from pathlib import Path
from typing import Optional

import jinja2
import jinja2.ext
import jinja2.sandbox
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.integrations import HfDeepSpeedConfig

from pipeline.config import ModelConfig
from pipeline.settings import TEMPLATES
from pipeline.training.attention import Attention, choose
from pipeline.training.small_model import located


def load_tokenizer(settings: ModelConfig) -> PreTrainedTokenizerBase:
    """Tokenizer with a pad token (the end token where it has none: pads are never seen nor supervised)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(located(settings.name), **_source(settings))
    # It is a ValueError for a model with code of its own, which needs model.trust_remote_code.
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.name: {settings.name} is no folder with a model and cannot be had from the hub: {error}"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if settings.chat_template:
        tokenizer.chat_template = _chat_template(TEMPLATES.find(settings.chat_template))
    return tokenizer


def partition_while_loading(merged: dict) -> Optional[HfDeepSpeedConfig]:
    """A handle that makes ``load_model`` split a model over the ranks at once, for as long as it is kept.

    None below ZeRO-3.
    """
    return HfDeepSpeedConfig(merged) if merged.get("zero_optimization", {}).get("stage") == 3 else None


def load_model(
    settings: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int, **options
) -> tuple[torch.nn.Module, Attention]:
    """Causal language model, with adapters if ``lora_rank`` > 0, and the attention kernel it will use.

    Weights are seeded, so that every rank draws the same adapters; ``options`` go to transformers'
    ``from_pretrained``. Raises ValueError where weights are missing from the files.
    """
    config = AutoConfig.from_pretrained(located(settings.name), **_source(settings))
    attention = choose(settings.attention, device, dtype, config.get_text_config())
    torch.manual_seed(seed)
    model, loading = AutoModelForCausalLM.from_pretrained(
        located(settings.name),
        dtype=dtype,
        attn_implementation=attention.implementation,
        output_loading_info=True,
        **_source(settings),
        **options,
    )
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ValueError(
            f"model.name: {settings.name} lacks {len(missing)} weights, which would be random: "
            f"{', '.join(missing[:3])}"
        )
    model.config.use_cache = False
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if settings.lora_rank:
        model = add_adapters(model, settings)
    return model, attention


def load_reference_model(
    name: Optional[str],
    settings: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    device: torch.device,
) -> Optional[torch.nn.Module]:
    """``selection.reference_model``, frozen and whole on ``device``; None where there is none.

    An adapter is merged into its base model. This must be loaded before the model that ZeRO-3 splits. Raises
    ValueError where it reads other tokens than ``tokenizer`` writes, or is not there.
    """
    if name is None:
        return None
    own = replace(settings, name=name, revision=None, lora_rank=0, gradient_checkpointing=False)
    try:
        vocabulary = load_tokenizer(own).get_vocab()
        is_adapter = (Path(name) / "adapter_config.json").is_file()
        base = (
            replace(own, name=PeftConfig.from_pretrained(name).base_model_name_or_path) if is_adapter else own
        )
        model, _ = load_model(base, dtype, device, seed=0, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"selection.reference_model = {name} cannot be loaded: {error}") from error
    if vocabulary != tokenizer.get_vocab():
        raise ValueError(
            f"selection.reference_model = {name} has another tokenizer ({len(vocabulary):,} tokens) than "
            f"model.name = {settings.name} ({len(tokenizer.get_vocab()):,}), so their losses are of "
            "different tokens: train a reference from the same family"
        )
    if is_adapter:
        model = PeftModel.from_pretrained(model, name).merge_and_unload()
    return model.requires_grad_(False).eval().to(device)


def model_without_weights(settings: ModelConfig) -> torch.nn.Module:
    """The same model on the meta device, shapes alone, for planning; only the model's config.json is read."""
    try:
        config = AutoConfig.from_pretrained(located(settings.name), **_source(settings))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.name: {settings.name} is no folder with a model and cannot be had from the hub: {error}"
        ) from error
    return on_meta_device(config, settings)


def on_meta_device(config: PretrainedConfig, settings: ModelConfig) -> torch.nn.Module:
    """A model of ``config`` with the adapters of ``settings``, without memory for its weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=settings.trust_remote_code)
        return add_adapters(model, settings) if settings.lora_rank else model


def add_adapters(model: torch.nn.Module, settings: ModelConfig) -> torch.nn.Module:
    adapters = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=settings.lora_targets,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapters, autocast_adapter_dtype=False)


def _chat_template(file: str) -> str:
    """The template in a file. Raises ValueError with file and line where it is no Jinja template."""
    try:
        template = Path(file).read_text(encoding="utf-8").strip()
        # Parsed as transformers does; the effects of a template show when it meets the first chat.
        jinja2.sandbox.ImmutableSandboxedEnvironment(
            extensions=["jinja2.ext.loopcontrols", _Generation]
        ).parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"model.chat_template: {file}:{error.lineno}: {error.message}") from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"model.chat_template: {file} cannot be read: {error}") from error
    return template


class _Generation(jinja2.ext.Extension):
    """The tag that marks the assistant's text."""

    tags = {"generation"}  # noqa: RUF012  a set in the base too

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _source(settings: ModelConfig) -> dict:
    return {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
