# C candidates
"""The exact Gram of real engines, at every ZeRO stage and on one and two ranks, against the dense float64
reference.

Tolerances are relative to |phi_i| |phi_j| for each pair, so that no small row hides behind a large one.
"""

import numpy as np
import pytest
import torch

from pipeline.selection import registry
from pipeline.selection.contract import Settings, Signals
from tests import selected
from tests.reference import relative_gram_error
from tests.scoring.engine_cases import ALL, BACKENDS, KEEP, NUM_CANDIDATES, RIDGE, Case, expected
from tests.scoring.extensions import deepspeed_adam_is_built

# fp32: elements with the smallest v turn the rounding of their gradient (1e-7 of the layer's) into a relative
# error of phi; it is 1.4e-4 at worst for `update` and 8e-6 elsewhere. bf16: 8 bits for each activation and
# gradient, measured 0.05 to 0.1. A wrong slice, group or step changes single elements of D by factors, and
# the Gram by tens of per cent.
TOLERANCE = {
    "fp32": {"update": 5e-4, "update_to_gradient": 5e-4, "curvature": 3e-5, "identity": 3e-5},
    "bf16": {"update": 0.15, "update_to_gradient": 0.15, "curvature": 0.1, "identity": 0.1},
}
SCALE_TRAVELS = 2**-7  # D reaches the other ranks in bfloat16, 8 bits, and stands in the Gram twice

BF16_OPTIMIZER = (("data_types", {"grad_accum_dtype": "fp32"}),)
OFFLOAD = (("offload_optimizer", {"device": "cpu"}),)
CASES = [
    *(Case(stage, kind, variants=ALL) for stage in (0, 1, 2, 3) for kind in ("full", "lora")),
    *(Case(stage, kind, "bf16", variants=BACKENDS) for stage in (0, 1, 2, 3) for kind in ("full", "lora")),
    Case(1, "full", "bf16", top=BF16_OPTIMIZER, note="bf16_optimizer"),
    Case(1, "full", "bf16", top=BF16_OPTIMIZER, halves=True, note="bf16_optimizer-two_groups"),
    *(Case(stage, halves=True, note="two_groups") for stage in (0, 1, 2, 3)),
    *(
        Case(stage, kind, zero=OFFLOAD, note="offload")
        for stage, kind in ((1, "full"), (2, "full"), (3, "full"), (3, "lora"))
    ),
    Case(3, "full", "bf16", zero=OFFLOAD, note="offload"),
    *(Case(stage, zero=(("round_robin_gradients", True),), note="round_robin") for stage in (1, 2)),
    *(Case(stage, gradient_accumulation_steps=2, note="accumulation") for stage in (0, 1, 2, 3)),
    Case(2, "lora", "bf16", gradient_accumulation_steps=2, note="accumulation"),
    *(Case(stage, "fresh_lora", note="new_adapters") for stage in (1, 3)),
    *(
        Case(stage, kind, checkpointing=True, variants=BACKENDS, note="checkpointing")
        for stage, kind in ((2, "full"), (3, "lora"))
    ),
    Case(3, zero=(("sub_group_size", 2000), ("stage3_param_persistence_threshold", 100)), note="sub_groups"),
]
if deepspeed_adam_is_built():
    CASES += [Case(stage, adam="deepspeed", note="fused_adam") for stage in (0, 2, 3)]
