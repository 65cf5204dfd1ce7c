"""Equal time: a run beside itself, beside a slower and a faster one, and with a price that is paid once."""

import json

import pytest

from pipeline.reporting.equal_time import (
    against_random,
    at_seconds,
    clock_of,
    curve_of,
    seconds_after,
    seconds_to,
    step_price,
    time_to_random,
)
from pipeline.reporting.records import read_run
from pipeline.settings import draws_at_random

CURVE = {"step": [0, 10, 20], "loss": [4.0, 2.0, 3.0], "seconds": [1.0, 6.0, 16.0], "cpu_seconds": None}
LOSSES = [(0, 4.0), (10, 3.0), (20, 2.5), (30, 2.0)]


@pytest.fixture
def make(make_run):
    """``make(name, ...)`` is a run of 30 steps with CPU seconds."""

    def make(name, method="random", cpu=1.0, wall=2.0, setup=None, losses=LOSSES):
        folder = make_run(name, method=method, evaluations=losses)
        lines = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
        for line in lines:
            line |= {"cpu_seconds": cpu, "seconds": {"total": wall}}
        (folder / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if setup:
            (folder / "setup.json").write_text(json.dumps({**setup, "what": "features"}))
        return read_run(folder)

    return make


def test_a_run_beside_itself_takes_its_time_and_its_price(make):
    curve = curve_of(make("random"))
    for clock in ("cpu", "wall"):
        assert time_to_random(curve, curve, clock) == (1, True) and step_price(curve, curve, clock) == 1


def test_a_run_of_twice_the_speed_needs_half_of_the_time(make):
    random, fast = (curve_of(make(name, cpu=cpu)) for name, cpu in (("random", 1.0), ("fast", 0.5)))
    assert time_to_random(fast, random, "cpu") == (0.5, True) and step_price(fast, random, "cpu") == 0.5
    assert time_to_random(fast, random, "wall") == (1, True)


@pytest.mark.parametrize("clock, price", [("cpu", 6.0), ("wall", 9.0)])
def test_what_is_prepared_once_delays_every_crossing_by_itself_and_no_step_by_anything(make, clock, price):
    plain, late = (
        curve_of(make(name, setup=setup))
        for name, setup in (("plain", None), ("late", {"seconds": 9.0, "cpu_seconds": 6.0}))
    )
    for loss in (3.5, 3.0, 2.2, 2.0):
        assert seconds_to(late, clock, loss) == pytest.approx(seconds_to(plain, clock, loss) + price)
    whole = {"cpu": 30, "wall": 60}[clock]
    assert time_to_random(late, plain, clock) == (pytest.approx(1 + price / whole), True)
    assert step_price(late, plain, clock) == pytest.approx(1)
    assert at_seconds(late, clock, price / 2) == 4.0, "nothing is learned while it prepares"


def test_a_run_that_never_gets_there_is_known_by_what_it_has_used(make):
    random = curve_of(make("random"))
    never = curve_of(make("never", cpu=3.0, losses=[(0, 4.0), (15, 2.5), (30, 2.2)]))
    assert time_to_random(never, random, "cpu") == (3, False)


@pytest.mark.parametrize("seconds, loss", [(0, 4), (1, 4), (3.5, 3), (6, 2), (11, 2.5), (99, 3)])
def test_loss_after_a_time_lies_on_the_line_between_evaluations(seconds, loss):
    assert at_seconds(CURVE, "wall", seconds) == pytest.approx(loss)


@pytest.mark.parametrize("loss, seconds", [(5.0, 1.0), (4.0, 1.0), (3.0, 3.5), (2.0, 6.0), (1.9, None)])
def test_time_to_a_loss_is_that_of_the_first_crossing(loss, seconds):
    assert seconds_to(CURVE, "wall", loss) == (None if seconds is None else pytest.approx(seconds))


def test_the_clock_is_the_cpus_only_where_all_runs_have_it_and_no_card_worked(make, make_run):
    new, older = make("new"), read_run(make_run("older"))
    assert clock_of([new, new]) == "cpu" and clock_of([new, older]) == "wall"
    assert seconds_after(older, "cpu") is None and curve_of(older)["cpu_seconds"] is None
    new.environment["device"] = "cuda"
    assert clock_of([new]) == "wall"


def test_half_written_prices_are_refused(make):
    folder = make("run").folder
    (folder / "setup.json").write_text('{"seconds": 3.0}')
    with pytest.raises(ValueError, match=r"setup.json: cpu_seconds is None, expected a number of seconds"):
        read_run(folder)


def test_random_is_the_run_that_draws_from_the_whole_pool(make):
    mine, random = make("mine", "filter_then_weight", cpu=1.5), make("random")
    retrieval = make("retrieval")
    retrieval.config["selection"]["proposal"] = "bm25"
    assert against_random(mine, [mine, retrieval, random]) == {"step_price": 1.5, "time_to_random": 1.5}
    nothing = {"step_price": None, "time_to_random": None}
    assert against_random(mine, [mine, retrieval]) == against_random(random, [random, mine]) == nothing


@pytest.mark.parametrize(
    "settings, is_random",
    [
        ({"selection": {"method": "random"}}, True),
        ({"selection": {"method": "random", "proposal": "auto"}, "training": {"target_mix": 0.0}}, True),
        ({"selection": {"method": "top_k", "proposal": "uniform"}}, False),
        ({"selection": {"method": "random", "proposal": "oracle"}}, False),
        ({"selection": {"method": "random"}, "training": {"target_mix": 0.25}}, False),
    ],
)
def test_drawing_at_random_means_uniformly_and_from_nothing_but_the_pool(settings, is_random):
    assert draws_at_random(settings) == is_random
