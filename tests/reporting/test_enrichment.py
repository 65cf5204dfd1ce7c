"""What is said of proposals follows from the cosines that scored steps have observed."""

import ast
from pathlib import Path

import numpy as np
import pytest

from pipeline.reporting.enrichment import GAVE_UP, back_to_uniform, enrichment_of, words
from pipeline.reporting.records import read_run

LEARNED = Path(__file__).parents[2] / "pipeline/proposal/learned.py"


def with_cosines(make_run, proposed: list[float], explored: list[float]):
    """A run whose first steps score, with these observed cosines."""
    run = read_run(make_run("run", num_steps=10, score_every=100))
    run.steps["cosine_of_proposed"] = np.nan
    run.steps.loc[: len(proposed) - 1, "cosine_of_proposed"] = proposed
    run.steps.loc[: len(explored) - 1, "cosine_of_explored"] = explored
    return run


def test_enrichment_is_the_mean_difference_with_its_error_over_scored_steps(make_run):
    found = enrichment_of(with_cosines(make_run, [0.5, 0.3, 0.4], [0.1, 0.1, 0.0]))
    assert (found.num_steps, found.is_known, found.is_real) == (3, True, True)
    assert (found.proposed, found.explored) == (pytest.approx(0.4), pytest.approx(0.2 / 3))
    assert found.error == pytest.approx(np.std([0.4, 0.2, 0.4], ddof=1) / 3**0.5)


@pytest.mark.parametrize(
    "proposed, explored, said",
    [
        ([0.5, 0.3, 0.4], [0.1, 0.1, 0.0], "0.40 to the target, those taken at random 0.07;"),
        ([0.5, 0.3, 0.4], [0.1, 0.1, 0.0], "So the proposal helps."),
        ([0.1, -0.1, 0.1], [0.0, 0.1, 0.0], "no difference beyond chance: set selection.proposal to uniform"),
        ([0.5, 0.3], [0.1, 0.1], "Over 2 scored steps"),
        ([0.5, 0.3], [0.1, 0.1], "These are too few steps to judge by."),
        ([0.5], [0.1], "Over 1 scored step samples"),
    ],
)
def test_words_say_what_the_numbers_say(make_run, proposed, explored, said):
    (text,) = words("run", with_cosines(make_run, proposed, explored))
    assert said in text and text.startswith(
        "run: a step takes 16.0% of its window of data.pool (the last one 8 of"
    )


def test_a_run_that_predicts_nothing_has_no_words(make_run):
    run = read_run(make_run("run"))
    assert enrichment_of(run) is None and words("run", run) == []


def test_the_step_of_giving_up_is_told(make_run):
    run = with_cosines(make_run, [0.1, -0.1, 0.1], [0.0, 0.1, 0.0])
    assert back_to_uniform(run) is None
    run.steps.at[2, "warnings"] = [f"WARNING after step 2: {GAVE_UP}: over 72 samples ..."]
    assert back_to_uniform(run) == 2
    assert f"After step 2 it went back to samples as they come: {GAVE_UP}." in words("run", run)[0]


def test_giving_up_is_known_by_words_that_the_proposal_says():
    texts = [
        node.value for node in ast.walk(ast.parse(LEARNED.read_text())) if isinstance(node, ast.Constant)
    ]
    assert [text for text in texts if isinstance(text, str) and GAVE_UP in text]
