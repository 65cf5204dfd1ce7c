"""python -m pipeline.report: its files, its page, its last line, and the page in a browser."""

import json
import re
import struct
import time

import pytest
import yaml

from pipeline.report import main
from pipeline.reporting import browser
from pipeline.reporting.records import read_run
from pipeline.reporting.run_page import differing_settings

pytestmark = pytest.mark.slow
HOSTILE = [
    "<script>alert('x')</script>",
    "</script></style></svg><img src=http://127.0.0.1:9/x onerror=alert(1)>",
    "\"'><b>bold</b>",
    "nul \x00 here",
    "half \ud800 pair",
    "W" * 3000,
    "\u202eright to left\u202c \u0645\u0631\u062d\u0628\u0627",
    "{{ 7 * 7 }} {% raw %}",
    "-->]]>&amp;",
    "cost $_{of",
]
needs_browser = pytest.mark.skipif(
    browser.find() is None, reason=f"none of {', '.join(browser.NAMES)} is installed"
)


def test_report_of_two_runs_writes_page_figures_and_summary(make_run, tmp_path, capsys):
    runs = [make_run("a"), make_run("b", method="random")]
    (tmp_path / "out/figures").mkdir(parents=True)
    (tmp_path / "out/figures/damage.png").write_bytes(b"of an earlier report")
    assert main([*map(str, runs), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    figures = {file.stem: file.stat().st_size for file in (tmp_path / "out/figures").glob("*.png")}
    assert len(figures) == 8 and min(figures.values()) > 5000
    assert page.count("<svg") > 15
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page), "the page loads something from outside"
    assert "<script" not in page and len(page) < 1_000_000
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [s["method"] for s in summary] == ["filter_then_weight", "random"]
    printed = capsys.readouterr().out
    assert (
        str(tmp_path / "out/report.html") in printed and "held-out loss of filter_then_weight is" in printed
    )
    for words in (
        "WARNING after step 9: raise selection.ridge",
        "fallback",
        "Most kept",
        "Least kept",
        "Kept share by source over time",
    ):
        assert words in page, words


def test_json_line_is_last_and_holds_the_result(make_run, tmp_path, capsys):
    runs = [
        make_run("b", method="random", evaluations=[(0, 3.0), (30, 2.0)]),
        make_run("a", evaluations=[(0, 3.0), (30, 1.5)]),
    ]
    since = str(time.time() - 100)
    assert main([*map(str, runs), "--output", str(tmp_path), "--json", "--seconds-since", since]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["run"] == str(runs[1])
    assert result["report"] == str(tmp_path / "report.html")
    assert result["loss"] == {"filter_then_weight": 1.5, "random": 2.0, "before": 3.0}
    assert result["damaged"]["pool"] == pytest.approx(0.3) and 0 < result["damaged"]["kept"] < 0.2
    assert 100 <= result["seconds"] < 1000


def test_single_run_without_evaluations_is_reported_in_its_own_folder(make_run, capsys):
    run = make_run("a", evaluations=[], damage=False)
    assert main([str(run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["loss"] == {"filter_then_weight": None, "before": None}
    assert result["damaged"] == {"pool": None, "kept": None} and result["seconds"] is None
    assert (run / "report.html").is_file() and not (run / "figures/damage.png").exists()


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    """A report in which sources, ids, texts, damage, file names, warnings and settings are HOSTILE, and a
    secret is in the environment."""
    from tests.reporting.conftest import write_run

    folder = tmp_path_factory.mktemp("hostile") / "a<b>&'"
    run = write_run(folder, num_steps=60, extra_source=HOSTILE[0])
    kept = [json.loads(line) for line in (run / "kept.jsonl").read_text().splitlines()]
    for number, line in enumerate(kept):
        line |= {
            "id": HOSTILE[number % len(HOSTILE)] + str(number % 50),
            "source": HOSTILE[number % 7],
            "damage": HOSTILE[number % 5],
        }
    pool = folder / "<i>pool.jsonl"
    rows = [
        {"id": line["id"], "source": "s", "prompt": HOSTILE[i % 4], "completion": HOSTILE[5 + i % 5]}
        for i, line in enumerate(kept[:50])
    ]
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "kept.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    steps = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    for line in steps:
        line["warnings"], line["dropped"] = [HOSTILE[line["step"] % len(HOSTILE)]], HOSTILE
    (run / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    config = {
        "selection": {"method": "filter_then_weight"},
        "data": {"pool": [str(pool)]},
        "model": {"name": "https://me:s3cr3t-in-url@hub/x"},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"more": HOSTILE[:4] + HOSTILE[5:]}))
    (run / "environment.json").write_text(
        json.dumps({"machine": HOSTILE, "found": "value-of-the-token-1234"})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_API_TOKEN", "value-of-the-token-1234")
        assert main([str(run)]) == 0
    return run / "report.html"


def test_data_cannot_inject_markup_or_secrets_into_the_page(hostile_page):
    page = hostile_page.read_text(encoding="utf-8")
    assert not re.search(r"<(script|img|b|i)\b", page) and page.count("&lt;script&gt;") >= 3
    assert page.count("</style>") == page.count("<style>") and page.count("</svg>") == page.count("<svg")
    assert (
        not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", page)
        and "\\u202e" in page
        and "\\ud800" in page
        and "\\x00" in page
    )
    assert "{{ 7 * 7 }}" in page
    assert "value-of-the-token" not in page and "s3cr3t" not in page and "[hidden]" in page


SMALLEST_TEXT = """(() => {
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walk.nextNode()) {
    const parent = walk.currentNode.parentElement, picture = parent.closest('svg');
    if (!walk.currentNode.data.trim() || !parent.getClientRects().length) continue;
    const scale = picture ? picture.getBoundingClientRect().width / picture.viewBox.baseVal.width : 1;
    found.push(parseFloat(getComputedStyle(parent).fontSize) * scale);
  }
  return Math.min(...found);
})()"""


@needs_browser
def test_the_page_fits_a_telephone_and_loads_and_runs_nothing(hostile_page):
    with browser.browser() as chromium:
        for width in (390, 1200):
            chromium.open(hostile_page, width)
            assert chromium.requests == [hostile_page.resolve().as_uri()] and chromium.errors == []
            assert chromium.evaluate("document.documentElement.scrollWidth") == width, (
                "the page scrolls sideways"
            )
            assert chromium.evaluate("document.scripts.length + document.images.length") == 0
            assert chromium.evaluate(SMALLEST_TEXT) >= 12
        light = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
        chromium.open(hostile_page, 390, dark=True)
        assert chromium.evaluate("getComputedStyle(document.body).backgroundColor") != light


@needs_browser
def test_a_screenshot_shows_the_whole_page_at_its_width(make_run, tmp_path, capsys):
    picture = tmp_path / "new/phone.png"
    assert main([str(make_run("a", num_steps=6)), "--screenshot", str(picture), "--width", "412"]) == 0
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    assert width == 412 and height > 3000 and str(picture) in capsys.readouterr().out


def test_without_a_browser_the_report_is_there_and_the_way_out_is_said(
    make_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PATH", str(tmp_path))
    run = make_run("a", num_steps=4)
    assert main([str(run), "--screenshot", str(tmp_path / "x.png")]) == 2
    assert "apt-get install chromium" in capsys.readouterr().err and (run / "report.html").is_file()


def test_warnings_of_the_steps_are_counted_below_the_table(make_run, tmp_path, capsys):
    run = make_run("a")
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    for line in lines[3:28]:
        line["warnings"] = [f"WARNING after step {line['step']}: its weights < 1"]
    (run / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([str(run), str(make_run("b", method="random")), "--output", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "filter_then_weight: 25 warning(s), the last: WARNING after step 27: its weights < 1" in printed
    assert len(json.loads((tmp_path / "summary.json").read_text())[0]["warnings"]) == 25


def test_settings_that_differ_are_shown_and_others_are_not(make_run):
    runs = [read_run(make_run("a", seed=0)), read_run(make_run("b", seed=3, method="random"))]
    assert differing_settings(runs) == {
        "selection.method": ["filter_then_weight", "random"],
        "run.seed": ["0", "3"],
    }


def test_broken_run_ends_with_code_2_and_one_sentence(make_run, capsys):
    run = make_run("a")
    with open(run / "kept.jsonl", "a") as file:
        file.write('{"step": 30, "id"')
    assert main([str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "kept.jsonl:241: " in error and "Traceback" not in error
