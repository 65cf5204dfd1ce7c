# K kept samples, B samples of a micro-batch, T tokens, W ranks
"""The weighted loss sum_k w_k l_k in the micro-batches of all ranks.

DeepSpeed, DistributedDataParallel and accelerate average gradients over ranks, and DeepSpeed divides each
loss by the number of micro-steps.  A micro-batch therefore brings

    W x micro_steps x sum_k w_k l_k      over its own samples k

to the backward, and what reaches the optimizer is the gradient of sum_k w_k l_k.
"""

from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch

from pipeline.data.collate import to_batch
from pipeline.data.sample import Sample
from pipeline.ranks.collectives import Collectives
from pipeline.step.deal_over_ranks import deal_over_ranks


@dataclass(frozen=True)
class MicroBatch:
    """Kept samples of this rank for one forward and backward: padded on the right, or all in one row."""

    input_ids_BT: torch.Tensor
    """int64; pads on the right need no attention mask."""
    labels_BT: torch.Tensor
    """int64, -100 where unsupervised."""
    weights_B: torch.Tensor
    """float32; 0 for the blank rows of a rank whose share is short."""
    num_tokens_B: torch.Tensor
    """int64, tokens without padding; 0 for blank rows."""
    lengths: Optional[list[int]] = None
    """Tokens of each sample in a packed row; None where each sample has a row of its own."""


def micro_batches(
    kept: list[Sample],
    weights_K: np.ndarray,
    collectives: Collectives,
    micro_steps: int,
    micro_batch_size: int,
    pad_token_id: int,
    is_packed: bool = False,
) -> list[MicroBatch]:
    """This rank's ``micro_steps`` micro-batches of the kept samples, in the order of their weights.

    Raises ValueError for more samples than W x micro_steps x micro_batch_size.
    """
    device = collectives.device
    own = deal_over_ranks(
        [len(sample.input_ids) for sample in kept], collectives.world_size, micro_steps, micro_batch_size
    )[collectives.rank]
    batches = []
    for positions in own:
        # A rank whose share is short brings blank rows: their loss is 0, their cost next to nothing.
        samples, num_rows = [kept[k] for k in positions], max(1, len(positions))
        input_ids_BT, labels_BT, lengths = to_batch(samples, pad_token_id, num_rows, device, is_packed)
        weights_B = torch.zeros(num_rows, device=device)
        weights_B[: len(positions)] = torch.as_tensor(weights_K[positions], dtype=torch.float32)
        num_tokens_B = torch.zeros(num_rows, dtype=torch.int64, device=device)
        num_tokens_B[: len(positions)] = torch.tensor(
            [len(sample.input_ids) for sample in samples], dtype=torch.int64
        )
        batches.append(MicroBatch(input_ids_BT, labels_BT, weights_B, num_tokens_B, lengths))
    return batches


def weighted_loss(loss_B: torch.Tensor, weights_B: torch.Tensor, divisor: int) -> torch.Tensor:
    """``divisor`` x sum_k w_k l_k over the samples of one micro-batch, a scalar.

    ``divisor`` is what stands between this loss and the gradient of the step: W for the mean over ranks,
    times the number of micro-steps where the backward divides by that too.
    """
    return (loss_B * weights_B).sum() * divisor
