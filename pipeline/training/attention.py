"""The attention kernel, decided before the model is loaded and said aloud."""

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available, is_flash_attn_4_available

FLASH_PACKAGES = {  # name in transformers: (is it installed, CUDA capabilities it has kernels for)
    "flash_attention_4": (is_flash_attn_4_available, lambda major: major in (9, 10)),
    "flash_attention_3": (is_flash_attn_3_available, lambda major: major == 9),
    "flash_attention_2": (is_flash_attn_2_available, lambda major: major >= 8),
}


@dataclass(frozen=True)
class Attention:
    """The kernel that runs."""

    implementation: str
    """transformers' ``attn_implementation``."""
    kernel: str
    """Description of the kernel, in words."""
    slower: str = ""
    """Why it is not a flash kernel; '' where it is."""


def choose(setting: str, device: torch.device, dtype: torch.dtype, config) -> Attention:
    """The kernel for ``model.attention``.

    ``auto``: the newest flash-attn package that is installed and fits the card; else PyTorch's
    SDPA, restricted to its flash kernel where the model's shapes allow it. Raises ValueError
    for a named kernel that does not run.
    """
    refusals = []
    for name, (is_installed, fits) in FLASH_PACKAGES.items():
        if setting not in ("auto", name):
            continue
        refusal = _refusal(name, is_installed, fits, device, dtype) or probe(name, device, dtype, config)
        if not refusal:
            return Attention(name, f"{name} (flash-attn package)")
        if setting == name:
            raise ValueError(f"model.attention = {name} cannot run: {refusal}; auto takes what can")
        refusals.append(f"{name}: {refusal}")
    if setting == "eager":
        return Attention("eager", "eager matrix products", "model.attention = eager")
    return _restrict_sdpa(device, dtype, config, refusals)


def packs(setting: str | bool, attention: Attention, device: torch.device) -> bool:
    """Whether samples stand in one row instead of being padded.

    Args:
        setting: ``model.packing``.
        attention: the kernel that runs.
        device: where it runs.

    Raises:
        ValueError: the setting asks for it, and the kernel cannot take such a row.
    """
    has_varlen = attention.implementation in FLASH_PACKAGES
    if setting == "auto":
        return has_varlen
    if setting and attention.implementation == "sdpa" and device.type != "cpu":
        raise ValueError(
            "model.packing = true cannot run with PyTorch's SDPA on a GPU: a packed row needs a mask, which "
            "its flash kernel does not take. Install a flash-attn package (requirements-gpu.txt, the extra "
            "gpu), or leave model.packing at auto"
        )
    return bool(setting)


def _refusal(name, is_installed, fits, device, dtype) -> str:
    if device.type != "cuda":
        return "it needs a CUDA card"
    if not is_installed():
        return "its package is not installed (requirements-gpu.txt, the extra gpu)"
    if not fits(torch.cuda.get_device_capability(device)[0]):
        return f"it has no kernels for {torch.cuda.get_device_name(device)}"
    return "" if dtype in (torch.bfloat16, torch.float16) else f"it runs in bf16 or fp16, not in {dtype}"


def _restrict_sdpa(device, dtype, config, refusals) -> Attention:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        refusal = probe("sdpa", device, dtype, config)
    slower = "" if device.type == "cpu" else "; ".join(refusals)
    if refusal:
        return Attention(
            "sdpa",
            "PyTorch SDPA, any kernel",
            "; ".join(filter(None, [slower, f"PyTorch's flash kernel: {refusal}"])),
        )
    # Process-wide: a shape that the flash kernel cannot take is an error from here on, no slow surprise.
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_math_sdp(False)
    return Attention("sdpa", f"PyTorch SDPA, flash kernel only ({device.type})", slower)


def probe(implementation: str, device: torch.device, dtype: torch.dtype, config) -> str:
    """The reason why a layer with the model's heads cannot run with this kernel; '' if it can."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    layer = LlamaConfig(
        vocab_size=8,
        hidden_size=heads * head_dim,
        head_dim=head_dim,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=getattr(config, "num_key_value_heads", heads),
        attention_dropout=getattr(config, "attention_dropout", 0.0),
        attn_implementation=implementation,
    )
    try:
        # Training mode, as in the weighted step, with dropout.
        model = LlamaForCausalLM(layer).to(device, dtype).train()
        model(input_ids=torch.zeros(2, 16, dtype=torch.int64, device=device)).logits.sum().backward()
    except (RuntimeError, ValueError, ImportError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"{heads} heads of {head_dim} in {dtype}: {reason}"
    return ""
