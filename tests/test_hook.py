"""The hook where something is missing or broken: no Adam state yet, unusable samples, engines it cannot work
with."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.config import SelectionConfig
from pipeline.hook import SelectionHook
from pipeline.selection.contract import Settings, Signals
from pipeline.selection.registry import METHODS
from tests import selected
from tests.reference import sample_loss
from tests.scoring.engine_cases import KEEP, LR, NUM_CANDIDATES, RIDGE, SCORED_STEP, candidates, expected
from tests.scoring.hook_cases import FIRST_CASES, METHOD_CASES, SPOILED, reference_llama

ENGINES = [str(case) for case in FIRST_CASES]
every_engine = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("deepspeed"))


@pytest.fixture(scope="module")
def selections(request, run_ranks, model_folder, folder):
    asked = selected.cases(request, "engine", ENGINES)
    ranks = run_ranks(
        "tests.scoring.hook_cases:before_and_after_the_first_step",
        2,
        cases=[case for case in FIRST_CASES if str(case) in asked],
        model_folder=model_folder,
        folder=folder,
    )
    assert ranks[0] == ranks[1], "the ranks disagree"
    return ranks[0]


@pytest.fixture(scope="module")
def broken(run_ranks, model_folder, folder):
    return run_ranks("tests.scoring.hook_cases:broken", 2, model_folder=model_folder, folder=folder)


@every_engine
@pytest.mark.parametrize("when", ["before", "default step", "compensate"])
def test_before_the_first_update_the_plain_gradient_is_matched(selections, engine, when):
    """Also with warmup_steps = 0: there are no moments to measure with."""
    is_warmup, *selection = selections[engine][when]
    assert is_warmup and selection == list(selections[engine]["identity"][1:])
    assert selections[engine]["before"] == selections[engine]["again"]


@every_engine
def test_identity_geometry_needs_no_moments_and_scores_at_once(selections, engine):
    is_warmup, scored, indices, _ = selections[engine]["identity"]
    assert not is_warmup and scored and 0 < len(indices) <= KEEP


@every_engine
def test_warm_up_lasts_for_warmup_steps(selections, engine):
    assert selections[engine]["warm-up"][:2] == (True, True)
    assert selections[engine]["after"][:2] == (False, True)
    assert selections[engine]["top_k"][:2] == (False, True)
    assert selections[engine]["engine's count"][:2] == (True, True), (
        "two updates are done, so this is step 2 of 3"
    )


@every_engine
def test_methods_without_gram_score_nothing(selections, engine):
    assert selections[engine]["random"][:2] == (False, False) == selections[engine]["full"][:2]
    assert selections[engine]["full"][2] == list(range(NUM_CANDIDATES))


every_method_case = pytest.mark.parametrize("case", METHOD_CASES, ids=str)


@pytest.fixture(scope="module")
def by_method(request, run_ranks, model_folder, folder):
    """Tests without a case look at the first."""
    asked = [given.get("case", METHOD_CASES[0]) for given in selected.parameters(request)]
    cases = [case for case in METHOD_CASES if case in asked]
    arguments = dict(cases=cases, model_folder=model_folder, folder=folder)
    return run_ranks("tests.scoring.hook_cases:every_method", 2, **arguments)


@every_method_case
@pytest.mark.parametrize(
    "method", [method for method in METHODS.values() if method.needs != "nothing"], ids=lambda m: m.name
)
def test_a_method_gets_what_it_needs_and_pays_for_no_more(by_method, model_folder, case, method):
    """Signals equal those of the dense reference (bf16: to 3 % of a loss, 10 % of a squared norm), and
    nothing else is measured."""
    found, reference = by_method[0][str(case)][method.name], expected(case, model_folder)
    assert (
        set(found["signals"])
        == {
            "loss": {"loss_C"},
            "reference_loss": {"loss_C", "reference_loss_C"},
            "norm": {"loss_C", "squared_norm_C"},
            "gram": {"loss_C", "gram_CC", "alignment_C", "target_norm_squared"},
        }[method.needs]
    )
    is_bf16 = case.precision == "bf16"
    tolerance = 0.03 if is_bf16 else 1e-5
    assert np.abs(found["loss_C"] - np.array(reference.loss_C)).max() < tolerance
    assert ("target" in found["stages"]) == ("gram" in found["stages"]) == (method.needs == "gram")
    assert (found["target_loss"] is None) == (method.needs != "gram")
    signals = {key: np.array(value) for key, value in found["signals"].items()}
    if method.needs == "reference_loss":
        model = reference_llama()
        wanted = np.array([sample_loss(model, sample).item() for sample in candidates(SCORED_STEP)])
        assert np.abs(signals["reference_loss_C"] - wanted).max() < 1e-5
    if method.needs == "norm":
        wanted = reference.grams["identity", "cancel", "adam", 0].diagonal()[:-1]
        assert np.abs(signals["squared_norm_C"] - wanted).max() < (0.1 if is_bf16 else 1e-4) * wanted.max()
    if method.needs != "gram":
        assert found["bytes_sent"] < 200
    elif method.geometry is not None and not is_bf16:
        wanted = reference.grams[method.geometry, "cancel", "adam", 0]
        assert np.abs(signals["alignment_C"] - wanted[:-1, -1]).max() < 5e-4 * np.abs(wanted).max()


@pytest.mark.parametrize(
    "method", [method for method in METHODS.values() if method.geometry], ids=lambda m: m.name
)
def test_a_method_with_its_own_geometry_selects_as_on_the_dense_reference_and_at_the_present_learning_rate(
    by_method, model_folder, method
):
    case = METHOD_CASES[0]
    reference, found = expected(case, model_folder), by_method[0][str(case)][method.name]
    gram = reference.grams[method.geometry, "cancel", "adam", 0]
    signals = Signals(gram[:-1, :-1], gram[:-1, -1], gram[-1, -1], squared_norm_C=gram.diagonal()[:-1])
    rng, state = np.random.default_rng((3, SCORED_STEP, 1)), Settings(ridge=RIDGE, learning_rate=LR)
    wanted = method.select(signals, KEEP, NUM_CANDIDATES, rng, state)
    assert found["indices"] == wanted.indices.tolist()
    assert found["weights"] == pytest.approx(wanted.weights.tolist(), abs=1e-3)


@every_method_case
def test_every_method_leaves_the_engine_untouched_and_all_ranks_agree(by_method, case):
    first, second = (ranks[str(case)] for ranks in by_method)
    assert first["untouched"] and second["untouched"]
    for name in METHODS:
        assert (
            first[name]["indices"] == second[name]["indices"]
            and first[name]["weights"] == second[name]["weights"]
        ), name


@every_method_case
def test_losses_alone_are_formed_in_chunks(by_method, model_folder, case):
    indices, loss_C = by_method[0][str(case)]["in chunks"]
    assert np.abs(loss_C - np.array(expected(case, model_folder).loss_C)).max() < (
        0.03 if case.precision == "bf16" else 1e-5
    )
    assert indices == np.argsort(-loss_C, kind="stable")[:2].tolist()


@every_method_case
def test_a_model_that_changes_its_logits_is_scored_from_all_of_them_or_refused(by_method, case):
    for found in by_method:
        whole, chunked = found[str(case)]["all at once"], found[str(case)]["in chunks"][1]
        assert np.abs(whole - chunked).max() < (0.03 if case.precision == "bf16" else 1e-5)
        assert (
            "changes its logits after the output layer, so they cannot be had in chunks"
            in found[str(case)]["too long"]
        )


def test_settings_that_contradict_a_method_are_refused_by_the_hook_too(by_method):
    refused = by_method[0][str(METHOD_CASES[0])]["refused"]
    assert refused["rho_loss"] == "ValueError: selection.method = rho_loss needs a reference model"
    assert refused["greats"].startswith(
        "ValueError: selection.geometry = update contradicts selection.method = greats"
    )
    assert refused["useless reference"].endswith("filter_then_weight has no use for a reference model")
    assert refused["too deep"].startswith("ValueError: selection.last_blocks = 9, and the model has")
    assert "and the optimizer's groups have 2 (" in refused["two rates"]
    assert refused["less"].startswith(
        "ValueError: selection.momentum = compensate contradicts selection.method = less"
    )


def test_a_candidate_with_a_non_finite_row_is_dropped_and_disturbs_no_other(broken):
    """The others' entries are those of a clean pass, up to float32 sums of other neighbours: 1e-6."""
    for outcomes in broken:
        dropped, kept, gram_CC, loss_C = outcomes["spoiled"]
        assert dropped == (SPOILED,) and SPOILED not in kept and len(kept) > 0
        others = [i for i in range(NUM_CANDIDATES) if i != SPOILED]
        clean_CC = outcomes["clean gram"][np.ix_(others, others)]
        assert np.abs(gram_CC[np.ix_(others, others)] - clean_CC).max() < 1e-6 * clean_CC.max()
        assert np.isnan(loss_C[SPOILED]) and np.isfinite(loss_C[others]).all()
        assert np.isfinite(outcomes["step after"])


