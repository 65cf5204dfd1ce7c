"""Numbers of the summary against numbers worked out by hand."""

import io
import json

import pytest
from rich.console import Console

from pipeline.reporting.records import Recorder, read_run
from pipeline.reporting.summary import summarise, table


@pytest.fixture
def by_hand(make_run):
    """Four steps, the first of them warm-up, two samples kept in each."""
    folder = make_run("run", num_steps=0, evaluations=[(0, 3.0), (2, 2.0), (4, 1.5)])
    with Recorder(folder) as recorder:
        for step in range(4):
            recorder.step(
                {
                    "step": step,
                    "warmup": step == 0,
                    "fallback": int(step == 2),
                    "dropped": ["x", "y"] if step == 3 else [],
                    "seconds": {
                        "candidates": 0.1,
                        "target": 0.2,
                        "factors": 0.3,
                        "gram": 0.1,
                        "solve": 0.3,
                        "update": 3.0,
                        "total": [9.0, 4.0, 5.0, 3.0][step],
                    },
                }
            )
        for step, (damages, sources, weights) in enumerate(
            [
                (("wrong", "wrong"), ("chat", "chat"), (0.5, 0.5)),  # warm-up: must not count
                (("none", "wrong"), ("math", "chat"), (0.9, 0.1)),
                (("none", "none"), ("math", "math"), (0.6, 0.4)),
                (("none", ""), ("math", "chat"), (0.7, 0.3)),  # unknown damage counts neither way
            ]
        ):
            recorder.kept(
                [
                    {
                        "step": step,
                        "id": str(n),
                        "damage": damages[n],
                        "source": sources[n],
                        "weight": weights[n],
                    }
                    for n in (0, 1)
                ]
            )
    pool = {
        "num_samples": 10,
        "by_source": {"math": 2, "chat": 8},
        "by_damage": {"none": 6, "wrong": 2, "": 2},
    }
    (folder / "pool.json").write_text(json.dumps({**pool, "target_sources": ["math"]}))
    return read_run(folder)


def test_summary_equals_the_numbers_worked_out_by_hand(by_hand):
    (summary,) = summarise([by_hand])
    assert (summary.num_steps, summary.num_warmup_steps, summary.num_fallbacks, summary.num_dropped) == (
        4,
        1,
        1,
        2,
    )
    assert (summary.loss_before, summary.loss_after) == (3.0, 1.5)
    assert summary.loss_mean == pytest.approx((2 * 2.5 + 2 * 1.75) / 4)
    assert summary.damaged_pool == pytest.approx(2 / 8)
    assert summary.damaged_kept == pytest.approx(1 / 5)
    assert summary.damaged_weight == pytest.approx(0.1 / (1 + 1 + 0.7))
    assert summary.target_pool == pytest.approx(2 / 10)
    assert summary.target_kept == pytest.approx(4 / 6)
    assert summary.target_weight == pytest.approx((0.9 + 1.0 + 0.7) / 3)
    assert summary.step_seconds == pytest.approx((9 + 4 + 5 + 3) / 4)
    assert summary.selection_share == pytest.approx(4 * 1.0 / (9 + 4 + 5 + 3))
    assert summary.step_cpu_seconds is summary.selection_cpu_share is summary.num_scored_steps is None


def test_what_cannot_be_measured_is_none(make_run):
    folder = make_run("run", num_steps=2, evaluations=[], damage=False)  # two steps are all warm-up
    (summary,) = summarise([read_run(folder)])
    assert summary.loss_before is summary.loss_after is summary.loss_mean is None
    assert summary.damaged_pool is summary.damaged_kept is summary.target_kept is None
    (run := read_run(folder)).steps["seconds_total"] = float("nan")
    (summary,) = summarise([run])
    assert summary.step_seconds is summary.selection_share is None


@pytest.fixture
def rarely(make_run):
    """Four steps, of which the first and the last score: 3 and 1 s of their 4 and 2 s went into choosing."""
    folder = make_run("rarely", num_steps=0, evaluations=[], score_every=4)
    with Recorder(folder) as recorder:
        for step, (scored, chosen, total, cpu) in enumerate(
            [(1, 3, 4, 8), (0, 0, 1, 2), (0, 0, 1, 2), (1, 1, 2, 4)]
        ):
            seconds = {"gram": chosen, "update": total - chosen, "total": total}
            fields = {"scored": scored, "cpu_seconds": cpu, "fallback": scored, "seconds": seconds}
            recorder.step({"step": step, "warmup": step == 0, **fields})
            recorder.kept([{"step": step, "id": str(step), "weight": 1.0, "damage": "none"}])
    return folder


def test_the_price_of_rare_scoring_and_of_what_was_made_once_is_charged_in_both_times(rarely):
    (summary,) = summarise([read_run(rarely)])
    assert (summary.num_steps, summary.num_scored_steps) == (4, 2)
    assert (summary.step_seconds, summary.step_cpu_seconds) == (2.0, 4.0)
    assert summary.selection_share == pytest.approx((3 + 3 + 1) / (3 + 8))
    assert summary.selection_cpu_share == pytest.approx((2 + 8 * 3 / 4 + 4 * 1 / 2) / (2 + 16))
    text = " ".join(printed([read_run(rarely)]).split())
    assert (
        "2 of 4 steps have scored candidates; selection has taken 64% of the time and 56% of the CPU time, "
        "with features of 1,000 samples, made once (3.00 s, 2.00 s of CPU)." in text
    )
    assert "2 of 2 scored steps fell back" in text and "those that steps took as proposed among them" in text


def test_work_of_a_card_is_not_told_in_cpu_seconds(rarely):
    (rarely / "environment.json").write_text('{"device": "cuda"}')
    (summary,) = summarise([read_run(rarely)])
    assert summary.step_cpu_seconds is summary.selection_cpu_share is None and summary.step_seconds == 2.0
    assert "64% of the time, with features of 1,000 samples, made once (3.00 s)." in " ".join(
        printed([read_run(rarely)]).split()
    )


def test_one_evaluation_is_before_and_not_after(make_run):
    (summary,) = summarise([read_run(make_run("run", evaluations=[(0, 2.5)]))])
    assert (summary.loss_before, summary.loss_after, summary.loss_mean) == (2.5, None, None)


def printed(runs) -> str:
    output = io.StringIO()
    table(summarise(runs), Console(file=output))
    return output.getvalue()


def test_table_is_plain_text_of_at_most_100_columns(by_hand, make_run):
    text = printed([by_hand, read_run(make_run("random", method="random"))])
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= 100
    row = next(line for line in text.splitlines() if line.strip().startswith("filter_then_weight"))
    assert row.split()[1:] == ["3.000", "1.500", "2.125", "20.0%", "3.7%", "66.7%", "5.25", "19%"]


def test_table_states_warmup_fallbacks_and_dropped_candidates(by_hand):
    text = printed([by_hand])
    assert "warm-up (steps that match the plain gradient: 1)" in text
    assert "1 of 4 steps fell back" in text
    assert "2 candidate(s) dropped" in text


def test_markup_in_a_name_is_printed_as_it_is(make_run):
    runs = [read_run(make_run(name)) for name in ("[bold]a", "[red]b")]
    assert "[bold]a" in printed(runs)
