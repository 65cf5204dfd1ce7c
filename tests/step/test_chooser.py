# C candidates
"""Choosing without an engine: targets that are lost, and the draw that takes their place."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.config import SelectionConfig
from pipeline.ranks.collectives import Collectives
from pipeline.scoring.stopwatch import Stopwatch
from pipeline.selection import registry
from pipeline.selection.contract import Signals
from pipeline.step.chooser import MOST_TARGETS_LOST, Chooser
from pipeline.step.look import Look, Measured, Moments, Share

CPU, NUM_CANDIDATES = torch.device("cpu"), 4


def chooser() -> Chooser:
    engine, settings = SimpleNamespace(get_lr=lambda: [1e-3]), SelectionConfig(keep_per_step=2)
    method = registry.get(settings.method)
    return Chooser(engine, method, settings, Collectives(None, CPU), seed=1)


def choose(own: Chooser, target: float, step: int) -> Look:
    signals = Signals(np.eye(NUM_CANDIDATES), np.ones(NUM_CANDIDATES), target, loss_C=np.ones(NUM_CANDIDATES))
    share = Share([None] * NUM_CANDIDATES, NUM_CANDIDATES, 8, Stopwatch(CPU), 0)
    return own.choose(share, Moments({}), Measured(signals, target_loss=2.0), step)


def test_targets_are_counted_as_lost_in_a_row():
    own = chooser()
    said = [
        choose(own, target, step).warnings for step, target in enumerate([math.nan, math.inf, 1.0, math.nan])
    ]
    assert [len(warnings) for warnings in said] == [1, 1, 0, 1]
    assert "2 in a row" in said[1][0] and "1 in a row" in said[3][0], "a good target begins the count anew"


def test_a_look_that_lost_its_target_says_nothing_of_it():
    look = choose(chooser(), math.nan, 0)
    assert look.target_lost and look.signals is None and look.target_loss is None
    assert look.selection.fallback and len(look.selection.indices) == 2 and look.loss_C is not None
    found = choose(chooser(), 1.0, 0)
    assert not found.target_lost and found.signals is not None and found.target_loss == 2.0


def test_too_many_lost_targets_are_the_methods_to_refuse():
    own = chooser()
    for step in range(MOST_TARGETS_LOST):
        choose(own, math.nan, step)
    with pytest.raises(ValueError, match="the target's gradient is not finite"):
        choose(own, math.nan, MOST_TARGETS_LOST)
