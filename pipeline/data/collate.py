# B samples, T tokens, N tokens of all samples
"""Samples to tensors: a row for each, padded, or one row for all.

Padding is on the right: under causal attention no real token sees a pad, so no attention mask is needed, and
the flash kernels that refuse masks run. A packed row has no pads; the lengths of its samples go with it, for
all code that must tell them apart.
"""

from typing import Optional

import torch

from pipeline.data.sample import IGNORED, Sample


def to_batch(
    samples: list[Sample], pad_token_id: int, num_rows: int, device: torch.device, is_packed: bool
) -> tuple[torch.Tensor, torch.Tensor, Optional[list[int]]]:
    """``(input_ids_BT, labels_BT, lengths)``, from ``pack`` or from ``collate``.

    ``num_rows`` is for ``collate`` alone, whose ``lengths`` are None; a packed batch has one row.
    """
    return (
        pack(samples, pad_token_id, device)
        if is_packed
        else (*collate(samples, pad_token_id, num_rows, device), None)
    )


def pack(
    samples: list[Sample], pad_token_id: int, device: Optional[torch.device] = None
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """All samples in one row, one behind the other: ``(input_ids_1N, labels_1N, lengths)``, int64.

    ``lengths`` are the numbers of tokens of the samples. The first token of a sample is labelled ``IGNORED``:
    nothing before it predicts it. N is at least 2, as in ``collate``: missing tokens are pads at the end of
    the last sample, or a sample of pads where there is none.
    """
    input_ids = [token for sample in samples for token in sample.input_ids]
    labels = [
        label for sample in samples for label in ([IGNORED, *sample.labels[1:]] if sample.labels else [])
    ]
    lengths = [len(sample.input_ids) for sample in samples] or [0]
    missing = max(0, 2 - len(input_ids))
    lengths[-1] += missing
    tensors = torch.tensor([input_ids + [pad_token_id] * missing, labels + [IGNORED] * missing]).to(device)
    return tensors[:1], tensors[1:], lengths


def collate(
    samples: list[Sample],
    pad_token_id: int,
    num_rows: Optional[int] = None,
    device: Optional[torch.device] = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(input_ids_BT, labels_BT)``, int64, padded to the longest sample; pads are labelled ``IGNORED``.

    ``num_rows`` is B where ranks must agree on it: blank rows (pads without labels) are appended. No sample
    at all gives (num_rows, 2), the smallest input on which a causal model predicts something.
    """
    num_rows = len(samples) if num_rows is None else num_rows
    assert num_rows >= len(samples), f"{len(samples)} samples do not fit {num_rows} rows"
    num_tokens = max([2, *(len(sample.input_ids) for sample in samples)])
    input_ids_BT = torch.full((num_rows, num_tokens), pad_token_id)
    labels_BT = torch.full((num_rows, num_tokens), IGNORED)
    for row, sample in enumerate(samples):
        input_ids_BT[row, : len(sample.input_ids)] = torch.tensor(sample.input_ids)
        labels_BT[row, : len(sample.labels)] = torch.tensor(sample.labels)
    return input_ids_BT.to(device), labels_BT.to(device)
