# B samples, T tokens, H hidden size, V vocabulary, N supervised tokens of the batch
"""The loss of a sample, mean cross-entropy over its own supervised tokens, wherever a loss is formed.

Samples are the rows of a batch (B, T), or stand one behind the other in one packed row (1, T), whose
``lengths`` say where they end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, Optional

import torch
import torch.nn.functional as F

LanguageModel = Any
"""A torch module with transformers' get_input_embeddings and get_output_embeddings."""
IGNORED = -100  # torch's ignore_index
# malloc keeps as much for the next chunk; more is given back, and page faults then cost a third of the time.
CPU_LOGITS_BYTES = 30 << 20


def logit_chunk_bytes(logits_mib: float, device_type: str) -> float:
    """Size limit of one chunk of float32 logits: ``logits_mib``, and CPU_LOGITS_BYTES at most on CPU."""
    return min(logits_mib * 2**20, CPU_LOGITS_BYTES) if device_type == "cpu" else logits_mib * 2**20


def per_sample_loss(
    logits_BTV: torch.Tensor, labels_BT: torch.Tensor, lengths: Optional[list[int]] = None
) -> torch.Tensor:
    """l_i = mean over supervised tokens t of -log p(label_t | tokens before t).

    A batch mean over all tokens would weigh a sample by its length; here every sample counts once.
    Only supervised positions are turned to float32: prompts and padding cost no softmax.

    Args:
        logits_BTV: model outputs, any float dtype.
        labels_BT: token ids, IGNORED where unsupervised. Position t is predicted from t - 1; position 0 has
            no prediction.
        lengths: tokens of each sample of a packed row, whose first token must be IGNORED; None where each row
            is a sample.

    Returns:
        float32 (B,); 0 for a sample without a supervised token.
    """
    is_supervised_BT = labels_BT[:, 1:] != IGNORED
    return _mean_by_sample(
        _token_loss(logits_BTV[:, :-1][is_supervised_BT], labels_BT[:, 1:][is_supervised_BT]),
        is_supervised_BT,
        lengths,
    )


def per_sample_loss_in_chunks(
    module: LanguageModel,
    input_ids_BT: torch.Tensor,
    labels_BT: torch.Tensor,
    num_chunks: int,
    loss_scale: float = 1.0,
    lengths: Optional[list[int]] = None,
) -> torch.Tensor:
    """``per_sample_loss`` of a model with plain logits, formed in parts and at supervised positions alone.

    All logits of 32,000 tokens and 128,000 words would take 16 GB, three times over. Here the output layer
    runs forward and backward on ``num_chunks`` parts of the supervised positions, one after the other, and
    leaves the gradient of the hidden states, which waits for the backward of the rest; under
    ``torch.no_grad`` it runs forward alone. Under ZeRO-3 every rank must come with the same number of
    chunks, as each gathers the layer. ``loss_scale`` keeps the waiting gradients of a float16 model from
    rounding to zero, and is divided out.

    P.-L. Hsu et al., Liger Kernel (arXiv 2410.10989), section 3.2, form logits and gradients in the same way.
    """
    output_layer = module.get_output_embeddings()
    hidden_BTH = hidden_states(module, input_ids_BT, lengths)
    is_supervised_BT = labels_BT[:, 1:] != IGNORED
    hidden_NH, labels_N = hidden_BTH[:, :-1][is_supervised_BT], labels_BT[:, 1:][is_supervised_BT]
    losses, grads = [], []
    for chunk_nH, labels_n in zip(
        hidden_NH.detach().tensor_split(num_chunks), labels_N.tensor_split(num_chunks)
    ):
        loss_n = _token_loss(output_layer(chunk_nH.requires_grad_()), labels_n)
        if torch.is_grad_enabled():
            grads.append(torch.autograd.grad(loss_n.sum() * loss_scale, chunk_nH)[0])
        losses.append(loss_n.detach())
    token_loss_N = torch.cat(losses)
    if torch.is_grad_enabled():
        token_loss_N = _KnownGradient.apply(hidden_NH, token_loss_N, torch.cat(grads), loss_scale)
    return _mean_by_sample(token_loss_N, is_supervised_BT, lengths)


