# K kept samples, B samples of a micro-batch, T tokens, W ranks
"""The micro-batches of all ranks hold each kept sample once, with its own weight, and their losses add up to
the weighted one."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from pipeline.data.sample import IGNORED
from pipeline.scoring.loss import causal_logits, per_sample_loss
from pipeline.selection.contract import Selection
from pipeline.step.micro_batches import MicroBatch, micro_batches, weighted_loss
from tests.reference import gradient, random_samples, sample_loss, tiny_llama

PAD = 9
KEPT = random_samples([3, 9, 2, 14, 5, 1, 8], seed=70)
# Sixty-fourths, which float32 holds exactly, no two alike, and in no order of the lengths.
SELECTION = Selection(np.array([40, 7, 12, 3, 30, 21, 5]), np.array([2, 13, 5, 1, 20, 8, 15]) / 64)
# (W, micro-steps, samples of a micro-batch); the last two have more places than samples.
SHAPES = [(1, 1, 7), (1, 4, 2), (2, 1, 4), (2, 2, 2), (3, 1, 3), (2, 4, 2), (4, 3, 1)]

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
packed_or_padded = pytest.mark.parametrize("is_packed", [False, True], ids=["padded", "packed"])


@dataclass(frozen=True)
class Place:
    """What micro-batches ask of collectives: who this is among how many."""

    rank: int
    world_size: int
    device = torch.device("cpu")


def of_all_ranks(shape: tuple[int, int, int], is_packed: bool, kept=KEPT, selection=SELECTION):
    """By rank and micro-step."""
    world_size, micro_steps, micro_batch_size = shape
    return [
        micro_batches(
            kept, selection.weights, Place(rank, world_size), micro_steps, micro_batch_size, PAD, is_packed
        )
        for rank in range(world_size)
    ]


def samples_in(batch: MicroBatch) -> list[tuple[float, list[int], list[int]]]:
    """(weight, tokens, labels) of its samples, blank rows left out."""
    if batch.lengths is None:
        rows = list(zip(batch.input_ids_BT, batch.labels_BT))
    else:
        rows = list(zip(batch.input_ids_BT[0].split(batch.lengths), batch.labels_BT[0].split(batch.lengths)))
    assert len(rows) == len(batch.weights_B) == len(batch.num_tokens_B)
    return [
        (weight, input_ids[:num_tokens].tolist(), labels[:num_tokens].tolist())
        for (input_ids, labels), weight, num_tokens in zip(
            rows, batch.weights_B.tolist(), batch.num_tokens_B.tolist()
        )
        if num_tokens
    ]


@every_shape
@packed_or_padded
def test_over_all_ranks_every_kept_sample_comes_once_with_its_own_weight_and_tokens(shape, is_packed):
    """A packed row asks for no first token."""
    found = [
        sample
        for batches in of_all_ranks(shape, is_packed)
        for batch in batches
        for sample in samples_in(batch)
    ]
    wanted = [
        (weight, sample.input_ids, [IGNORED, *sample.labels[1:]] if is_packed else sample.labels)
        for sample, weight in zip(KEPT, SELECTION.weights)
    ]
    assert sorted(found) == sorted(wanted)


@every_shape
@packed_or_padded
def test_every_rank_takes_the_same_number_of_micro_steps_of_no_more_samples_than_asked_for(shape, is_packed):
    _, micro_steps, micro_batch_size = shape
    for batches in of_all_ranks(shape, is_packed):
        assert len(batches) == micro_steps
        assert all(len(batch.weights_B) <= micro_batch_size for batch in batches)


@packed_or_padded
def test_a_rank_whose_share_is_short_brings_blank_rows_without_weight_tokens_and_labels(is_packed):
    kept, selection = KEPT[:2], Selection(np.array([4, 1]), np.array([0.25, 0.75]))
    blank = [
        batch
        for batches in of_all_ranks((2, 2, 2), is_packed, kept, selection)
        for batch in batches
        if not samples_in(batch)
    ]
    assert len(blank) == 2, "two samples, four micro-batches"
    for batch in blank:
        assert batch.input_ids_BT.tolist() == [[PAD, PAD]] and batch.labels_BT.tolist() == [[IGNORED] * 2]
        assert batch.weights_B.tolist() == [0] and batch.num_tokens_B.tolist() == [0]
        assert batch.lengths == ([2] if is_packed else None)


@packed_or_padded
def test_more_samples_than_places_are_refused_with_the_numbers(is_packed):
    with pytest.raises(ValueError, match="7 kept samples do not fit into 2 ranks x 1 micro-steps x 3"):
        of_all_ranks((2, 1, 3), is_packed)


@every_shape
@packed_or_padded
def test_after_the_means_over_ranks_and_micro_steps_loss_and_gradient_are_those_of_the_weighted_sum(
    shape, is_packed
):
    """As an engine takes them, against one sample at a time. In float64 but for Llama's norms, which round to
    float32: 1e-6."""
    model, (world_size, micro_steps, _) = tiny_llama(attention="sdpa").train(), shape
    total = torch.zeros((), dtype=torch.float64)
    for batches in of_all_ranks(shape, is_packed):
        for batch in batches:
            loss_B = per_sample_loss(
                causal_logits(model, batch.input_ids_BT, batch.lengths), batch.labels_BT, batch.lengths
            )
            loss = weighted_loss(loss_B, batch.weights_B, world_size * micro_steps)
            total = total + loss / micro_steps / world_size
    total.backward()
    weighted = list(zip(KEPT, SELECTION.weights.tolist()))
    wanted = sum(weight * sample_loss(model, sample).item() for sample, weight in weighted)
    assert total.item() == pytest.approx(wanted, rel=1e-6)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    for name, wanted in gradient(model, weighted).items():
        error, norm = (found[name] - wanted).norm(), wanted.norm()
        assert error <= 1e-6 * norm, (
            f"{name}: norm {found[name].norm():.3e}, reference {norm:.3e}, error {error:.3e}"
        )