def test_a_step_whose_target_is_not_finite_trains_on_a_uniform_draw_and_says_so(broken):
    for outcomes in broken:
        for number, (target_lost, fallback, num_kept, warnings) in enumerate(outcomes["targets lost"], 1):
            assert target_lost and fallback and num_kept == KEEP
            assert f"not finite, {number} in a row" in warnings[0]


def test_a_scoring_pass_that_runs_out_of_memory_on_one_rank_is_halved_on_all_and_stays_so(broken):
    """Three samples a rank: three at once, two, one; the Gram is that of the pass with all of them, up to
    float32 sums."""
    for outcomes in broken:
        whole_CC, (retries, rows, warnings, gram_CC), (no_retries, same_rows, no_warnings, again_CC) = (
            outcomes["out of memory"]
        )
        assert (retries, rows, len(warnings)) == (
            2,
            1,
            2,
        ) and "ran out of memory; from now on it takes 1" in warnings[1]
        assert (no_retries, same_rows, no_warnings) == (0, 1, [])
        for found_CC in (gram_CC, again_CC):
            assert np.abs(found_CC - whole_CC).max() < 1e-6 * whole_CC.max()


@pytest.mark.parametrize(
    "what, message",
    [
        ("target lost again", "ValueError: the target's gradient is not finite"),
        (
            "no memory at all",
            "RuntimeError: step 2: a scoring pass of one sample a rank does not fit into memory",
        ),
        ("no memory in the backward", "RuntimeError: the backward of a scoring pass of"),
        ("no memory under ZeRO-3", "RuntimeError: the forward of a scoring pass of"),
        (
            "unequal",
            "ValueError: every rank must bring the same number of candidates, at least one; they bring [3, "
            "2]",
        ),
        (
            "none",
            "ValueError: every rank must bring the same number of candidates, at least one; they bring [0, "
            "0]",
        ),
        ("no target", "ValueError: selection.method = filter_then_weight needs target samples"),
        ("target", "ValueError: the target's gradient is not finite"),
        ("solver", "ValueError: the solver of rank 0 gives up"),
        ("disagree", "RuntimeError: the ranks disagree on the selection of step 2: rank 0 has"),
    ],
)
def test_every_rank_raises_the_same_error_and_none_hangs(broken, what, message):
    first, second = (outcomes[what] for outcomes in broken)
    assert first.startswith(message), first
    assert first == second


