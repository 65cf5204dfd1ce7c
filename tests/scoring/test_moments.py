"""Counting updates where optimizers count differently, and what of a parameter a rank holds; where the
fragments lie is tested with real engines in test_gram.py."""

import pytest
import torch

from pipeline.scoring.moments import _step, own_part, whole_numel, whole_shape


class FusedAdam(torch.optim.AdamW):
    """DeepSpeed's FusedAdam by name: it advances the count of the last parameter of a group alone."""


def two_parameters(counts: tuple[int, int], optimizer_class=FusedAdam):
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in counts]
    optimizer = optimizer_class(parameters)
    for parameter, count in zip(parameters, counts):
        optimizer.state[parameter] = {"step": count, "exp_avg_sq": torch.zeros(2)}
    return parameters, optimizer


def test_fused_adam_is_as_far_as_the_furthest_parameter_of_its_group():
    parameters, optimizer = two_parameters((0, 7))
    assert _step(optimizer.state[parameters[0]], optimizer.param_groups[0], optimizer) == 7


def test_fused_adam_under_zero_3_counts_by_the_flat_key_because_its_group_is_empty_between_steps():
    parameters, optimizer = two_parameters((7, 7))
    optimizer.param_groups[0]["params"] = []
    assert _step(optimizer.state[parameters[0]], optimizer.param_groups[0], optimizer) == 7


@pytest.mark.parametrize("count", [3, torch.tensor(3.0)], ids=["int", "tensor"])
def test_other_optimizers_count_each_key_by_itself(count):
    parameters, optimizer = two_parameters((count, 9), torch.optim.AdamW)
    assert _step(optimizer.state[parameters[0]], optimizer.param_groups[0], optimizer) == 3
    assert _step({}, optimizer.param_groups[0], optimizer) == 0


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7, 11])
def test_own_parts_of_all_ranks_joined_are_the_parameter_without_padding(world_size):
    """Split as ZeRO-3 does it: equal parts, so that the last ones end in padding or are nothing else."""
    whole = torch.arange(10.0).view(5, 2)
    size = -(-whole.numel() // world_size)
    padded = torch.cat([whole.flatten(), torch.full((size * world_size - whole.numel(),), float("nan"))])
    parts = []
    for rank, part in enumerate(padded.split(size)):
        released = torch.nn.Parameter(torch.empty(0))
        released.ds_shape, released.ds_numel, released.ds_tensor = whole.shape, whole.numel(), part
        parts.append(own_part(released, rank))
        assert (whole_shape(released), whole_numel(released)) == ((5, 2), 10)
    assert torch.equal(torch.cat(parts), whole.flatten())


def test_a_parameter_that_nobody_splits_is_each_ranks_own():
    whole = torch.nn.Parameter(torch.arange(10.0).view(5, 2))
    assert (whole_shape(whole), whole_numel(whole)) == ((5, 2), 10)
    assert torch.equal(own_part(whole, 3), whole.flatten()) and not own_part(whole, 3).requires_grad
