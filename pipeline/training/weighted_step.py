# K kept samples, B samples of a micro-batch, W ranks
"""One optimizer step on the weighted loss sum_k w_k l_k, through the engine.

DeepSpeed divides each loss by the number of micro-steps and averages gradients over ranks.  A micro-batch therefore brings

    W x micro_steps x sum_k w_k l_k      over its own samples k,

and what reaches the optimizer is the gradient of sum_k w_k l_k.  With all candidates kept and w = 1/C this is DeepSpeed's plain
step.
"""

import math
from dataclasses import dataclass
from typing import Optional

import torch
from torch.nn.utils import get_total_norm

from pipeline.data.collate import to_batch
from pipeline.data.sample import Sample
from pipeline.scoring.collectives import Collectives
from pipeline.scoring.loss import causal_logits, per_sample_loss
from pipeline.scoring.moments import loss_scale
from pipeline.selection.contract import Selection
from pipeline.training.balance import deal, fetch_kept


@dataclass(frozen=True)
class StepResult:
    loss: float
    """sum_k w_k l_k before the update, over all ranks."""
    grad_norm: Optional[float]
    """Before clipping; None where the step was skipped."""
    num_tokens: int
    """Tokens of the kept samples, over all ranks, without padding."""
    was_applied: bool = True
    """False where a float16 gradient overflowed: parameters and Adam state are as before, and the next step has a smaller loss scale."""
    loss_scale: Optional[float] = None
    """What the gradients were multiplied by, in float16."""


def weighted_step(
    engine, candidates: list[Sample], selection: Selection, pad_token_id: int, is_packed: bool = False
) -> StepResult:
    """Train on the kept samples; ``candidates`` are this rank's, as given to ``SelectionHook.select``.

    ``is_packed`` makes one row of each micro-batch instead of padding it.

    Raises RuntimeError on all ranks, and leaves the parameters as they were, where the loss or the gradient is not finite. In float16 a
    gradient that overflows is DeepSpeed's to handle, by skipping the step, as long as its loss scale can be lowered.
    """
    collectives = Collectives(engine.seq_data_parallel_group, engine.device)
    kept = fetch_kept(candidates, selection, collectives)
    micro_steps = engine.gradient_accumulation_steps()
    num_tokens_K = [len(sample.input_ids) for sample in kept]
    own = deal(num_tokens_K, collectives.world_size, micro_steps, engine.train_micro_batch_size_per_gpu())[collectives.rank]
    step, total = engine.global_steps, torch.zeros((), device=engine.device)
    scale = loss_scale(engine) if engine.fp16_enabled() else None
    for micro_step, positions in enumerate(own):
        # A rank whose share is short brings blank rows: their loss is 0, their cost next to nothing.
        samples, num_rows = [kept[k] for k in positions], max(1, len(positions))
        input_ids_BT, labels_BT, lengths = to_batch(samples, pad_token_id, num_rows, engine.device, is_packed)
        weights_B = torch.zeros(num_rows, device=engine.device)
        weights_B[: len(positions)] = torch.as_tensor(selection.weights[positions], dtype=torch.float32)
        loss_B = per_sample_loss(causal_logits(engine, input_ids_BT, lengths), labels_BT, lengths)
        loss = (loss_B * weights_B).sum()
        total += loss.detach()
        engine.backward(loss * (collectives.world_size * micro_steps))
        if micro_step == micro_steps - 1:
            _require_finite(step, "weighted loss", collectives.sum(total).item())
            if isinstance(engine.optimizer, torch.optim.Optimizer):  # stage 0 in fp32: DeepSpeed looks at no norm itself
                grad_norm = get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None]).item()
                _require_finite(step, "gradient norm", grad_norm)
        engine.step()
    was_applied = engine.was_step_applied()
    if not was_applied and scale is not None and scale > 1:
        return StepResult(total.item(), None, sum(num_tokens_K), was_applied, scale)
    if not isinstance(engine.optimizer, torch.optim.Optimizer):
        grad_norm = float(engine.get_global_grad_norm())
    if not was_applied:  # ZeRO has seen a gradient that overflowed, on any rank
        _require_finite(step, "gradient norm", grad_norm if not math.isfinite(grad_norm) else math.inf)
    return StepResult(total.item(), grad_norm, sum(num_tokens_K), was_applied, scale)


def _require_finite(step: int, name: str, value: float) -> None:
    """Values are the same on every rank, so all raise together."""
    if not math.isfinite(value):
        raise RuntimeError(
            f"step {step}: the {name} is {value}; no update was made. Lower training.learning_rate, or look at the samples of "
            "this step"
        )
