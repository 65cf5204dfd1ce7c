"""On two ranks states, losses and fit are those of one sample at a time, and the engine stays as it was."""

import numpy as np
import pytest
import torch

from pipeline.training.ranking_model import FIT_STEPS, pooled
from tests import reference, selected
from tests.scoring.engine_cases import Case
from tests.training.ranking_cases import LEARNING_RATE, SAMPLES, TARGETS

CASES = [
    *(Case(stage) for stage in (0, 1, 2, 3)),
    Case(2, "lora"),
    Case(3, "lora"),
    Case(2, "lora", is_packed=True, note="packed"),
    Case(2, "full", "bf16"),
]


@pytest.fixture(scope="module")
def found(request, run_ranks, model_folder, tmp_path_factory):
    places = dict(model_folder=model_folder, folder=str(tmp_path_factory.mktemp("deepspeed")))
    return run_ranks(
        "tests.training.ranking_cases:measured", 2, cases=selected.cases(request, "case", CASES), **places
    )


def load(case: Case, model_folder: str, parameters: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The model in float64, with the parameters that the engine had."""
    model = reference.load(model_folder, case.kind).eval()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in parameters.items():
            own[name].copy_(value)
    return model


def tolerance(case: Case) -> float:
    """Relative to the largest; bf16 has 8 bits."""
    return 0.05 if case.precision == "bf16" else 2e-5


def close_to(actual: np.ndarray, expected: np.ndarray, relative: float) -> None:
    np.testing.assert_allclose(actual, expected, atol=relative * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_ranks_get_the_same(found, case):
    one, other = (rank[str(case)] for rank in found)
    for name in ("states", "losses"):
        assert one[name].dtype == np.float32 and one[name].tobytes() == other[name].tobytes()
    if case.stage < 3:
        assert [part.tobytes() for part in one["around"]] == [part.tobytes() for part in other["around"]]


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_states_and_losses_are_those_of_one_sample_at_a_time(found, case, model_folder):
    answer = found[0][str(case)]
    model = load(case, model_folder, answer["parameters"])
    states, losses = [], []
    for sample in SAMPLES:
        hidden_TH = model(torch.tensor([sample.input_ids]), output_hidden_states=True).hidden_states[-1][0]
        weights = range(1, len(hidden_TH) + 1)
        states.append(sum(t * row for t, row in zip(weights, hidden_TH)) / sum(weights))
        losses.append(reference.sample_loss(model, sample).item())
    close_to(answer["states"], torch.stack(states).numpy(), tolerance(case))
    close_to(answer["losses"], np.array(losses), tolerance(case))
    assert losses[3] == answer["losses"][3] == 0, "it has no supervised token"


@pytest.mark.parametrize("case", [case for case in CASES if case.stage < 3], ids=str)
def test_the_fit_is_adam_on_the_mean_loss_of_the_targets(found, case, model_folder):
    before_N, after_N = found[0][str(case)]["around"]
    assert before_N.tobytes() == found[0][str(case)]["losses"].tobytes()
    model = load(case, model_folder, found[0][str(case)]["parameters"])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hyper = reference.Hyper(LEARNING_RATE, 0.9, 0.999, 1e-8, 0.0)
    adam = reference.AdamW({name: p.detach() for name, p in trained.items()}, dict.fromkeys(trained, hyper))
    for _ in range(FIT_STEPS):
        adam.update(reference.gradient(model, [(target, 1 / len(TARGETS)) for target in TARGETS]))
    expected = np.array([reference.sample_loss(model, sample).item() for sample in SAMPLES])
    change = np.abs(expected - before_N).max()
    assert change > 0.05, "the fit changes nothing"
    # eight steps carry rounding on, and Adam's first divides by gradients as small as it
    np.testing.assert_allclose(after_N, expected, atol=(0.25 if case.precision == "bf16" else 0.02) * change)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_engine_is_left_as_it_was(found, case):
    """Parameters, gradients and Adam state bit by bit; and the next step is a run's that never asked."""
    for rank in found:
        answer = rank[str(case)]
        assert answer["untouched"] and answer["same_afterwards"] and answer["same_draws"]
        assert answer["is_training"], "the model was left in another mode"


@pytest.mark.parametrize("case", [case for case in CASES if case.stage == 3], ids=str)
def test_a_fit_under_zero_3_is_refused(found, case):
    for rank in found:
        assert "under ZeRO stage 3 no rank holds its trained parameters" in rank[str(case)]["refused"]


def test_a_sample_without_tokens_pools_to_zero():
    assert pooled(torch.ones(0, 4)).tolist() == [0] * 4
