"""Rows of a loader's batch back to samples."""

import pytest
import torch
from transformers import DataCollatorForSeq2Seq

from pipeline.data.batch import samples_of
from tests.conftest import tokenizer
from tests.reference import random_samples


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_library_collator_and_back_gives_the_samples(side):
    """With padding on either side, also of a multiple of 8 tokens."""
    padded = tokenizer()
    padded.padding_side = side
    samples = random_samples([5, 12, 1, 8], seed=0)
    rows = [{"input_ids": sample.input_ids, "labels": sample.labels} for sample in samples]
    found = samples_of(DataCollatorForSeq2Seq(padded, pad_to_multiple_of=8)(rows))
    assert [(s.input_ids, s.labels) for s in found] == [(s.input_ids, s.labels) for s in samples]


def test_without_a_mask_every_position_is_a_token():
    ids = torch.tensor([[3, 4, 0], [5, 0, 0]])
    assert [s.input_ids for s in samples_of({"input_ids": ids, "labels": ids})] == [[3, 4, 0], [5, 0, 0]]


IDS = torch.tensor([[3, 4, 5]])


@pytest.mark.parametrize(
    "more, message",
    [
        (
            {"pixel_values": IDS},
            "a candidate has pixel_values, and selection carries input_ids, labels, attention_mask alone",
        ),
        (
            {"position_ids": IDS, "seq_idx": IDS},
            "packed or without padding .position_ids, seq_idx.* set packing and padding_free to False",
        ),
        ({"attention_mask": torch.tensor([[1, 0, 1]])}, "mask of row 0 has 2 ones among 3, not in one piece"),
        ({"attention_mask": torch.tensor([[0, 0, 0]])}, "mask of row 0 has 0 ones among 3"),
        (
            {"attention_mask": torch.ones(1, 1, 3, 3)},
            r"candidates must be .samples, tokens., and the batch has .*attention_mask .1, 1, 3, 3.",
        ),
    ],
)
def test_what_a_sample_cannot_carry_is_refused_with_the_way_out(more, message):
    with pytest.raises(ValueError, match=message):
        samples_of({"input_ids": IDS, "labels": IDS, **more})


def test_a_batch_without_labels_is_refused():
    with pytest.raises(ValueError, match="no labels: take a collator that gives labels"):
        samples_of({"input_ids": IDS})
