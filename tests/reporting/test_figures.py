"""Every figure is drawn from what the runs hold, and left out where they hold nothing."""

import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pipeline.reporting.figures import COLOURS, MANY, PLOTS
from pipeline.reporting.pictures import INK, Panel, pictures, short, wide
from pipeline.reporting.records import read_run
from pipeline.reporting.summary import summarise

pytestmark = pytest.mark.slow


def drawn(runs) -> dict:
    """Panels of the plots that have any."""
    found = {plot.name: plot.draw(runs) for plot in PLOTS}
    return {name: panels for name, panels in found.items() if panels}


def axes_of(panels) -> list:
    return wide(panels).axes


def has_ink(panels) -> bool:
    canvas = FigureCanvasAgg(wide(panels))
    canvas.draw()
    return len(np.unique(np.asarray(canvas.buffer_rgba())[..., :3].reshape(-1, 3), axis=0)) > 20


@pytest.fixture
def two_runs(make_run):
    return [read_run(make_run("a", score_every=4)), read_run(make_run("b", method="random"))]


def test_two_runs_give_all_figures(two_runs):
    figures = drawn(two_runs)
    assert figures.keys() == {plot.name for plot in PLOTS}
    for name, panels in figures.items():
        assert has_ink(panels), name


def test_unknown_damage_leaves_out_the_damage_figure_and_its_panel(make_run):
    known, unknown = drawn([read_run(make_run("a"))]), drawn([read_run(make_run("b", damage=False))])
    assert "damage" in known and "damage" not in unknown
    assert len(unknown["weights"]) == len(known["weights"]) - 1


def test_run_that_scores_nothing_has_no_weights_and_no_alignment(make_run):
    figures = drawn([read_run(make_run("a", method="random"))])
    assert (
        not {"weights", "alignment"} & figures.keys() and {"losses", "sources", "seconds"} <= figures.keys()
    )


def test_enrichment_is_drawn_from_the_steps_that_score(make_run):
    run = read_run(make_run("a", score_every=4))
    scored = run.steps[run.steps["scored"] == 1]
    cosines, correlation, share = axes_of(drawn([run])["proposal"])
    ours, random = (
        next(line for line in cosines.lines if line.get_label() == label)
        for label in ("filter_then_weight", "taken at random")
    )
    assert ours.get_xdata().tolist() == random.get_xdata().tolist() == scored["step"].tolist()
    assert ours.get_ydata() == pytest.approx(scored["cosine_of_proposed"])
    assert random.get_ydata() == pytest.approx(scored["cosine_of_explored"])
    assert correlation.lines[0].get_ydata() == pytest.approx(scored["predicted_correlation"])
    assert share.lines[0].get_ydata()[-1] == pytest.approx(len(scored) / len(run.steps))


def test_runs_that_predict_nothing_have_no_figure_of_proposals(make_run):
    assert "proposal" not in drawn([read_run(make_run("a")), read_run(make_run("b", method="random"))])


def test_weights_are_those_of_scored_steps_and_times_of_both_kinds_of_steps_are_told_apart(make_run):
    run = read_run(make_run("a", score_every=4))
    over_time, *_ = axes_of(drawn([run])["weights"])
    later = run.steps[(run.steps["scored"] == 1) & ~run.steps["warmup"]]
    assert over_time.lines[0].get_xdata().tolist() == later["step"].tolist()
    stages, spent = axes_of(drawn([run])["seconds"])
    rows = [tick.get_text() for tick in stages.get_yticklabels()]
    assert rows == ["filter_then_weight", "\u2026 scored steps", "\u2026 other steps"]
    widths = [sum(bars.patches[row].get_width() for bars in stages.containers) for row in range(3)]
    means = [run.steps["seconds_total"].mean() + 3.0 / 30] + [
        run.steps.loc[run.steps["scored"] == value, "seconds_total"].mean() for value in (1, 0)
    ]
    assert widths == pytest.approx(means)
    assert spent.lines[0].get_ydata()[-1] == pytest.approx(summarise([run])[0].selection_share)


@pytest.mark.parametrize("num_steps, evaluations", [(1, []), (2, [(0, 2.0)]), (3, [(0, 2.0)])])
def test_few_points_and_all_warmup_are_drawn(make_run, num_steps, evaluations):
    for panels in drawn([read_run(make_run("a", num_steps=num_steps, evaluations=evaluations))]).values():
        assert has_ink(panels)


def test_every_source_has_a_panel_of_its_share_over_time_and_the_many_are_gathered(make_run):
    run = read_run(make_run("a", num_steps=12))
    axes = axes_of(drawn([run])["sources_over_time"])
    assert [axis.get_title() for axis in axes] == ["\u25b8 math", "chat", "code"]
    (curve,) = [line for line in axes[0].lines if line.get_label() == "filter_then_weight"]
    assert curve.get_ydata() == pytest.approx((run.kept["source"] == "math").groupby(run.kept["step"]).mean())
    (expected,) = [line for line in axes[0].lines if line.get_label() == "share of the pool"]
    assert expected.get_ydata() == pytest.approx([0.4, 0.4])
    run.pool["by_source"] = {f"source {n}": 1 + n for n in range(40)}
    (axis,) = axes_of(drawn([run])["sources"])
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    assert len(names) == 12 and names[-1].endswith("others")
    assert [panel.title for panel in drawn([run])["sources_over_time"]][-1] == "32 other sources"


def test_a_method_has_the_same_colour_in_every_figure(two_runs):
    figures = drawn(two_runs)
    line = next(line for line in axes_of(figures["losses"])[0].lines if line.get_label() == "random")
    bar = next(bars for bars in axes_of(figures["sources"])[0].containers if bars.get_label() == "random")
    assert line.get_color() == COLOURS["random"]
    assert bar.patches[0].get_facecolor()[:3] == pytest.approx(
        [int(COLOURS["random"][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    )


def test_long_curves_are_thinned_and_keep_their_ends(make_run):
    run = read_run(make_run("a", num_steps=5 * MANY, evaluations=[]))
    (curve,) = axes_of(drawn([run])["losses"])[0].lines
    assert len(curve.get_xdata()) == MANY and (curve.get_xdata()[0], curve.get_xdata()[-1]) == (
        0,
        5 * MANY - 1,
    )


@pytest.mark.parametrize(
    "name",
    ["cost_$_{of", "</svg><script>alert(1)</script>", "\x00\ud800\u202e", "\u0645\u0631\u062d\u0628\u0627"],
)
def test_hostile_names_are_text_in_a_picture(name):
    panel = Panel(
        "t", lambda axis: axis.plot([0, 1], [0, 1], label=name) and axis.set_yticks([0], [short(name)])
    )
    for picture in pictures([panel], "t"):
        assert "<script" not in picture.svg and "\0" not in picture.svg and picture.svg.count("</svg>") == 1
        picture.svg.encode("utf-8")


def test_a_picture_takes_the_page_s_ink_and_text_of_12_pixels_and_refers_to_nothing_outside():
    (legend, picture) = pictures(
        [Panel("t", lambda axis: axis.plot([0, 1], [0.123456, 1], label="a curve"))], "t"
    )
    for svg in (legend.svg, picture.svg):
        sizes = [float(size) for size in re.findall(r"font(?:-size)?: ?([\d.]+)px", svg)]
        # In a picture of 268.6 points that a page shows 358 pixels wide.
        assert sizes and min(sizes) * 358 / (3.73 * 72) >= 12
        assert "<style" not in svg and "currentColor" in svg and INK not in svg
        assert not re.search(r'href="(?!#)', svg) and "http" not in svg