def test_engines_that_selection_cannot_work_with_are_refused_with_the_way_out(
    run_ranks, model_folder, folder
):
    for outcomes in run_ranks(
        "tests.scoring.hook_cases:refused", 2, model_folder=model_folder, folder=folder
    ):
        assert outcomes["sgd"].startswith("ValueError: SGD keeps no plain Adam moments: use AdamW"), outcomes[
            "sgd"
        ]
        assert "selection.geometry = identity" in outcomes["sgd"]
        assert outcomes["sgd in identity geometry"] is True
        assert outcomes["norms only"].startswith("ValueError: the model has no trainable linear layer"), (
            outcomes["norms only"]
        )


@pytest.mark.parametrize(
    "trait, message",
    [
        ({"fp16_enabled": lambda: True}, "at ZeRO stage 0 DeepSpeed .* take stage 1"),
        ({"sequence_parallel_size": 2}, "sequence parallelism of degree 2"),
        ({"mp_world_size": 4}, "tensor parallelism of degree 4"),
    ],
)
def test_engines_that_no_cpu_can_build_are_refused_too(trait, message, monkeypatch):
    """DeepSpeed has neither fp16 nor model parallelism here; the hook asks before it looks any further."""
    monkeypatch.setattr("pipeline.hook.Collectives", lambda *_: None)
    traits = {
        "seq_data_parallel_group": None,
        "device": None,
        "fp16_enabled": lambda: False,
        "zero_optimization_stage": lambda: 0,
        "sequence_parallel_size": 1,
        "mp_world_size": 1,
    }
    with pytest.raises(ValueError, match=message):
        SelectionHook.attach(SimpleNamespace(**{**traits, **trait}), None, SelectionConfig(), 0)
