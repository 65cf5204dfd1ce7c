"""The first sentence says what the numbers say, and no more."""

import pytest

from pipeline.comparison.statistics import Estimate, Row
from pipeline.comparison.verdict import verdict as of_grid
from pipeline.reporting.enrichment import GAVE_UP
from pipeline.reporting.incidents import incidents
from pipeline.reporting.records import read_run
from pipeline.reporting.summary import summarise
from pipeline.reporting.verdict import verdict


def said(*folders) -> str:
    runs = [read_run(folder) for folder in folders]
    return verdict(runs, summarise(runs))


def test_one_run_is_compared_with_nothing_and_says_so(make_run):
    text = said(make_run("a", evaluations=[(0, 3.0), (30, 1.5)]))
    assert text.startswith(
        "filter_then_weight: the held-out loss went from 3.000 to 1.500 (-50.0%) in 30 steps, keeping 8 of 32"
    )
    assert "nothing here to compare it with" in text and "selection.method = random" in text


@pytest.mark.parametrize(
    "evaluations, words", [([], "No held-out loss was measured"), ([(0, 3.0)], "was measured once (3.000)")]
)
def test_a_run_without_a_result_has_none(make_run, evaluations, words):
    assert words in said(make_run("a", evaluations=evaluations))


def test_better_worse_and_equal_are_told_apart_with_the_price(make_run):
    random = make_run("random", method="random", evaluations=[(0, 3.0), (30, 2.0)])
    better = said(make_run("a", evaluations=[(0, 3.0), (30, 1.5)]), random)
    assert (
        "is 1.500 and that of random 2.000: 0.500 lower (-25.0%). A step took 1.8 times as long (1.94 s "
        "against 1.05 s)" in better
    )
    assert "It is one run of each" in better
    worse = said(make_run("b", evaluations=[(0, 3.0), (30, 2.5)]), random)
    assert "0.500 higher (+25.0%). Choosing has not helped here." in worse
    halfway = said(
        make_run("d", evaluations=[(0, 3.0), (10, 2.0), (30, 2.0)]),
        make_run("e", method="random", evaluations=[(0, 3.0), (10, 3.0), (30, 2.0)]),
    )
    assert "same held-out loss, 2.000. Averaged over the run it is 0.500 lower (-18.8%)." in halfway
    assert "have the same held-out loss, 2.000" in said(
        make_run("c", evaluations=[(0, 3.0), (30, 2.0)]), random
    )


def test_the_reference_draws_from_the_whole_pool_and_the_time_to_its_loss_is_told(make_run):
    losses = {"evaluations": [(0, 3.0), (10, 2.0), (30, 1.5)], "score_every": 10}
    ours, random = make_run("a", **losses), make_run("b", method="random", evaluations=[(0, 3.0), (30, 2.0)])
    retrieval = make_run("c", method="random", evaluations=[(0, 3.0), (30, 1.0)])
    for folder, proposal in ((random, "uniform"), (retrieval, "bm25")):
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("ridge:", f"proposal: {proposal}\n  ridge:"))
    text = said(ours, retrieval, random)
    assert "that of random (b) 2.000" in text
    # Ten steps of ours and what was made once, over thirty of random's: by the clock, as random has no other.
    share = (3.0 + 2 * 1.05 + 8 * 1.05) / (30 * 1.05)
    assert f"reached the final loss of random (b) in {share:.2f} of its time" in text


