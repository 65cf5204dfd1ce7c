"""From work to seconds, and what is recommended where."""

from dataclasses import replace

import pytest

from pipeline.config import ModelConfig
from pipeline.planning import forecast
from pipeline.planning.hardware import BUILT_IN, find, measure
from pipeline.planning.model_shapes import read_shapes
from pipeline.planning.price import most_scored_share
from pipeline.planning.work import Compute, Transfer
from tests.planning.plan_cases import sizes

pytestmark = pytest.mark.slow

H100 = BUILT_IN["h100"]


def recommended(model: str, lora_rank: int, selection: dict, **changes) -> str:
    shapes = read_shapes(ModelConfig(name=model, lora_rank=lora_rank))
    run = sizes({"projection_size": 32, **selection}, tokens=2048, element_size=2, is_flash=True, **changes)
    found = {backend: f for (backend, _), f in forecast.variants(shapes, run, H100, [0]).items()}
    step = forecast.weighted_step(shapes, run, H100)
    return forecast.recommend(found, step, most_scored_share(run), H100)[0]


def test_lora_takes_the_exact_backend():
    few = {"candidates_per_step": 64, "target_per_step": 16, "scoring_micro_batch_size": 4}
    assert recommended("llama-7b", 16, few, world_size=8, zero_stage=2, trained_samples=16) == "exact"
    assert (
        recommended(
            "llama-7b",
            16,
            {**few, "candidates_per_step": 1024, "exchange_mib": 2048},
            world_size=64,
            zero_stage=2,
            trained_samples=128,
        )
        == "exact"
    )


def test_full_fine_tuning_on_one_card_takes_the_exact_backend():
    """Nothing travels, and with few candidates whole gradients cost little more than features."""
    few = {"candidates_per_step": 4, "target_per_step": 1, "exchange_mib": 512}
    assert recommended("llama-1b", 0, few, world_size=1) == "exact"


def test_fidelity_is_cheaper_where_few_steps_score():
    many = {"candidates_per_step": 64, "target_per_step": 32, "keep_per_step": 16, "exchange_mib": 512}
    node = dict(world_size=8, zero_stage=2, trained_samples=16)
    assert recommended("llama-1b", 0, {**many, "candidates_per_step": 128}, **node) == "factored"
    assert recommended("llama-1b", 0, {**many, "score_every": 4}, **node) == "projected"


def test_seventy_billion_over_many_nodes_take_the_factored_backend():
    many = {"candidates_per_step": 1024, "target_per_step": 512, "exchange_mib": 512}
    assert (
        recommended("llama-70b", 0, many, world_size=512, zero_stage=3, trained_samples=512, checkpoints=True)
        == "factored"
    )


def test_what_does_not_fit_is_not_recommended():
    cheap = forecast.Forecast({"forward": 1.0}, memory_bytes=2 * H100.memory_bytes, sent_bytes=0.0)
    fits = forecast.Forecast({"forward": 9.0}, memory_bytes=H100.memory_bytes / 2, sent_bytes=0.0)
    name, reason = forecast.recommend({"exact": cheap, "projected": cheap, "factored": fits}, fits, 1, H100)
    assert name == "factored" and "exact needs 149.0 of 74.5 GiB per rank" in reason
    assert (
        "none of the three fits"
        in forecast.recommend({"exact": cheap, "projected": cheap, "factored": cheap}, fits, 1, H100)[1]
    )


def test_a_kernel_takes_as_long_as_its_slower_side():
    assert Compute(flops=H100.matmul_flops, memory_bytes=2 * H100.memory_bandwidth).seconds(
        H100, 1
    ) == pytest.approx(2)
    assert Compute(flops=H100.matmul_flops, is_thin=True).seconds(H100, 1) == pytest.approx(
        1 / H100.thin_share
    )


def test_nodes_share_their_links_in_rings_only():
    """All-to-all sends different bytes to every rank, a gather the same bytes once into each node."""
    ring, all_to_all = (Transfer(1e12, 0, pattern) for pattern in ("ring", "all_to_all"))
    assert ring.seconds(H100, 8) == all_to_all.seconds(H100, 8) == pytest.approx(1e12 / H100.node_bandwidth)
    across = 1e12 * (64 - 8) / (64 - 1) / H100.network_bandwidth
    assert all_to_all.seconds(H100, 64) == pytest.approx(across)
    assert ring.seconds(H100, 64) == pytest.approx(1e12 / (8 * H100.network_bandwidth))
    assert ring.seconds(H100, 1) == 0


def test_advice_names_a_setting_under_which_owners_do_not_wait():
    run = sizes({"exchange_mib": 1}, world_size=4, zero_stage=2)
    shapes = read_shapes(ModelConfig(name="llama-1b", lora_rank=16))
    assert "3.9 x as long" in forecast.advice(shapes, run)  # 11.3 M elements of 4 bytes: 43 MiB
    assert "selection.exchange_mib of 43 " in forecast.advice(shapes, run)
    assert forecast.advice(shapes, replace(run, selection=replace(run.selection, exchange_mib=43))) == ""
    assert forecast.advice(shapes, replace(run, zero_stage=3)) == ""


def test_this_machine_is_measured_and_plans_for_one_rank():
    here = measure()
    assert here.matmul_flops > 1e8 and here.memory_bandwidth > 1e8 and here.memory_bytes > 1 << 30
    with pytest.raises(ValueError, match="knows no links between ranks"):
        Transfer(1.0, 1, "ring").seconds(here, 2)


def test_unknown_hardware_is_refused():
    with pytest.raises(ValueError, match="hardware: abacus is unknown"):
        find("abacus")
