"""python -m pipeline.report: its files, its page, its last line."""

import json
import re
import time

import pytest

from pipeline.report import main
from pipeline.reporting.html import differing_settings
from pipeline.reporting.records import read_run

HOSTILE = "<script>alert('x')</script>"


def test_report_of_two_runs_writes_page_figures_and_summary(make_run, tmp_path, capsys):
    runs = [make_run("a"), make_run("b", method="random")]
    assert main([*map(str, runs), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    figures = sorted((tmp_path / "out/figures").glob("*.png"))
    assert len(figures) == 6 and all(file.stat().st_size > 5000 for file in figures)
    assert page.count("data:image/png;base64,") == 6
    assert not re.search(r"""(src|href)=["'](?!data:)""", page), "the page loads something from outside"
    assert [s["method"] for s in json.loads((tmp_path / "out/summary.json").read_text())] == ["filter_then_weight", "random"]
    assert str(tmp_path / "out/report.html") in capsys.readouterr().out


def test_json_line_is_last_and_holds_the_result(make_run, tmp_path, capsys):
    runs = [make_run("b", method="random", evaluations=[(0, 3.0), (30, 2.0)]), make_run("a", evaluations=[(0, 3.0), (30, 1.5)])]
    since = str(time.time() - 100)
    assert main([*map(str, runs), "--output", str(tmp_path), "--json", "--seconds-since", since]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["run"] == str(runs[1])
    assert result["report"] == str(tmp_path / "report.html")
    assert result["loss"] == {"filter_then_weight": 1.5, "random": 2.0, "before": 3.0}
    assert result["damaged"]["pool"] == pytest.approx(0.3) and 0 < result["damaged"]["kept"] < 0.2
    assert 100 <= result["seconds"] < 160


def test_single_run_without_evaluations_is_reported_in_its_own_folder(make_run, capsys):
    run = make_run("a", evaluations=[], damage=False)
    assert main([str(run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["loss"] == {"filter_then_weight": None, "before": None}
    assert result["damaged"] == {"pool": None, "kept": None} and result["seconds"] is None
    assert (run / "report.html").is_file() and not (run / "figures/damage.png").exists()


def test_figure_of_an_earlier_report_does_not_stay(make_run, tmp_path, capsys):
    main([str(make_run("a")), "--output", str(tmp_path)])
    assert (tmp_path / "figures/weights.png").exists()
    main([str(make_run("b", method="random")), "--output", str(tmp_path)])
    assert not (tmp_path / "figures/weights.png").exists()


def test_warnings_of_the_steps_stand_on_the_page_and_below_the_table(make_run, tmp_path, capsys):
    run = make_run("a")
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    for line in lines[3:28]:
        line["warnings"] = [f"WARNING after step {line['step']}: its weights < 1"]
    (run / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([str(run), str(make_run("b", method="random")), "--output", str(tmp_path)]) == 0
    page, printed = (tmp_path / "report.html").read_text(encoding="utf-8"), " ".join(capsys.readouterr().out.split())
    assert "<h2>Warnings</h2>" in page and page.count("its weights &lt; 1</td>") == 20
    assert "filter_then_weight: its last 20 of 25" in page and "after step 8:" in page and "after step 7:" not in page
    assert "filter_then_weight: 25 warning(s), the last: WARNING after step 27: its weights < 1" in printed
    assert len(json.loads((tmp_path / "summary.json").read_text())[0]["warnings"]) == 25
    main([str(run.parent / "b"), "--output", str(tmp_path)])
    assert "Warnings" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_data_cannot_inject_markup_into_the_page(make_run, capsys):
    run = make_run("a", extra_source=HOSTILE)
    (run / "config.yaml").write_text(f'selection: {{method: filter_then_weight}}\ndata: {{pool: ["{HOSTILE}"]}}\n')
    (run / "environment.json").write_text(json.dumps({"machine": HOSTILE}))
    assert main([str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 2


def test_settings_that_differ_are_shown_and_others_are_not(make_run):
    runs = [read_run(make_run("a", seed=0)), read_run(make_run("b", seed=3, method="random"))]
    assert differing_settings(runs) == {"selection.method": ["filter_then_weight", "random"], "run.seed": ["0", "3"]}


def test_broken_run_ends_with_code_2_and_one_sentence(make_run, capsys):
    run = make_run("a")
    with open(run / "kept.jsonl", "a") as file:
        file.write('{"step": 30, "id"')
    assert main([str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "kept.jsonl:241: " in error and "Traceback" not in error
