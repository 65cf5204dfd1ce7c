# B samples, T tokens
"""Counted operations are those that PyTorch counts, on a small Llama and for every backend."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.planning import backends, passes
from pipeline.planning.model_shapes import ModelShapes, shapes_of
from pipeline.planning.work import flops
from pipeline.scoring.backends import BACKENDS
from pipeline.scoring.factors import leaf_module, scored_layers, scoring_pass
from pipeline.scoring.loss import causal_logits, per_sample_loss
from pipeline.scoring.moments import Fragment
from pipeline.scoring.owners import OwnerMap
from pipeline.scoring.stopwatch import Stopwatch
from tests.planning.plan_cases import Alone, sizes
from tests.reference import VOCABULARY, add_lora, tiny_llama
from tests.scoring.problem import problem

RUN = sizes()


def llama(kind: str = "full", tied: bool = False) -> torch.nn.Module:
    model = tiny_llama(tied=tied, num_hidden_layers=3).float()
    return add_lora(model) if kind == "lora" else model


def shapes(model) -> ModelShapes:
    return shapes_of(model, "tiny")


def loss_of(model, num_samples: int) -> torch.Tensor:
    input_ids_BT = torch.randint(3, VOCABULARY, (num_samples, RUN.tokens))
    return per_sample_loss(causal_logits(model, input_ids_BT), input_ids_BT).sum()


def counted(action) -> int:
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def total(stages: dict) -> float:
    return sum(flops(work) for work in stages.values())


@pytest.mark.parametrize("tied", (False, True))
def test_plain_pass_of_full_fine_tuning(tied):
    model = llama(tied=tied)
    assert total(passes.plain(shapes(model), RUN, 3)) == counted(lambda: loss_of(model, 3).backward())


def test_plain_pass_of_lora_but_for_the_first_blocks_inputs():
    """Nothing before the first block is trained, so its q, k and v return no gradient; neither does lora_A
    there."""
    model = llama("lora")
    found = shapes(model)
    first = [
        x
        for x in found.linears
        if x.block == 0 and any(f"{n}_proj" in x.name for n in "qkv") and "lora_B" not in x.name
    ]
    expected = counted(lambda: loss_of(model, 3).backward())
    assert total(passes.plain(found, RUN, 3)) - 2 * 3 * RUN.tokens * sum(x.numel for x in first) == expected


@pytest.mark.parametrize("last_blocks", (0, 1))
@pytest.mark.parametrize("kind", ("full", "lora"))
def test_scoring_pass(kind, last_blocks):
    model = llama(kind)
    layers, leaf = scored_layers(model, last_blocks), leaf_module(model, last_blocks)

    def score():
        with scoring_pass(model, layers, lambda *_: None, leaf):
            loss_of(model, 3).backward()

    run = sizes({"last_blocks": last_blocks})
    assert total(passes.scoring(shapes(model), run, 3)) == counted(score)


@pytest.mark.parametrize("last_blocks", (0, 1))
@pytest.mark.parametrize("kind", ("full", "lora"))
@pytest.mark.parametrize(
    "backend, way", [*((backend, "auto") for backend in BACKENDS), ("exact", "token_token")]
)
def test_contraction_and_gram(backend, way, kind, last_blocks):
    """Factors of random numbers straight into each backend: target, then candidates in two micro-batches
    where it takes them."""
    model = llama(kind)
    geometry = "identity" if way == "token_token" else "update"
    micro_batch_size = 0 if backend == "exact" else 3
    run = sizes(
        {
            "backend": backend,
            "last_blocks": last_blocks,
            "scoring_micro_batch_size": micro_batch_size,
            "contraction": way,
            "geometry": geometry,
        }
    )
    own = [
        Fragment(
            f"{name}.weight",
            0,
            x.weight.numel(),
            torch.rand(x.weight.numel()),
            torch.rand(x.weight.numel()),
            3,
            0.9,
            0.9,
            1e-8,
            True,
        )
        for name, x in scored_layers(model, last_blocks).items()
    ]
    layers = scored_layers(model, last_blocks)
    owners = OwnerMap({f"{name}.weight": tuple(x.weight.shape) for name, x in layers.items()}, own, Alone())
    asked = problem(
        owners,
        own,
        run.rows,
        run.tokens,
        geometry=run.geometry,
        exchange_bytes=1 << 20,
        contraction=way,
        projection_size=run.selection.projection_size,
    )

    def contract():
        gram = BACKENDS[backend](asked, Alone(), Stopwatch(torch.device("cpu")))
        for take, splits in ((gram.add_target, run.target_passes), (gram.add, run.passes)):
            for num_samples in splits:
                for name, x in layers.items():
                    take(
                        name,
                        *(torch.rand(num_samples, run.tokens, n) for n in (x.in_features, x.out_features)),
                    )
            if take == gram.add_target:
                gram.finish_target()
        gram.finish()

    found = shapes(model)
    planned = total(backends.stages(found, run)) + flops(backends.target(found, run))
    if backend == "exact":
        # The counter does not see X times the target's row, a product of a matrix and a vector.
        by_rows, _ = backends.ways(found, run)
        planned -= 2 * ((run.rows + 1) ** 2 - run.rows**2) * sum(layer.numel for layer in by_rows)
    assert planned == counted(contract)
