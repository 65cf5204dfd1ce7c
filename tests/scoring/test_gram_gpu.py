# C candidates
"""Factors and Gram on one CUDA card in bf16, without DeepSpeed, against the float64 reference on CPU."""

import os

import pytest
import torch
import torch.distributed as dist

from pipeline.data.collate import collate
from pipeline.geometry import GEOMETRIES
from pipeline.ranks.collectives import Collectives
from pipeline.scoring.exact import ExactGram
from pipeline.scoring.factors import per_sample_gradient, scored_layers, scoring_pass
from pipeline.scoring.loss import causal_logits, per_sample_loss
from pipeline.scoring.moments import Fragment
from pipeline.scoring.owners import OwnerMap
from pipeline.scoring.stopwatch import Stopwatch
from tests.processes import free_port
from tests.reference import (
    AdamW,
    Hyper,
    gradient,
    linear_weights,
    random_samples,
    relative_gram_error,
    tiny_llama,
)
from tests.scoring.problem import problem

DEVICES = [
    pytest.param("cpu", torch.float32, id="cpu"),
    pytest.param(
        "cuda",
        torch.bfloat16,
        id="cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")],
    ),
]
# rounding of activations and gradients to 24 or 8 bits
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


@pytest.fixture
def group():
    """A process group of this process alone."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    dist.init_process_group("gloo", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("device, dtype", DEVICES)
@pytest.mark.parametrize("geometry", ["update", "curvature", "identity"])
def test_factors_and_gram_equal_the_float64_reference(group, device, dtype, geometry):
    device, samples, targets = (
        torch.device(device),
        random_samples([9, 5, 13, 7], seed=1),
        random_samples([6, 11], seed=2),
    )
    reference = tiny_llama(hidden_size=48).to(dtype).double()  # weights that are exact in both
    names = linear_weights(reference)
    gradients = [gradient(reference, [(sample, 1.0)]) for sample in samples]
    target = gradient(reference, [(sample, 1 / len(targets)) for sample in targets])
    weights = {name: dict(reference.named_parameters())[name] for name in names}
    adam = AdamW(weights, {name: Hyper(1e-3, 0.9, 0.95, 1e-4, 0.0) for name in names}, step=7)
    generator = torch.Generator().manual_seed(0)
    for name in names:
        adam.exp_avg_sq[name] = 1e-3 + 1e-2 * torch.rand(
            weights[name].shape, generator=generator, dtype=torch.float64
        )
    expected = adam.gram(gradients, target, names, geometry)

    model = tiny_llama(hidden_size=48, attention="sdpa").to(device, dtype)
    layers, collectives = scored_layers(model), Collectives(group, device)
    fragments = [
        Fragment(
            name,
            0,
            p.numel(),
            torch.zeros(p.numel(), device=device),
            adam.exp_avg_sq[name].flatten().float().to(device),
            adam.step,
            0.9,
            0.95,
            1e-4,
            True,
        )
        for name, p in weights.items()
    ]
    owners = OwnerMap({name: tuple(p.shape) for name, p in weights.items()}, fragments, collectives)
    space = GEOMETRIES[geometry]
    measured = problem(owners, fragments, len(samples), 64, 2, geometry=space, exchange_bytes=10_000)
    gram = ExactGram(measured, collectives, Stopwatch(device))
    found = {}

    def add(name, activation_BTI, output_grad_BTO):
        found[name + ".weight"] = per_sample_gradient(activation_BTI, output_grad_BTO)
        gram.add(name, activation_BTI, output_grad_BTO)

    for batch, weight, on_factors in ((targets, 1 / len(targets), gram.add_target), (samples, 1.0, add)):
        input_ids_BT, labels_BT = collate(batch, 0, device=device)
        with scoring_pass(model, layers, on_factors):
            (per_sample_loss(causal_logits(model, input_ids_BT), labels_BT).sum() * weight).backward()
        if batch is targets:
            gram.finish_target()
    for row, dense in enumerate(gradients):
        for name in names:
            error, norm = (
                (found[name][row].double().cpu() - dense[name]).norm().item(),
                dense[name].norm().item(),
            )
            assert error <= TOLERANCE[dtype] * norm + 1e-12, (
                f"{name}, sample {row}: norm {norm:.3e}, error {error:.3e}"
            )
    error = relative_gram_error(gram.finish().cpu(), expected)
    assert error.max() <= TOLERANCE[dtype], error
