"""Counted bytes between ranks are those that two real ranks send."""

from dataclasses import replace

from pipeline.config import ModelConfig
from pipeline.planning import forecast
from pipeline.planning.hardware import BUILT_IN
from pipeline.planning.model_shapes import read_shapes
from tests.planning.plan_cases import sizes
from tests.scoring.engine_cases import NUM_CANDIDATES, NUM_TARGETS, Case

WORLD_SIZE = 2
VARIANTS = [
    {"backend": backend, "projection_size": 8, **changes}
    for backend in ("exact", "projected", "factored")
    for changes in (
        {},
        {"last_blocks": 1, "scoring_micro_batch_size": 2},
        {"geometry": "identity", "scoring_micro_batch_size": 1},
        {"geometry": "update_to_gradient"},
    )
]
VARIANTS += [
    {"method": method, "scoring_micro_batch_size": 2}
    for method in ("random", "max_loss", "grad_norm", "greats", "less")
]
VARIANTS += [
    {"backend": "exact", "geometry": "identity", "contraction": "token_token", "scoring_micro_batch_size": 1}
]
CASES = [(Case(2), VARIANTS), (Case(3, "full", "bf16"), VARIANTS)]


def test_bytes_between_ranks(run_ranks, model_folder, tmp_path):
    """The plan gives the mean over ranks, since slices of the moments differ in length; so the sum is
    compared."""
    by_rank = run_ranks(
        "tests.planning.plan_cases:bytes_sent",
        WORLD_SIZE,
        cases=CASES,
        model_folder=model_folder,
        folder=str(tmp_path),
    )
    measured = [sum(each) for each in zip(*by_rank)]
    shapes = read_shapes(ModelConfig(name=model_folder, lora_rank=0))
    run = sizes(
        {"candidates_per_step": NUM_CANDIDATES, "target_per_step": NUM_TARGETS}, world_size=WORLD_SIZE
    )
    planned = []
    for case, variants in CASES:
        for changes in variants:
            element_size = 2 if case.precision == "bf16" else 4
            selection = replace(run.selection, **changes)
            step = replace(run, selection=selection, zero_stage=case.stage, element_size=element_size)
            planned.append(WORLD_SIZE * forecast.selection(shapes, step, BUILT_IN["h100"]).sent_bytes)
    assert planned == measured