def has_plain_logits(module: LanguageModel, device: torch.device) -> bool:
    """Whether the output layer gives the logits: chunks would miss soft caps and scales that come later.

    The model runs on one token, with known logits in place of its own; under ZeRO-3 that is a collective.
    """
    known = {}

    def replace(_, __, logits):
        known["logits"] = (
            torch.linspace(-100, 100, logits.shape[-1], device=logits.device)
            .to(logits.dtype)
            .expand_as(logits)
        )
        return known["logits"].clone()

    handle = module.get_output_embeddings().register_forward_hook(replace)
    try:
        with evaluating(module):
            logits = causal_logits(module, torch.zeros(1, 1, dtype=torch.long, device=device))
    finally:
        handle.remove()
    # The wrapper of a model under autocast gives float32.
    return torch.equal(logits, known["logits"].to(logits.dtype))


def hidden_states(
    module: LanguageModel, input_ids_BT: torch.Tensor, lengths: Optional[list[int]]
) -> torch.Tensor:
    """The output layer's input (B, T, H); the layer itself gets the last position alone, to save time."""
    seen = {}

    def last_position_only(_, arguments):
        seen["hidden_BTH"] = arguments[0]
        return (arguments[0][:, -1:], *arguments[1:])

    handle = module.get_output_embeddings().register_forward_pre_hook(last_position_only)
    try:
        causal_logits(module, input_ids_BT, lengths)
    finally:
        handle.remove()
    return seen["hidden_BTH"]


class _KnownGradient(torch.autograd.Function):
    """Token losses (N,) with known gradients for the hidden states, (N, H) times ``loss_scale``."""

    @staticmethod
    def forward(ctx, hidden_NH, token_loss_N, grad_NH, loss_scale):
        ctx.save_for_backward(grad_NH)
        ctx.loss_scale = loss_scale
        return token_loss_N

    @staticmethod
    def backward(ctx, loss_grad_N):
        (grad_NH,) = ctx.saved_tensors
        return (loss_grad_N[:, None] / ctx.loss_scale * grad_NH).to(grad_NH.dtype), None, None, None


def _token_loss(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(
        logits_NV.float() if logits_NV.dtype != torch.float64 else logits_NV, labels_N, reduction="none"
    )


def _mean_by_sample(
    token_loss_N: torch.Tensor, is_supervised_BT: torch.Tensor, lengths: Optional[list[int]]
) -> torch.Tensor:
    """Mean loss (B,) of each sample over its supervised positions, which are 1 to T - 1 of a row."""
    row_N, position_N = is_supervised_BT.nonzero().unbind(1)
    if lengths is None:
        sample_N, num_samples = row_N, len(is_supervised_BT)
    else:
        sample_T = torch.repeat_interleave(torch.tensor(lengths)).to(row_N.device)
        sample_N, num_samples = sample_T[position_N + 1], len(lengths)
    total_B = token_loss_N.new_zeros(num_samples).index_add(0, sample_N, token_loss_N)
    count_B = sample_N.new_zeros(num_samples).index_add(0, sample_N, torch.ones_like(sample_N))
    return total_B / count_B.clamp(min=1)


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put ``module`` in eval mode, without gradients, while inside; then restore the mode of every part."""
    was_training = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for child, training in was_training.items():
            child.training = training


def causal_logits(
    module: torch.nn.Module, input_ids_BT: torch.Tensor, lengths: Optional[list[int]] = None
) -> torch.Tensor:
    """Logits (B, T, V), without an attention mask, so that flash kernels run.

    A batch needs none: pads stand on the right, where a causal model never looks. In a packed row positions
    begin anew with each sample, from which transformers makes a block-diagonal mask; flash-attn's varlen
    kernels take the ends of the samples instead, ready-made here, as finding them in the positions makes
    every layer wait for the GPU.

    Args:
        module: a causal language model of transformers, or the engine around it.
        input_ids_BT: int64, padded on the right; (1, T) where packed.
        lengths: tokens of each sample of a packed row; None where each row is a sample.

    Returns:
        Logits in the model's dtype.
    """
    if lengths is None:
        return module(input_ids=input_ids_BT, use_cache=False).logits
    position_ids_1T = torch.cat([torch.arange(length) for length in lengths])[None].to(input_ids_BT.device)
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(input_ids_BT.device)
    return module(
        input_ids=input_ids_BT,
        position_ids=position_ids_1T,
        use_cache=False,
        cu_seq_lens_q=ends,
        cu_seq_lens_k=ends,
        max_length_q=max(lengths),
        max_length_k=max(lengths),
    ).logits
