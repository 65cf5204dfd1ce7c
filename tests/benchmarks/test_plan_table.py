# N parameters in products, D tokens of a rank, W ranks
"""The predictions of docs/planning.md are those of the result file, and of the size that one finds by
hand."""

import json

import pytest

from benchmarks import plan_table
from pipeline.config import ModelConfig
from pipeline.planning import memory, passes
from pipeline.planning.hardware import find
from pipeline.planning.model_shapes import read_shapes
from pipeline.planning.work import flops
from tests.planning.plan_cases import sizes

PARAMETERS, EMBEDDING, BLOCKS, WIDTH = 6_738_415_616, 32000 * 4096, 32, 4096  # Llama 2 7B


@pytest.fixture(scope="module")
def found() -> dict:
    return json.loads(plan_table.OUTPUT.read_text())


@pytest.fixture(scope="module")
def shapes():
    return read_shapes(ModelConfig(name="llama-7b", lora_rank=0))


def test_the_result_file_holds_the_cases(found):
    assert [(row["model"], row["num_gpus"]) for row in found["rows"]] == [
        (c.model, c.num_gpus) for c in plan_table.CASES
    ]


def test_a_row_is_what_the_plan_says_now(found):
    """The file is renewed with python -m benchmarks.plan_table."""
    assert plan_table.predict(plan_table.CASES[1]) == found["rows"][1]


def test_plain_pass_takes_6_n_d_operations_and_attentions(shapes):
    """6 N D (J. Kaplan et al., arXiv 2001.08361, section 2.1), and 7 causal products of T x T x width in each
    block."""
    tokens = 2048
    run = sizes(tokens=tokens, element_size=2, is_flash=True)
    by_hand = 6 * (PARAMETERS - EMBEDDING) * 3 * tokens + 7 * BLOCKS * 3 * tokens**2 * WIDTH
    assert shapes.parameters == PARAMETERS
    assert sum(flops(work) for work in passes.plain(shapes, run, 3).values()) == pytest.approx(
        by_hand, rel=1e-3
    )


def test_states_take_2_and_12_bytes_a_parameter_over_w(shapes):
    """ZeRO-3 on 64: weights, and master weights with both moments; and up to 1e9 parameters gathered for a
    moment."""
    run = sizes(world_size=64, zero_stage=3, element_size=2)
    assert memory.states(shapes, run) == pytest.approx((2 + 12) * PARAMETERS / 64 + 2 * 1e9)


def test_seconds_of_7b_on_64_gpus_are_near_those_of_its_products(found):
    """8 N D with recomputation, of 8 samples a GPU at the assumed share of peak; passes over memory and the
    loss come on top."""
    row = next(row for row in found["rows"] if row["model"] == "llama-7b" and not row["lora_rank"])
    seconds = 8 * (PARAMETERS - EMBEDDING) * 8 * found["tokens"] / find(found["hardware"]).matmul_flops
    assert row["num_gpus"] == 64 and seconds == pytest.approx(1.46, abs=0.01)
    assert seconds < row["plain_seconds"] < 1.5 * seconds
    peak = max(row["weighted_step"]["memory_gib"], row["backends"][row["recommended"]]["memory_gib"])
    assert (14 * PARAMETERS / 64 + 2e9) / 2**30 < peak < 80e9 / 2**30
