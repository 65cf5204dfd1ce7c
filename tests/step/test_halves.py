# C candidates, R candidates of a rank, W ranks, m scored elements
"""Halves and whole target against the gradients that they are made of."""

import numpy as np
import pytest

from pipeline.data.sample import Sample
from pipeline.selection.contract import Signals
from pipeline.step.halves import num_riding, riders, taken_apart
from pipeline.step.look import Measured

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("num_targets", [2, 3, 4, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_the_whole_target_is_the_mean_of_all_and_each_half_that_of_its_own(world_size, num_targets):
    own = 3
    names = [Sample([n], [n], id=str(n)) for n in range(num_targets)]
    target_losses = RNG.normal(size=num_targets)
    target_Mm, candidates_Cm = RNG.normal(size=(num_targets, 6)), RNG.normal(size=(own * world_size, 6))
    rows, losses = [], []
    for rank in range(world_size):
        beside = [int(one.id) for one in riders(names, rank, world_size)]
        rows += [*candidates_Cm[rank * own : (rank + 1) * own], *target_Mm[beside]]
        losses += [*np.arange(rank * own, (rank + 1) * own), *target_losses[beside]]
    num_passed = num_targets - num_riding(num_targets)
    passed = target_Mm[:num_passed].mean(0)
    rows = np.array(rows)
    signals = Signals(rows @ rows.T, rows @ passed, float(passed @ passed), loss_C=np.array(losses))
    measured = Measured(signals, target_loss=float(target_losses[:num_passed].mean()))
    found = taken_apart(measured, own, len(riders(names, 0, world_size)), num_targets)
    halves_2m = np.stack([passed, target_Mm[num_passed:].mean(0)])
    assert np.allclose(found.halves.alignment_2C, halves_2m @ candidates_Cm.T)
    assert np.allclose(found.halves.products_22, halves_2m @ halves_2m.T)
    whole = target_Mm.mean(0)
    assert np.allclose(found.gram.alignment_C, candidates_Cm @ whole)
    assert found.gram.target_norm_squared == pytest.approx(whole @ whole)
    assert np.allclose(found.gram.gram_CC, candidates_Cm @ candidates_Cm.T)
    assert found.loss_C.tolist() == list(range(own * world_size))
    assert found.target_loss == pytest.approx(target_losses.mean())


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_every_rank_brings_as_many_riders_and_each_comes(world_size):
    names = [Sample([n], [n], id=str(n)) for n in range(7)]
    shares = [[one.id for one in riders(names, rank, world_size)] for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    assert [name for share in shares for name in share][:3] == ["4", "5", "6"]
