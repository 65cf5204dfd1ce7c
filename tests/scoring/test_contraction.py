# R candidates of a rank, T tokens, O out_features, I in_features
"""Every way of contraction gives the same Gram matrix, and the cheapest that fits is chosen."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.geometry import IDENTITY
from pipeline.scoring.backends import BACKENDS
from pipeline.scoring.contraction import choose, summary
from pipeline.scoring.exact import ExactGram, _write_upper_products
from pipeline.scoring.moments import Fragment
from pipeline.scoring.stopwatch import Stopwatch
from tests.reference import relative_gram_error
from tests.scoring.problem import problem

CPU, ROWS, TOKENS = torch.device("cpu"), 4, 6
SHAPES = {"a.weight": (24, 20), "b.weight": (5, 33)}
WAYS = ("materialise", "row_chunks", "token_token")


class Alone:
    """Stands for a world of one rank."""

    world_size, rank, device = 1, 0, CPU
    gather = staticmethod(lambda tensor: tensor.unsqueeze(0))
    rows_to_owners = staticmethod(lambda pieces: lambda: pieces[0].unsqueeze(0))
    sum = staticmethod(lambda tensor: tensor)


def factors(seed: int, sizes: list[tuple[int, int]]) -> list[dict]:
    """Micro-batches of (samples, tokens), float64; the last token of every sample is padding."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for samples, tokens in sizes:
        batch = {}
        for name, (o, i) in SHAPES.items():
            output_grad = torch.randn(samples, tokens, o, generator=generator, dtype=torch.float64)
            output_grad[:, -1] = 0
            batch[name.removesuffix(".weight")] = (
                torch.randn(samples, tokens, i, generator=generator, dtype=torch.float64),
                output_grad,
            )
        found.append(batch)
    return found


def gram(contraction: str, sizes: list[tuple[int, int]], bound: int = 1 << 26) -> torch.Tensor:
    own = [Fragment(name, 0, o * i, None, None, 0, 0.0, 0.0, 0.0, False) for name, (o, i) in SHAPES.items()]
    owners = SimpleNamespace(shapes=SHAPES, slices={name: [(0, o * i)] for name, (o, i) in SHAPES.items()})
    plain = problem(
        owners, own, ROWS, TOKENS, 8, geometry=IDENTITY, exchange_bytes=bound, contraction=contraction
    )
    backend = ExactGram(plain, Alone, Stopwatch(CPU))
    for batch in factors(1, [(2, 5), (1, 3)]):
        for layer, pair in batch.items():
            backend.add_target(layer, *pair)
    backend.finish_target()
    for batch in factors(2, sizes):
        for layer, pair in batch.items():
            backend.add(layer, *pair)
    return backend.finish()


def dense(sizes: list[tuple[int, int]]) -> torch.Tensor:
    rows = []
    for batch in factors(2, sizes):
        rows.append(
            torch.cat([torch.einsum("bto,bti->boi", d, a).flatten(1) for a, d in batch.values()], dim=1)
        )
    target = sum(
        torch.cat([torch.einsum("bto,bti->oi", d, a).flatten() for a, d in batch.values()])
        for batch in factors(1, [(2, 5), (1, 3)])
    )
    rows_Cn = torch.cat([*rows, target[None]])
    return rows_Cn @ rows_Cn.T


@pytest.mark.parametrize(
    "sizes", [[(4, 6)], [(1, 3), (2, 4), (1, 6)]], ids=["one pass", "micro-batches of unequal length"]
)
@pytest.mark.parametrize("bound", [1 << 26, 3000, 100])
@pytest.mark.parametrize("contraction", [*WAYS, "auto"])
def test_every_contraction_gives_the_dense_gram_in_float64(contraction, bound, sizes):
    assert relative_gram_error(gram(contraction, sizes, bound), dense(sizes)).max() < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_that_lacks_candidates_ends_the_look(backend):
    """As one whose input has all samples in one row; its rows would silently be missing."""
    own = [Fragment(name, 0, o * i, None, None, 0, 0.0, 0.0, 0.0, False) for name, (o, i) in SHAPES.items()]
    owners = SimpleNamespace(shapes=SHAPES, slices={name: [(0, o * i)] for name, (o, i) in SHAPES.items()})
    asked = problem(owners, own, ROWS, TOKENS, 8, geometry=IDENTITY)
    gram = BACKENDS[backend](asked, Alone, Stopwatch(CPU))
    (batch,) = factors(2, [(ROWS - 1, TOKENS)])
    gram.finish_target()
    for layer, (activation_BTI, output_grad_BTO) in batch.items():
        gram.add(layer, activation_BTI.float(), output_grad_BTO.float())
    with pytest.raises(RuntimeError, match=rf"'\w+(\.weight)?' has {ROWS - 1} of {ROWS}: its input is not"):
        gram.finish()


