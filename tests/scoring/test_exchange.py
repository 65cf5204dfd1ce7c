# R rows of a rank, n elements
"""No rank sends or receives more than the bound at a time, however the weights are split over their
owners."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.geometry import IDENTITY
from pipeline.scoring.exact import ExactGram, held_bytes
from pipeline.scoring.moments import Fragment
from pipeline.scoring.stopwatch import Stopwatch
from tests.scoring.problem import problem

CPU, ROWS, RANKS, BOUND = torch.device("cpu"), 3, 2, 1000
SHAPES = {"a.weight": (12, 10), "b.weight": (4, 6)}
SPLITS = {
    "one rank owns all": {"a.weight": [(0, 120), (0, 0)], "b.weight": [(0, 24), (0, 0)]},
    "the other owns all": {"a.weight": [(0, 0), (0, 120)], "b.weight": [(0, 0), (0, 24)]},
    "both own a part": {"a.weight": [(0, 55), (55, 120)], "b.weight": [(0, 12), (12, 24)]},
}


class Exchange:
    """Stands for two ranks: what this one sends comes back as what both have sent."""

    world_size, rank, device = RANKS, 0, CPU

    def __init__(self):
        self.landing = []

    def rows_to_owners(self, pieces_Rn):
        self.landing.append(max(RANKS * piece.numel() * piece.element_size() for piece in pieces_Rn))
        return lambda: torch.stack([pieces_Rn[self.rank]] * RANKS)

    def sum(self, tensor):
        return tensor


@pytest.mark.parametrize("split", SPLITS)
def test_no_owner_receives_more_than_the_bound_and_nothing_is_lost(split):
    own = [
        Fragment(n, s, e - s, None, None, 0, 0.0, 0.0, 0.0, False) for n, ((s, e), _) in SPLITS[split].items()
    ]
    exchange = Exchange()
    owners = SimpleNamespace(shapes=SHAPES, slices=SPLITS[split])
    plain = problem(owners, own, ROWS, 500, geometry=IDENTITY, exchange_bytes=BOUND)
    gram = ExactGram(plain, exchange, Stopwatch(CPU))
    generator = torch.Generator().manual_seed(0)
    factors = {}
    for layer in ("a", "b"):
        out_features, in_features = SHAPES[layer + ".weight"]
        factors[layer] = (
            torch.randn(ROWS, 5, in_features, generator=generator),
            torch.randn(ROWS, 5, out_features, generator=generator),
        )
    gram.finish_target()
    for layer, (activation_BTI, output_grad_BTO) in factors.items():
        gram.add(layer, activation_BTI, output_grad_BTO)
    found = gram.finish()[:-1, :-1]
    rows_Rn = torch.cat(
        [
            torch.einsum("bto,bti->boi", g, a).flatten(1)[:, slice(*SPLITS[split][layer + ".weight"][0])]
            for layer, (a, g) in factors.items()
        ],
        dim=1,
    ).double()
    both = rows_Rn.repeat(RANKS, 1)
    assert torch.allclose(found, both @ both.T, rtol=1e-5, atol=1e-5), "float32 sums against float64"
    assert len(exchange.landing) > 1 and max(exchange.landing) <= BOUND


def test_what_waits_between_micro_batches_is_the_smaller_of_gradients_and_factors():
    assert held_bytes({"w": (10, 20)}, num_held=3, num_tokens=4, element_size=2) == 3 * 2 * 4 * (10 + 20)
    assert held_bytes({"w": (10, 20)}, num_held=3, num_tokens=400, element_size=2) == 3 * 2 * 10 * 20
    assert held_bytes({"w": (10, 20)}, num_held=0, num_tokens=400, element_size=2) == 0
