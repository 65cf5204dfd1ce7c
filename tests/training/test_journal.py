"""What a step leaves in the records of its run: with a look at its candidates, and without."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.config import Config
from pipeline.data.sample import Sample
from pipeline.proposal.contract import Proposed
from pipeline.proposal.proposer import Plan
from pipeline.selection.contract import Selection, Signals
from pipeline.step.look import Look
from pipeline.step.trained_step import TrainedStep
from pipeline.step.weighted_step import StepResult
from pipeline.training.journal import Journal

POOL = [Sample([1, 2], [-100, 2], f"sample-{i}", "source") for i in range(20)]
COSINES = np.array([0.9, 0.7, 0.1, -0.3])


def scored(step: int = 0, window: int = 40, **proposed) -> TrainedStep:
    """Four candidates with COSINES to the target, rows of other lengths; the first two are kept."""
    norms_C, target_norm = np.array([1.0, 2.0, 3.0, 4.0]), 5.0
    signals = Signals(np.diag(norms_C**2), COSINES * norms_C * target_norm, target_norm**2, np.ones(4))
    selection = Selection(np.array([0, 1]), np.array([0.75, 0.25]), residual=0.5, cosine=0.8)
    look = Look(selection, "hash", signals=signals, loss_C=np.ones(4), target_loss=2.0, candidate_tokens=8)
    return trained(Plan(step, True, Proposed(np.array([3, 5, 7, 11]), window, **proposed), 0, 0.0), look)


def unscored(step: int = 1) -> TrainedStep:
    look = Look(Selection(np.arange(2), np.full(2, 0.5)), "hash")
    return trained(Plan(step, False, Proposed(np.array([2, 4]), 20), 1, 0.5), look)


def trained(plan: Plan, look: Look, learned=()) -> TrainedStep:
    seconds = {"update": 1.0, "total": 1.5}
    return TrainedStep(plan, look, list(learned), StepResult(1.5, 1.0, 4), 0, 1e-3, seconds, 2.5, {})


@pytest.fixture
def written(tmp_path):
    """``written(*steps)`` are the records of these steps, by file."""

    def write(*steps: TrainedStep) -> dict[str, list[dict]]:
        engine = SimpleNamespace(monitor=SimpleNamespace(enabled=False))
        journal = Journal(tmp_path, engine, Config(), POOL)
        for step in steps:
            journal.step(step)
        journal.recorder.close()
        names = ("steps", "kept", "passed")
        return {n: [*map(json.loads, (tmp_path / f"{n}.jsonl").read_text().splitlines())] for n in names}

    return write


def test_a_step_that_scores_nothing_has_the_fields_of_a_look_empty_and_passes_nothing_over(written):
    found = written(scored(0), unscored(1))
    look, plain = found["steps"]
    assert [line["scored"] for line in found["steps"]] == [1, 0]
    assert [(line["window"], line["num_candidates"], line["num_kept"]) for line in found["steps"]] == [
        (40, 4, 2),
        (20, 2, 2),
    ]
    of_a_look = ("candidate_loss", "target_loss", "residual", "cosine", "cosine_of_proposed")
    assert all(look[name] is not None and plain[name] is None for name in of_a_look)
    assert plain["train_loss"] == 1.5 and plain["cpu_seconds"] == 2.5
    assert [line["id"] for line in found["kept"]] == ["sample-3", "sample-5", "sample-2", "sample-4"]
    assert [line["alignment"] for line in found["kept"]] == pytest.approx([0.9, 0.7, None, None])
    assert [line["ids"] for line in found["passed"]] == [["sample-7", "sample-11"]]


def test_proposed_samples_and_those_at_random_are_told_apart_by_their_observed_cosines(written):
    explored = {"predicted_n": 3 * COSINES + 1, "is_explored_n": np.array([False, True, False, True])}
    (line,) = written(scored(**explored))["steps"]
    assert line["predicted_correlation"] == pytest.approx(1.0)
    assert line["cosine_of_proposed"] == pytest.approx((0.9 + 0.1) / 2)
    assert line["cosine_of_explored"] == pytest.approx((0.7 - 0.3) / 2)


def test_without_predictions_the_plain_order_is_at_random_and_the_best_of_more_are_proposed(written):
    plain, ranking = written(scored(0, window=4), scored(1, window=40))["steps"]
    assert plain["predicted_correlation"] is ranking["predicted_correlation"] is None
    assert plain["cosine_of_proposed"] is ranking["cosine_of_explored"] is None
    found = [plain["cosine_of_explored"], ranking["cosine_of_proposed"]]
    assert found == pytest.approx([COSINES.mean()] * 2)


def test_predictions_that_are_all_alike_correlate_with_nothing(written):
    (line,) = written(scored(predicted_n=np.zeros(4), is_explored_n=np.zeros(4, dtype=bool)))["steps"]
    assert line["predicted_correlation"] is None and line["cosine_of_explored"] is None
    assert line["cosine_of_proposed"] == pytest.approx(COSINES.mean())


def test_what_the_proposal_has_learned_is_a_warning_of_its_step(written):
    step = unscored(1)
    (line,) = written(trained(step.plan, step.look, ["the proposal does not help: ..."]))["steps"]
    assert line["warnings"] == ["WARNING after step 1: the proposal does not help: ..."]
