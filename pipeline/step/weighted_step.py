# B samples of a micro-batch
"""One optimizer step on the weighted loss sum_k w_k l_k, through the engine.

With all candidates kept and w = 1/C this is DeepSpeed's plain step (pipeline/step/micro_batches.py says why).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch.nn.utils import get_total_norm

from pipeline.data.sample import Sample
from pipeline.ranks.collectives import Collectives
from pipeline.scoring.loss import causal_logits, per_sample_loss
from pipeline.scoring.moments import loss_scale
from pipeline.selection.contract import Selection
from pipeline.step.deal_over_ranks import fetch_kept
from pipeline.step.micro_batches import micro_batches, weighted_loss


@dataclass(frozen=True)
class StepResult:
    """Loss, norm and size of one step, the same on every rank."""

    loss: float
    """sum_k w_k l_k before the update, over all ranks."""
    grad_norm: Optional[float]
    """2-norm over all trained parameters, before clipping; None where the step was skipped."""
    num_tokens: int
    """Tokens of the kept samples, over all ranks, without padding."""
    was_applied: bool = True
    """False where a float16 gradient overflowed: parameters and Adam state are as before, and the next step
    has a smaller loss scale."""
    loss_scale: Optional[float] = None
    """The factor of the loss, and so of all gradients, in float16."""


def weighted_step(
    engine,
    candidates: list[Sample],
    selection: Selection,
    pad_token_id: int,
    is_packed: bool = False,
    mixed: Sequence[Sample] = (),
    mixed_share: float = 0.0,
) -> StepResult:
    """One optimizer step on the kept samples. Every rank calls it.

    Args:
        engine: what ``deepspeed.initialize`` returns.
        candidates: this rank's, as given to ``SelectionHook.select``.
        selection: this step's part of what that has chosen.
        pad_token_id: fills up short rows.
        is_packed: one row of each micro-batch instead of padding it.
        mixed: target examples that are trained on besides, the same on every rank.
        mixed_share: their weight together; the selection's weights share what they leave.

    Returns:
        Loss, norm and size of the step.

    Raises:
        RuntimeError: on all ranks, with the parameters as they were, where the loss or the gradient is not
            finite. In float16 a gradient that overflows is DeepSpeed's to handle, by skipping the step, as
            long as its loss scale can be lowered.
    """
    collectives = Collectives(engine.seq_data_parallel_group, engine.device)
    kept = [*fetch_kept(candidates, selection, collectives), *mixed]
    weights_K = np.concatenate(
        [selection.weights * (1 - mixed_share), np.full(len(mixed), mixed_share / max(1, len(mixed)))]
    )
    micro_steps = engine.gradient_accumulation_steps()
    micro_batch_size = engine.train_micro_batch_size_per_gpu()
    batches = micro_batches(
        kept, weights_K, collectives, micro_steps, micro_batch_size, pad_token_id, is_packed
    )
    divisor, num_tokens = collectives.world_size * micro_steps, sum(len(sample.input_ids) for sample in kept)
    step, total = engine.global_steps, torch.zeros((), device=engine.device)
    scale = loss_scale(engine) if engine.fp16_enabled() else None
    for micro_step, batch in enumerate(batches):
        loss_B = per_sample_loss(
            causal_logits(engine, batch.input_ids_BT, batch.lengths), batch.labels_BT, batch.lengths
        )
        loss = weighted_loss(loss_B, batch.weights_B, divisor)
        total += loss.detach() / divisor
        engine.backward(loss)
        if micro_step == micro_steps - 1:
            _require_finite(step, "weighted loss", collectives.sum(total).item())
            # stage 0 in fp32: DeepSpeed looks at no norm itself
            if isinstance(engine.optimizer, torch.optim.Optimizer):
                grad_norm = get_total_norm(
                    [p.grad for p in engine.module.parameters() if p.grad is not None]
                ).item()
                _require_finite(step, "gradient norm", grad_norm)
        engine.step()
    was_applied = engine.was_step_applied()
    if not was_applied and scale is not None and scale > 1:
        return StepResult(total.item(), None, num_tokens, was_applied, scale)
    if not isinstance(engine.optimizer, torch.optim.Optimizer):
        grad_norm = float(engine.get_global_grad_norm())
    if not was_applied:  # ZeRO has seen a gradient that overflowed, on any rank
        _require_finite(step, "gradient norm", grad_norm if not math.isfinite(grad_norm) else math.inf)
    return StepResult(total.item(), grad_norm, num_tokens, was_applied, scale)


def _require_finite(step: int, name: str, value: float) -> None:
    """Raise RuntimeError for a value that is not finite; it is the same on every rank, so all raise
    together."""
    if not math.isfinite(value):
        raise RuntimeError(
            f"step {step}: the {name} is {value}; no update was made. Lower training.learning_rate, or look "
            "at the samples of this step"
        )
