# C candidates, H riders that count, R candidates of a rank, W ranks
"""The rows of a target that is judged in two halves.

Half of a look's target samples goes through the target's pass, which leaves their mean gradient. The others
ride with the candidates, and have rows of their own in the Gram matrix. From these follow the target of all
samples, for the selection, and each half's, for the judgement: a selection that fits the noise of a few
target samples looks good to these alone.
"""

from dataclasses import replace

import numpy as np

from pipeline.data.sample import Sample
from pipeline.selection.contract import Signals
from pipeline.selection.halves import Halves
from pipeline.step.look import Measured


def num_riding(num_targets: int) -> int:
    """How many of a look's target samples ride (H)."""
    return num_targets // 2


def riders(targets: list[Sample], rank: int, world_size: int) -> list[Sample]:
    """Those of the riders that this rank brings: as many as each other rank, so that some may come twice."""
    chosen = targets[len(targets) - num_riding(len(targets)) :]
    each = -(-len(chosen) // world_size)
    return [chosen[(rank * each + i) % len(chosen)] for i in range(each)]


def taken_apart(measured: Measured, num_own: int, num_riders: int, num_targets: int) -> Measured:
    """The measurement of the candidates alone, with the target of all its samples and with both halves.

    Args:
        measured: of R candidates and then the riders of each rank, in rank order.
        num_own: R.
        num_riders: of each rank.
        num_targets: target samples of the look.
    """
    signals, gram = measured.signals, measured.gram
    assert signals is not None and signals.loss_C is not None and measured.target_loss is not None
    places = np.arange(len(gram.gram_CC)).reshape(-1, num_own + num_riders)
    of_C = places[:, :num_own].ravel()
    of_H = places[:, num_own:].ravel()[: num_riding(num_targets)]  # what comes after these are copies
    ridden_C = gram.gram_CC[np.ix_(of_C, of_H)].mean(1)
    across = float(gram.alignment_C[of_H].mean())
    ridden = float(gram.gram_CC[np.ix_(of_H, of_H)].mean())
    halves = Halves(
        np.stack([gram.alignment_C[of_C], ridden_C]),
        np.array([[gram.target_norm_squared, across], [across, ridden]]),
    )
    shares = np.array([1 - len(of_H) / num_targets, len(of_H) / num_targets])
    losses = np.array([measured.target_loss, signals.loss_C[of_H].mean()])
    whole = Signals(
        gram.gram_CC[np.ix_(of_C, of_C)],
        shares @ halves.alignment_2C,
        float(shares @ halves.products_22 @ shares),
        loss_C=signals.loss_C[of_C],
    )
    return replace(measured, signals=whole, halves=halves, target_loss=float(shares @ losses))
