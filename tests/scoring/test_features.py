# C candidates, R candidates of this rank, T tokens, O out_features, I in_features
"""The approximate backends on layers alone: unbiased over seeds, exact where they must be, bounded in what
they send."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.geometry import GEOMETRIES
from pipeline.scoring.exact import ExactGram
from pipeline.scoring.factored import FactoredGram
from pipeline.scoring.moments import Fragment
from pipeline.scoring.projected import ProjectedGram
from pipeline.scoring.projection import Projection
from pipeline.scoring.stopwatch import Stopwatch
from tests.reference import relative_gram_error
from tests.scoring.problem import problem

CPU, ROWS, WHOLE = torch.device("cpu"), 5, 1000
SHAPES = {"wide.weight": (40, 30), "few_out.weight": (8, 50), "few_in.weight": (60, 6)}
BACKENDS = {"projected": ProjectedGram, "factored": FactoredGram}
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_geometry = pytest.mark.parametrize(
    "geometry", ["update", "curvature", "identity", "update_to_gradient"]
)


class Alone:
    """Stands for a world of one rank."""

    world_size, rank, device = 1, 0, CPU

    def __init__(self):
        self.sent = []

    def rows_to_owners(self, pieces_Rk):
        self.sent.append(sum(piece.numel() * piece.element_size() for piece in pieces_Rk))
        return lambda: pieces_Rk[0].unsqueeze(0)

    def gather(self, tensor):
        return tensor.unsqueeze(0)

    def sum(self, tensor):
        return tensor


def moments(rank_one: bool) -> list[Fragment]:
    generator = torch.Generator().manual_seed(1)
    own = []
    for name, (o, i) in SHAPES.items():
        rows, columns = torch.rand(o, 1, generator=generator), torch.rand(1, i, generator=generator)
        noise = 1 if rank_one else torch.rand(o, i, generator=generator)
        exp_avg = 1e-3 * torch.randn(o * i, generator=generator)
        own.append(
            Fragment(
                name, 0, o * i, exp_avg, (1e-6 * rows * columns * noise).flatten(), 3, 0.9, 0.95, 1e-12, True
            )
        )
    return own


def factors(seed: int, num_samples: int) -> dict[str, tuple]:
    """Columns of unequal size, and samples that share a part: neither norms nor angles are all alike."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda features: (
        torch.randn(num_samples, 7, features, generator=generator)
        + 2 * torch.randn(1, 7, features, generator=generator)
    )
    return {name.removesuffix(".weight"): (draw(i), draw(o)) for name, (o, i) in SHAPES.items()}


def gram(
    make, own, geometry="update", momentum="cancel", splits=(ROWS,), exchange=None, bound=1 << 26, **options
) -> torch.Tensor:
    owners = SimpleNamespace(shapes=SHAPES, slices={name: [(0, o * i)] for name, (o, i) in SHAPES.items()})
    options |= {"geometry": GEOMETRIES[geometry], "compensates_momentum": momentum == "compensate"}
    asked = problem(owners, own, ROWS, num_tokens=7, exchange_bytes=bound, **options)
    backend = make(asked, exchange or Alone(), Stopwatch(CPU))
    for layer, pair in factors(5, 2).items():
        backend.add_target(layer, *pair)
    backend.finish_target()
    parts = {layer: [tensor.split(splits) for tensor in pair] for layer, pair in factors(6, ROWS).items()}
    for number in range(len(splits)):
        for layer, (activations, output_grads) in parts.items():
            backend.add(layer, activations[number], output_grads[number])
    return backend.finish()


@every_geometry
@pytest.mark.parametrize("momentum", ["cancel", "compensate"])
def test_without_projection_projected_is_exact(geometry, momentum):
    own = moments(rank_one=False)
    found = gram(ProjectedGram, own, geometry, momentum, projection_size=WHOLE, seed="0")
    assert relative_gram_error(found, gram(ExactGram, own, geometry, momentum)).max() < 1e-5, (
        "float32 sums in another order"
    )


@every_geometry
@pytest.mark.parametrize("momentum", ["cancel", "compensate"])
def test_where_the_moments_have_rank_one_factored_is_exact_too(geometry, momentum):
    own = moments(rank_one=True)
    found = gram(FactoredGram, own, geometry, momentum, projection_size=WHOLE, seed="0")
    assert relative_gram_error(found, gram(ExactGram, own, geometry, momentum)).max() < 1e-5


@every_backend
@every_geometry
def test_projection_is_unbiased_with_respect_to_the_backends_own_metric(backend, geometry):
    """The mean over seeds lies within 5 standard errors for each of the 36 entries, and a single draw does
    not hit it."""
    own, num_seeds = moments(rank_one=False), 400
    wanted = gram(BACKENDS[backend], own, geometry, "compensate", projection_size=WHOLE, seed="0")
    draws = torch.stack(
        [
            gram(BACKENDS[backend], own, geometry, "compensate", projection_size=7, seed=str(seed))
            for seed in range(num_seeds)
        ]
    )
    error = (draws.mean(0) - wanted).abs() / (draws.std(0) / num_seeds**0.5)
    assert error.max() < 5, f"{error.max():.1f} standard errors"
    assert relative_gram_error(draws[0], wanted).max() > 0.01, "nothing was projected"


@every_backend
def test_error_falls_with_the_size_of_the_projection(backend):
    own = moments(rank_one=False)
    wanted = gram(BACKENDS[backend], own, projection_size=WHOLE, seed="0")
    errors = [
        sum(
            relative_gram_error(
                gram(BACKENDS[backend], own, projection_size=size, seed=str(s)), wanted
            ).mean()
            for s in range(40)
        )
        for size in (3, 12)
    ]
    # four times as many rows and columns: half of it in theory, or less
    assert errors[1] < 0.7 * errors[0], errors


@every_backend
def test_result_does_not_depend_on_micro_batch_split(backend):
    own = moments(rank_one=False)
    whole = gram(BACKENDS[backend], own, projection_size=7, seed="0")
    split = gram(BACKENDS[backend], own, splits=(2, 1, 2), projection_size=7, seed="0")
    assert relative_gram_error(split, whole).max() < 1e-5


@every_backend
def test_no_exchange_is_larger_than_the_bound(backend):
    exchange, bound = Alone(), 1000
    found = gram(
        BACKENDS[backend], moments(False), exchange=exchange, bound=bound, projection_size=7, seed="0"
    )
    assert len(exchange.sent) > 1 and max(exchange.sent) <= bound
    whole = gram(BACKENDS[backend], moments(False), projection_size=7, seed="0")
    assert relative_gram_error(found, whole).max() < 1e-5


def test_projections_are_equal_for_equal_arguments_and_differ_by_layer_seed_and_side():
    draw = lambda **changed: Projection(
        **{"shape": (20, 20), "size": 4, "seed": "0 1", "name": "a", **changed}
    ).left(CPU)
    assert torch.equal(draw(), draw())
    assert not torch.equal(draw(), draw(name="b")) and not torch.equal(draw(), draw(seed="0 2"))
    square = Projection((20, 20), 4, "0 1", "a")
    assert not torch.equal(square.left(CPU), square.right(CPU))
    assert Projection((4, 20), 4, "0 1", "a").left(CPU) is None, "a side that fits is not projected"
