# C candidates
"""Attempts after one that lacked memory or overflowed, without an engine: what each next one is given."""

import math

import numpy as np
import pytest
import torch

from pipeline.selection import registry
from pipeline.selection.contract import Signals
from pipeline.step.look import Measured, Moments, Share, TargetRow
from pipeline.step.retries import OutOfMemory, RowsPerPass, without_overflow
from pipeline.step.scorer import Scorer

FINE = Signals(np.eye(2), np.ones(2), 1.0, loss_C=np.ones(2))
LOST_ROW = Signals(np.diag([1.0, math.inf]), np.ones(2), 1.0, loss_C=np.ones(2))
LOST_TARGET = Signals(np.eye(2), np.ones(2), math.inf, loss_C=np.ones(2))
NO_LOSS = Signals(np.diag([1.0, math.nan]), np.ones(2), 1.0, loss_C=np.array([1.0, math.inf]))


def scales(outcomes: list[Signals], first: float) -> list[float]:
    """Loss scales of all attempts, the last of which is the result."""
    tried = []

    def attempt(scale: float) -> Measured:
        tried.append(scale)
        return Measured(outcomes[len(tried) - 1], target_loss=1.0)

    assert without_overflow(attempt, first).signals is outcomes[len(tried) - 1]
    return tried


def test_an_overflow_is_met_with_less_of_a_loss_scale_down_to_one():
    assert scales([LOST_ROW, LOST_TARGET, FINE], 1024.0) == [1024.0, 64.0, 4.0]
    assert scales([LOST_ROW] * 3, 32.0) == [32.0, 2.0, 1.0], "one is the least"
    assert scales([FINE], 1024.0) == [1024.0] and scales([LOST_ROW], 1.0) == [1.0]
    assert scales([NO_LOSS], 1024.0) == [1024.0], "where the loss is infinite no scale helps"


def test_a_forward_that_lacks_memory_is_halved_for_good():
    fits, tried = RowsPerPass(0), []

    def attempt(rows: int) -> str:
        tried.append(rows)
        if rows > 2:
            raise OutOfMemory
        return "measured"

    assert fits.that_fit(attempt, 7, 100, step=5)[0] == "measured" and tried == [7, 4, 2]
    assert fits.limit == 2 and fits.that_fit(attempt, 7, 100, step=6) == ("measured", [])
    assert fits.that_fit(attempt, 1, 100, step=7)[0] == "measured" and tried[-1] == 1

    def never(rows: int) -> None:
        raise OutOfMemory

    with pytest.raises(
        RuntimeError, match=r"step 8: a scoring pass of one sample a rank does not fit .* 100 tokens"
    ):
        fits.that_fit(never, 4, 100, step=8)


def test_a_kept_target_is_measured_again_only_if_it_overflowed_itself():
    scorer, given = Scorer.__new__(Scorer), []
    scorer.method, scorer.rows_per_pass = registry.get("filter_then_weight"), RowsPerPass(0)
    scorer.scoring_loss_scale = lambda: 1024.0
    rows = [TargetRow({}, float(number)) for number in range(3)]
    outcomes = [LOST_TARGET, LOST_ROW, FINE]

    def measure_once(share, moments, step, target, keeps_target, attempt) -> Measured:
        number = len(given)
        given.append((target, attempt.loss_scale))
        return Measured(outcomes[number], target_loss=1.0, target=target or rows[number])

    scorer._measure = measure_once
    share = Share([None] * 2, 2, 8, None, 0)
    found = scorer.measure(share, Moments({}), step=0, keeps_target=True)
    assert given == [(None, 1024.0), (None, 64.0), (rows[1], 4.0)] and found.target is rows[1]
    given.clear()
    scorer.measure(share, Moments({}), step=0)
    assert [target for target, _ in given] == [None] * 3, "a look of a training step keeps none"


def test_factors_of_candidates_and_target_are_freed_of_the_same_loss_scale():
    """Both passes of a look run with the scale of the attempt."""
    scorer, seen = Scorer.__new__(Scorer), []

    class Passes:
        def backward(self, samples, num_rows, num_tokens, weight, on_factors, loss_scale):
            seen.append((weight, loss_scale))
            return torch.zeros(len(samples))

    class Gram:
        add = add_target = finish_target = lambda *_: None

    class Targets:
        def batch(self, look):
            return [type("S", (), {"input_ids": [1, 2]})()] * 2

        def shard(self, look, rank, world_size):
            return self.batch(look)

    scorer.passes, scorer.targets = Passes(), Targets()
    scorer.collectives = type("C", (), {"rank": 0, "world_size": 1})()
    attempt = type("A", (), {"rows_per_pass": 2, "loss_scale": 32.0, "turn": 0})()
    scorer._target_loss(Gram(), attempt)
    scorer._own_signals([None], 4, Gram(), attempt.loss_scale)
    assert seen == [(0.5, 32.0), (1.0, 32.0)]
