"""A Trainer's rows and its sampler's order, as a pool and its stream."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from transformers import DataCollatorForSeq2Seq
from transformers.trainer_pt_utils import LengthGroupedSampler

from pipeline.data.sample import Sample
from pipeline.integrations.dataset_stream import Rows, SamplerStream
from tests import reference
from tests.conftest import tokenizer

NUM_ROWS = 11
LENGTHS = [5, 9, 3, 12, 7, 4, 8, 6, 10, 2, 11]
SAMPLES = [Sample(sample.input_ids, sample.labels) for sample in reference.random_samples(LENGTHS, seed=70)]
DATASET = [{"input_ids": sample.input_ids, "labels": sample.labels} for sample in SAMPLES]
SAMPLERS = {
    "random": lambda: RandomSampler(DATASET),
    "random with a generator": lambda: RandomSampler(DATASET, generator=torch.Generator()),
    "sequential": lambda: SequentialSampler(DATASET),
    "by length": lambda: LengthGroupedSampler(4, dataset=DATASET, lengths=LENGTHS),
}


def rows() -> Rows:
    return Rows(DATASET, DataCollatorForSeq2Seq(tokenizer(), pad_to_multiple_of=8))


def stream_of(sampler, seed=3) -> SamplerStream:
    """Under the batch samplers of two ranks."""
    batches = BatchSamplerShard(BatchSampler(sampler, 2, drop_last=False), num_processes=2)
    return SamplerStream(rows(), 4, SimpleNamespace(batch_sampler=batches), seed)


def test_a_row_is_what_the_collator_makes_of_it_without_padding():
    found = list(rows())
    assert found == SAMPLES and len(rows()) == NUM_ROWS and rows()[3] == SAMPLES[3]
    assert rows().have_mask()


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_order_is_a_function_of_seed_and_epoch(name):
    """Whatever was asked before, and whatever else draws; and it draws from nobody else's numbers."""
    before = torch.get_rng_state()
    stream = stream_of(SAMPLERS[name]())
    in_one = stream.order(0, 3 * NUM_ROWS)
    assert torch.equal(torch.get_rng_state(), before)
    for epoch in range(3):
        assert sorted(in_one[epoch * NUM_ROWS : (epoch + 1) * NUM_ROWS]) == list(range(NUM_ROWS))
    torch.rand(5)
    late = stream_of(SAMPLERS[name]())
    assert np.array_equal(late.order(2 * NUM_ROWS - 4, 9), in_one[2 * NUM_ROWS - 4 :][:9])
    assert np.array_equal(late.order(1, 5), in_one[1:6]), "an epoch that was forgotten"
    assert late.digest(0) == stream.digest(NUM_ROWS - 1)
    if name != "sequential":
        assert stream.digest(0) != stream.digest(NUM_ROWS)
        other = stream_of(SAMPLERS[name](), seed=4).order(0, 3 * NUM_ROWS)
        assert not np.array_equal(other, in_one)


@pytest.mark.parametrize("epoch", [0, 2])
def test_an_order_is_that_in_which_accelerates_loader_gives_the_rows(epoch):
    torch.manual_seed(5)
    plain = DataLoader(DATASET, batch_size=2, shuffle=True, collate_fn=rows().collate)
    loader = prepare_data_loader(plain, put_on_device=False, use_seedable_sampler=True)
    stream = SamplerStream(rows(), 4, loader, seed=0)
    order_N = stream.order(epoch * NUM_ROWS, NUM_ROWS)
    loader.set_epoch(epoch)
    given = [ids for batch in loader for ids in batch["input_ids"].tolist()]
    assert len(given) == NUM_ROWS
    for ids, position in zip(given, order_N.tolist()):
        assert ids[: len(SAMPLES[position].input_ids)] == SAMPLES[position].input_ids


def test_a_sampler_that_leaves_rows_out_is_refused():
    with pytest.raises(ValueError, match="RandomSampler gives 5 positions of train_dataset, which has 11"):
        stream_of(RandomSampler(DATASET, num_samples=5)).order(0, 4)
