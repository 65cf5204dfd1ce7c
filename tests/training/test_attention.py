"""The flash kernel runs in the scoring pass, and where it cannot, the choice says so."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaForCausalLM
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available, is_flash_attn_4_available

from pipeline.data.collate import collate
from pipeline.scoring.factors import scored_layers, scoring_pass
from pipeline.scoring.loss import causal_logits, per_sample_loss
from pipeline.training import attention
from tests.reference import llama_config, random_samples, tiny_llama

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def all_kernels():
    """``choose`` switches kernels off for the whole process, in which other tests may have called it."""
    cuda = torch.backends.cuda
    before = (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )
    switches = (
        cuda.enable_flash_sdp,
        cuda.enable_mem_efficient_sdp,
        cuda.enable_math_sdp,
        cuda.enable_cudnn_sdp,
    )
    for switch in switches:
        switch(True)
    yield
    for switch, enabled in zip(switches, before):
        switch(enabled)


def kernels_of_a_scoring_pass(model, device) -> set[str]:
    input_ids_BT, labels_BT = collate(random_samples([9, 17, 5], seed=0), 0, device=device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with (
        torch.profiler.profile(activities=activities) as profile,
        scoring_pass(model, scored_layers(model), lambda *_: None),
    ):
        per_sample_loss(causal_logits(model, input_ids_BT), labels_BT).sum().backward()
    return {event.name for event in profile.events()}


def takes_grouped_queries() -> bool:
    """Whether this torch's flash kernel for the CPU does, as in the test's model; in 2.8 it does not."""
    query, key = torch.zeros(1, 4, 8, 8), torch.zeros(1, 2, 8, 8)
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(query, key, key, enable_gqa=True)
    except RuntimeError:
        return False
    return True


@pytest.mark.skipif(
    not takes_grouped_queries(),
    reason=f"the CPU flash kernel of torch {torch.__version__} takes no grouped queries",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_flash_kernel_runs_forward_and_backward_in_a_scoring_pass(dtype):
    chosen = attention.choose("auto", CPU, dtype, llama_config())
    assert chosen.implementation == "sdpa" and "flash" in chosen.kernel and chosen.slower == ""
    names = kernels_of_a_scoring_pass(tiny_llama(attention=chosen.implementation).to(dtype), CPU)
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names, sorted(
        n for n in names if "attention" in n
    )
    assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in names, sorted(
        n for n in names if "attention" in n
    )


def test_eager_attention_runs_no_flash_kernel_and_says_that_it_is_slower():
    chosen = attention.choose("eager", CPU, torch.float32, llama_config())
    assert chosen.implementation == "eager" and "eager" in chosen.slower
    assert not any(
        "flash" in name for name in kernels_of_a_scoring_pass(tiny_llama(attention="eager").float(), CPU)
    )


def test_a_refused_shape_falls_back_and_is_reported(monkeypatch):
    """The kernel's own error becomes the reason; all kernels stay allowed."""

    def refuse(*_, **__):
        raise RuntimeError("No available kernel. Aborting execution.\nmore lines")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuse)
    reason = attention.probe("sdpa", CPU, torch.float32, llama_config())
    assert "heads of 6 in torch.float32: No available kernel" in reason and "\n" not in reason
    chosen = attention.choose("auto", CPU, torch.float32, llama_config())
    assert f"PyTorch's flash kernel: {reason}" in chosen.slower and "any kernel" in chosen.kernel
    assert torch.backends.cuda.math_sdp_enabled()


@pytest.mark.parametrize("name", list(attention.FLASH_PACKAGES))
def test_a_named_kernel_that_cannot_run_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=f"model.attention = {name} cannot run: it needs a CUDA card"):
        attention.choose(name, CPU, torch.bfloat16, llama_config())


@pytest.mark.parametrize("name", list(attention.FLASH_PACKAGES))
def test_packing_is_the_default_of_varlen_kernels_alone(name):
    varlen, dense = attention.Attention(name, ""), attention.Attention("sdpa", "")
    for device in (CPU, torch.device("cuda")):
        assert attention.packs("auto", varlen, device) and attention.packs(True, varlen, device)
        assert not attention.packs("auto", dense, device)
        assert not attention.packs(False, varlen, device) and not attention.packs(False, dense, device)
    assert attention.packs(True, dense, CPU)


def test_packing_by_a_flash_kernel_that_takes_no_mask_is_refused():
    with pytest.raises(
        ValueError, match=r"model\.packing = true cannot run with PyTorch's SDPA on a GPU.*flash-attn"
    ):
        attention.packs(True, attention.Attention("sdpa", ""), torch.device("cuda"))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")


@pytest.mark.gpu
@needs_gpu
def test_a_flash_kernel_runs_on_the_gpu_in_bf16():
    device = torch.device("cuda")
    config = llama_config(hidden_size=96, num_attention_heads=3, num_key_value_heads=1)
    chosen = attention.choose("auto", device, torch.bfloat16, config)
    model = LlamaForCausalLM._from_config(config, attn_implementation=chosen.implementation).to(
        device, torch.bfloat16
    )
    names = kernels_of_a_scoring_pass(model, device)
    found = sorted(name for name in names if "flash" in name.lower() or "attention" in name.lower())
    if is_flash_attn_4_available() or is_flash_attn_3_available() or is_flash_attn_2_available():
        assert chosen.implementation.startswith("flash_attention_"), (chosen, found)
        assert any("flash" in name.lower() and not name.startswith("aten::") for name in names), found
    else:
        assert chosen.implementation == "sdpa" and chosen.slower, chosen
        assert "aten::_flash_attention_forward" in names and "aten::_flash_attention_backward" in names, found


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype, head_dim", [(torch.float32, 64), (torch.bfloat16, 512)])
def test_what_the_gpu_kernel_refuses_is_a_reason_and_not_an_error(dtype, head_dim):
    config = llama_config(
        hidden_size=2 * head_dim, num_attention_heads=2, num_key_value_heads=2, head_dim=head_dim
    )
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        refusal = attention.probe("sdpa", torch.device("cuda"), dtype, config)
    assert f"heads of {head_dim} in {dtype}" in refusal
