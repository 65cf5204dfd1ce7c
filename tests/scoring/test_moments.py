"""Counting updates where optimizers count differently; where the fragments lie is tested with real engines in
test_gram.py."""

import pytest
import torch

from pipeline.scoring.moments import _step


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
