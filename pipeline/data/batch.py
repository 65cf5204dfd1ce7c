# B samples, T tokens
"""Samples from a collated batch: rows without their padding."""

from collections.abc import Mapping
from typing import Union

import torch

from pipeline.data.sample import Sample

Candidates = Union[list[Sample], Mapping[str, torch.Tensor]]
"""Samples, or a batch of them: ``input_ids``, ``labels`` and ``attention_mask``, (B, T) each."""
KNOWN = ("input_ids", "labels", "attention_mask")
OF_PACKED = (
    "position_ids",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "seq_idx",
    "shift_labels",
)
"""Keys that collators add to a batch that is packed or has no padding."""


def as_samples(candidates: Candidates) -> list[Sample]:
    return samples_of(candidates) if isinstance(candidates, Mapping) else candidates


def samples_of(batch: Mapping[str, torch.Tensor]) -> list[Sample]:
    """The rows of a batch, each a sample without padding.

    Args:
        batch: ``input_ids`` and ``labels`` (B, T), int64, and ``attention_mask`` (B, T) with its ones in one
            piece, on the left or on the right of the padding. Without a mask every position is a token of the
            sample.

    Returns:
        B samples, in order, without id and source.

    Raises:
        ValueError: the batch lacks labels, packs several samples into a row, or holds more than a sample
            can carry (images, masks of another shape).
    """
    packed = [key for key in batch if key in OF_PACKED]
    if packed:
        raise ValueError(
            f"the candidates come packed or without padding ({', '.join(packed)}), and selection keeps whole "
            "samples: set packing and padding_free to False, or take a collator that pads"
        )
    unknown = [key for key in batch if key not in KNOWN]
    if unknown:
        raise ValueError(
            f"a candidate has {', '.join(unknown)}, and selection carries {', '.join(KNOWN)} alone from rank "
            "to rank: leave the rest out in the collator"
        )
    missing = [key for key in ("input_ids", "labels") if key not in batch]
    if missing:
        raise ValueError(
            f"a batch of candidates has no {', '.join(missing)}: take a collator that gives labels to causal "
            "models"
        )
    input_ids_BT, labels_BT = batch["input_ids"], batch["labels"]
    mask_BT = batch.get("attention_mask", torch.ones_like(input_ids_BT))
    if not input_ids_BT.dim() == labels_BT.dim() == mask_BT.dim() == 2:
        shapes = ", ".join(f"{key} {tuple(batch[key].shape)}" for key in KNOWN if key in batch)
        raise ValueError(f"candidates must be (samples, tokens), and the batch has {shapes}")
    samples = []
    for row, (ids, labels, mask) in enumerate(
        zip(input_ids_BT.tolist(), labels_BT.tolist(), mask_BT.tolist())
    ):
        tokens = [position for position, is_token in enumerate(mask) if is_token]
        if not tokens or tokens[-1] - tokens[0] + 1 != len(tokens):
            raise ValueError(
                f"the attention mask of row {row} has {len(tokens)} ones among {len(mask)}, not in one "
                "piece: selection takes padding on the left or on the right"
            )
        first, end = tokens[0], tokens[-1] + 1
        samples.append(Sample(ids[first:end], labels[first:end]))
    return samples