# On one rank nothing is partitioned, so there the main cases are enough.
ON_ONE_RANK = [case for case in CASES if not case.note or (case.halves and case.precision == "fp32")]
WORLDS = {1: ON_ONE_RANK, 2: CASES}
BOTH = [
    pytest.param(case, world_size, id=f"{case}-{world_size}")
    for world_size, cases in WORLDS.items()
    for case in cases
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_case_and_world = pytest.mark.parametrize("case, world_size", BOTH)
every_fp32_case_and_world = pytest.mark.parametrize(
    "case, world_size", [p for p in BOTH if p.values[0].precision == "fp32"]
)


@pytest.fixture(scope="module")
def results(request, run_ranks, model_folder, tmp_path_factory):
    """Function of a world size and a case: what its ranks saw, rank by rank. Tests without a world size look
    at two ranks, those without a case at all cases."""
    folder = str(tmp_path_factory.mktemp("deepspeed"))
    asked = [(given.get("world_size", 2), given.get("case")) for given in selected.parameters(request)]
    found = {}
    for world_size, every in WORLDS.items():
        cases = [case for case in every if (world_size, case) in asked or (world_size, None) in asked]
        if cases:
            ranks = run_ranks(
                "tests.scoring.engine_cases:run_engines",
                world_size,
                cases=cases,
                model_folder=model_folder,
                folder=folder,
            )
            found |= {(world_size, str(case)): seen for case, *seen in zip(cases, *ranks)}
    return lambda world_size, case: found[world_size, str(case)]


@every_case_and_world
def test_gram_equals_the_dense_reference(results, model_folder, case, world_size):
    reference = expected(case, model_folder)
    for variant, found in results(world_size, case)[0]["grams"].items():
        dense = torch.from_numpy(reference.grams[variant.gram])
        tolerance = TOLERANCE[case.precision][variant.geometry]
        if variant.backend == "projected" and world_size > 1 and variant.geometry != "identity":
            tolerance = max(tolerance, SCALE_TRAVELS)
        error = relative_gram_error(torch.from_numpy(found["gram"]), dense)
        worst = np.unravel_index(error.argmax().item(), error.shape)
        message = (
            f"{variant}: K{worst} = {found['gram'][worst]:.6e}, reference {dense[worst]:.6e}; "
            f"norms {found['gram'].diagonal() ** 0.5} and {dense.diagonal().sqrt().numpy()}"
        )
        assert error.max() <= tolerance, message


@every_case_and_world
def test_a_sample_without_supervision_has_a_zero_row(results, case, world_size):
    """Also with momentum in play: momentum belongs to no sample's vector. It is kept only where all others
    are worse than nothing."""
    for variant, found in results(world_size, case)[0]["grams"].items():
        assert not found["gram"][3].any() and not found["gram"][:, 3].any(), variant
        assert found["loss_C"][3] == 0 and (3 not in found["indices"] or found["fallback"]), variant


@every_case
def test_all_ranks_come_out_with_the_same_gram_selection_and_weights(results, case):
    ranks = results(2, case)
    for variant in ranks[0]["grams"]:
        first, second = (rank["grams"][variant] for rank in ranks)
        for what in ("gram", "indices", "weights", "loss_C"):
            assert np.array_equal(first[what], second[what]), f"{variant}: {what} differs between ranks"
        assert first["hash"] == second["hash"] != ""
        assert first["target_loss"] == second["target_loss"] and first["bytes_sent"] > 0


@every_fp32_case_and_world
def test_selection_and_weights_are_those_of_the_reference_for_every_split_and_world_size(
    results, model_folder, case, world_size
):
    """The solver passes the error of the Gram on to the weights, at ridge 0.5 without amplifying it: 1e-3."""
    reference, method = expected(case, model_folder), registry.get("filter_then_weight")
    for variant, found in results(world_size, case)[0]["grams"].items():
        if variant.backend == "projected":
            continue  # D in bfloat16: a close decision may fall otherwise
        gram = reference.grams[variant.gram]
        signals = Signals(gram[:-1, :-1], gram[:-1, -1], float(gram[-1, -1]))
        wanted = method.select(signals, KEEP, NUM_CANDIDATES, np.random.default_rng(0), Settings(ridge=RIDGE))
        assert found["indices"].tolist() == wanted.indices.tolist(), variant
        assert np.abs(found["weights"] - wanted.weights).max() < 1e-3, variant


@every_case_and_world
def test_losses_equal_those_of_single_samples(results, model_folder, case, world_size):
    """fp32 rounds at 1e-7 and the parameters differ by 1e-6; in bf16 a loss of 5 carries an error of 0.02."""
    tolerance = {"fp32": 1e-5, "bf16": 0.03}[case.precision]
    reference, found = expected(case, model_folder), results(world_size, case)[0]
    for scored in found["grams"].values():
        assert np.abs(scored["loss_C"] - np.array(reference.loss_C)).max() < tolerance
        assert abs(scored["target_loss"] - reference.target_loss) < tolerance
    assert np.abs(np.array(found["losses"]) - np.array(reference.losses)).max() < tolerance


@every_case_and_world
def test_fragments_cover_every_element_once_and_hold_the_adam_state_of_the_reference(
    results, model_folder, case, world_size
):
    """Relative to the tensor's norm: fp32 1e-4 (measured 1e-5), bf16 0.1 (measured 0.04): gradients are
    rounded to 8 bits."""
    tolerance = {"fp32": 1e-4, "bf16": 0.1}[case.precision]
    adam = expected(case, model_folder).adam
    dense = {name: torch.full((2, m.numel()), torch.nan) for name, m in adam.exp_avg.items()}
    for rank in results(world_size, case):
        for name, start, numel, step, beta1, beta2, eps, exp_avg, exp_avg_sq in rank["moments"]:
            if numel:
                hyper = adam.hyper[name]
                assert (step, beta1, beta2, eps) == (adam.step, hyper.beta1, hyper.beta2, hyper.eps), name
                assert dense[name][:, start : start + numel].isnan().all(), (
                    f"{name}: elements with two owners"
                )
                dense[name][:, start : start + numel] = torch.stack([exp_avg, exp_avg_sq])
    for name, (exp_avg, exp_avg_sq) in dense.items():
        assert not exp_avg.isnan().any(), f"{name}: {exp_avg.isnan().sum()} elements without owner"
        for found, wanted in ((exp_avg, adam.exp_avg[name]), (exp_avg_sq, adam.exp_avg_sq[name])):
            error, norm = (found.double() - wanted.flatten()).norm(), wanted.norm()
            assert error <= tolerance * norm + 1e-12, (
                f"{name}: norm {found.norm():.3e}, reference {norm:.3e}, error {error:.3e}"
            )


@every_fp32_case_and_world
def test_weighted_steps_equal_dense_weighted_adamw(results, model_folder, case, world_size):
    """Three updates of 1e-2 each, one of them with all kept samples from one rank; rounding of small v leaves
    3e-6."""
    found, reference = results(world_size, case)[0]["parameters"], expected(case, model_folder).parameters
    assert found.keys() == reference.keys()
    for name, wanted in reference.items():
        error = (found[name].double() - wanted).abs().max().item()
        assert error < 3e-5, (
            f"{name}: error {error:.3e}, norms {found[name].norm():.4e} and {wanted.norm():.4e}"
        )


def test_the_wrappers_meant_are_the_wrappers_tested(results):
    found = {results(2, case)[0]["wrapper"] for case in CASES}
    names = {
        "AdamW",
        "FP16_UnfusedOptimizer",
        "DeepSpeedZeroOptimizer",
        "BF16_Optimizer",
        "DeepSpeedZeroOptimizer_Stage3",
    }
    assert names <= found, found


def test_deepspeeds_own_adam_is_covered():
    if not deepspeed_adam_is_built():
        pytest.skip(
            "FusedAdam is not built here: it takes over a minute; run `ds_report` or training.adam = "
            "deepspeed once"
        )
    assert any(case.adam == "deepspeed" for case in CASES)