def test_the_price_of_rare_scoring_is_told_in_cpu_time_with_what_was_made_once(make_run):
    rarely = make_run("a", evaluations=[(0, 3.0), (30, 1.5)], score_every=10)
    alone = said(rarely)
    assert (
        "in 30 steps: 4 scored steps kept 8 of 32 candidates each, the others trained on 8 proposed" in alone
    )
    random = make_run("random", method="random", evaluations=[(0, 3.0), (30, 2.0)], score_every=10)
    assert (
        "A step took 1.1 times as much CPU time (2.27 s against 2.00 s), and 1.1 times as long by the clock, "
        "and features of 1,000 samples took 3.00 s once. Of the samples it trained on" in said(rarely, random)
    )


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"num_steps": 20, "evaluations": [(0, 3.0), (20, 2.0)]}, "they took 30 and 20 steps"),
        ({"evaluations": [(0, 4.0), (30, 2.0)]}, "they began at 3.000 and at 4.000"),
    ],
)
def test_runs_that_cannot_be_compared_are_not(make_run, changes, reason):
    text = said(make_run("a", evaluations=[(0, 3.0), (30, 1.5)]), make_run("b", method="random", **changes))
    assert "cannot be compared: " + reason in text and "lower" not in text


def row(variant: str, auc: float, vs_random=None, error=None, **measured) -> Row:
    """A row of four cells with an auc and what is given of it in equal time; the rest is not known."""
    numbers = {name: Estimate(None, None) for name, kind in Row.__annotations__.items() if kind is Estimate}
    counts = {"cells": 4, "num_reached": 4, "num_pairs": 4}
    others = dict.fromkeys(("step_seconds", "selection_share", "trained_tokens"))
    own = {
        "auc": Estimate(auc, error),
        "final": Estimate(auc, error),
        "vs_random": Estimate(vs_random, error),
        **{name: Estimate(value, None) for name, value in measured.items()},
    }
    return Row(variant, **numbers | counts | others | own)


def test_a_grid_is_judged_by_pairs_in_steps_and_in_time():
    methods = {"filter_then_weight": "filter_then_weight", "random": "random"}
    random = row("random", 3.0)
    in_time = {"step_price": 4.0, "time_to_random": 1.3, "in_random_time": 3.2}
    ours = row("filter_then_weight", 2.5, -0.5, 0.1, **in_time)
    text = of_grid([ours, random], methods, "random", "random", 1, 4)
    assert "is 2.500 (1 target x 4 seeds): 0.500 \u00b1 0.100 lower than that of random." in text
    assert (
        "A step costs 4.0 times as much as one of random: it reaches the final loss of random after 1.30"
        in text
    )
    assert "is behind (3.200 against 3.000)" in text
    text = of_grid([row("filter_then_weight", 2.9, -0.1, 0.1), random], methods, "random", "random", 1, 4)
    assert "within two standard errors and may be chance" in text
    assert "(1 target x 4 seeds): the same as that of random." in of_grid(
        [row("filter_then_weight", 3.0, 0.0, 0.0), random], methods, "random", "random", 1, 4
    )
    text = of_grid([row("filter_then_weight", 2.9, -0.1), random], methods, "random", "random", 1, 1)
    assert "With one seed no error can be given" in text
    assert "nothing here to compare it with" in of_grid(
        [row("full", 2.9)], {"full": "full"}, None, "full", 1, 1
    )


def test_a_proposal_that_gives_up_is_an_incident_of_its_own(make_run):
    run = read_run(make_run("a", num_steps=12, score_every=4))
    sentence = f"WARNING after step 8: {GAVE_UP}: over 120 proposed samples the mean observed cosine is 0.1"
    run.steps.at[8, "warnings"] = ["another warning", sentence]
    found = [(incident.step, incident.kind, incident.what) for incident in incidents(run)]
    assert found == [(8, "warning", "another warning"), (8, "back to uniform", sentence)]


def test_incidents_have_their_step(make_run):
    run = read_run(make_run("a", num_steps=12))
    found = [(incident.step, incident.kind) for incident in incidents(run)]
    assert found == [(5, "fallback"), (7, "candidates dropped"), (9, "warning")]
    assert (
        incidents(run)[2].what == "WARNING after step 9: raise selection.ridge"
        and "broken" in incidents(run)[1].what
    )
    assert incidents(read_run(make_run("b", method="random", num_steps=12))) == []
