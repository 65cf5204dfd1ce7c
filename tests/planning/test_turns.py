# R rows of one rank, W ranks, T tokens
"""How many exchanges the exact backend makes, seen at ``ExactGram`` itself as rank 0 of four, is what the
plan counts."""

import pytest
import torch

from pipeline.planning import backends
from pipeline.scoring.exact import ExactGram
from pipeline.scoring.moments import Fragment
from pipeline.scoring.owners import OwnerMap
from pipeline.scoring.stopwatch import Stopwatch
from tests.planning.plan_cases import Alone, sizes
from tests.scoring.problem import problem

R, W, T, SIDE = 2, 4, 3, 64
NAMES = [f"layer{i}" for i in range(8)]
EXCHANGE_BYTES = W * R * SIDE * SIDE * 4  # one layer's rows of all ranks


class FirstOfFour(Alone):
    """Counts exchanges; what the others would send is zero."""

    world_size = W

    def __init__(self, slices):
        self.slices, self.num_exchanges = slices, 0

    def gather_objects(self, value):
        return self.slices

    def rows_to_owners(self, pieces):
        self.num_exchanges += 1
        return lambda: torch.cat([pieces[0][None], torch.zeros(W - 1, *pieces[0].shape)])


def exchanges(slices: list[dict], exchange_bytes: int) -> int:
    collectives = FirstOfFour(slices)
    own = [
        Fragment(
            name,
            start,
            end - start,
            torch.ones(end - start),
            torch.ones(end - start),
            1,
            0.9,
            0.9,
            1e-8,
            True,
        )
        for name, (start, end) in slices[0].items()
    ]
    owners = OwnerMap({f"{name}.weight": (SIDE, SIDE) for name in NAMES}, own, collectives)
    watch = Stopwatch(torch.device("cpu"))
    gram = ExactGram(problem(owners, own, R, T, exchange_bytes=exchange_bytes), collectives, watch)
    gram.finish_target()
    for name in reversed(NAMES):
        gram.add(name, torch.rand(R, T, SIDE), torch.rand(R, T, SIDE))
    gram.finish()
    return collectives.num_exchanges


def whole_layers(rank: int) -> dict:
    return {f"{name}.weight": (0, SIDE * SIDE) for name in NAMES[2 * rank : 2 * rank + 2]}


def split_layers(rank: int) -> dict:
    part = SIDE * SIDE // W
    return {f"{name}.weight": (rank * part, (rank + 1) * part) for name in NAMES}


@pytest.mark.parametrize("layers_per_exchange, expected", [(2, {2: 1, 3: 1}), (1, {2: 1 + W, 3: 2})])
def test_exchanges_until_all_rows_are_with_their_owners(layers_per_exchange, expected):
    """Every rank owns two layers' worth, whole (stages 1 and 2) or split (stage 3)."""
    bound = layers_per_exchange * EXCHANGE_BYTES
    scale = (1 << 20) // bound  # the plan knows whole MiB
    for stage, owned in ((2, whole_layers), (3, split_layers)):
        run = sizes({"exchange_mib": 1}, world_size=W, zero_stage=stage)
        numel = scale * len(NAMES) * SIDE * SIDE
        assert exchanges([owned(rank) for rank in range(W)], bound) == expected[stage]
        assert backends.num_exchanges(run, numel, num_rows=R) == expected[stage]
        assert backends.turns(run, numel, num_rows=R) == (expected[stage] / expected[3] if stage == 2 else 1)