def plan(
    num_tokens: int, forced: str = "auto", is_separable: bool = True, bound: int = 1 << 30, shape=(4096, 4096)
):
    return choose(
        shape, ROWS, 2, num_tokens, 2 * ROWS * 4, shape[0] * shape[1] // 2, bound, is_separable, forced
    )


def test_short_samples_and_a_metric_that_factors_go_by_tokens_long_ones_by_rows():
    assert plan(16).way == "token_token" and plan(2048).way == "materialise"
    assert plan(16, is_separable=False).way == "materialise"


def test_what_does_not_fit_the_bound_goes_by_rows_within_it():
    found = plan(2048, bound=1 << 24)
    assert found.way == "row_chunks" and 1 <= found.rows < 4096
    assert found.rows * 4096 * 2 * ROWS * 4 <= 1 << 24
    assert plan(2048, bound=1).rows == 1, "one row is the least"


@pytest.mark.parametrize("way", WAYS)
def test_a_way_can_be_forced(way):
    assert plan(300, way).way == way


def test_token_token_is_refused_where_the_metric_does_not_factor():
    with pytest.raises(ValueError, match=r"selection\.contraction = token_token needs a metric that factors"):
        plan(16, "token_token", is_separable=False)


@pytest.mark.parametrize("way", ["materialise", "token_token"])
def test_counted_operations_are_those_that_run(way):
    """The profiler also sees the target's own: its gradient (or its tokens with all others), and pads of the
    longest."""
    sizes, num_candidates = [(ROWS, TOKENS)], ROWS
    with FlopCounterMode(display=False) as counter:
        gram(way, sizes)
    target_tokens = 2 * 5 + 1 * 3
    wanted = 0
    for o, i in SHAPES.values():
        found = choose((o, i), ROWS, 1, TOKENS, ROWS * 8, o * i, 1 << 26, True, way)
        if way == "materialise":
            # The counter does not see X times the target's row, a product of a matrix and a vector.
            with_target = 2 * ((num_candidates + 1) ** 2 - num_candidates**2) * o * i
            wanted += found.flops - with_target + 2 * target_tokens * o * i
        else:
            all_tokens = num_candidates * TOKENS + target_tokens
            wanted += 2 * all_tokens**2 * (o + i)
            assert found.flops == 2 * ROWS * (ROWS + 1) * TOKENS**2 * (o + i), (
                "counts the target as one more sample"
            )
    assert counter.get_total_flops() == wanted


def test_the_summary_names_ways_layers_and_operations():
    text = summary({"a": plan(16), "b": plan(2048), "c": plan(2048)})
    assert text.startswith("materialise 2 layers, token_token 1 layers; ") and text.endswith("GFLOP a rank")


@pytest.mark.parametrize("num_candidates", [1, 7, 8, 9, 33])
def test_mirrored_triangle_is_the_whole_product(num_candidates):
    """At sizes around the blocks in which a CPU makes it, and with rows that are part of longer ones."""
    rows_CN = torch.randn(num_candidates, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_Cn = rows_CN[:, 3:40]
    found = torch.full((num_candidates, num_candidates), torch.nan, dtype=torch.float64).tril(-1)
    _write_upper_products(x_Cn, found)
    assert torch.allclose(found.triu() + found.triu(1).T, x_Cn @ x_Cn.T, rtol=1e-12)
