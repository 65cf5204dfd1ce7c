"""python -m pipeline.report: its files, its page, its last line, and the page in a browser."""

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from PIL import Image, ImageChops

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


def test_report_of_a_run_that_scores_rarely_says_what_its_proposal_was_worth(make_run, tmp_path):
    runs = [make_run("a", score_every=4), make_run("b", method="random")]
    assert main([*map(str, runs), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/figures/proposal.png").stat().st_size > 5000
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    for words in ("What the proposal is worth", "So the proposal helps.", "Most trained on", "one-off"):
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
    # 2 warm-up steps of 1.05 s and 28 of 2 s, against 30 of 1.05 s; two thirds of the way down at 20 steps.
    price = (2 * 1.05 + 28 * 2) / (30 * 1.05)
    assert result["step_price"] == pytest.approx(price)
    assert result["time_to_random"] == pytest.approx(price * 2 / 3)


def test_single_run_without_evaluations_is_reported_in_its_own_folder(make_run, capsys):
    run = make_run("a", evaluations=[], damage=False)
    assert main([str(run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["loss"] == {"filter_then_weight": None, "before": None}
    assert result["damaged"] == {"pool": None, "kept": None} and result["seconds"] is None
    assert result["step_price"] is result["time_to_random"] is None
    assert (run / "report.html").is_file() and not (run / "figures/damage.png").exists()


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    """A report in which sources, ids, texts, damage, file names, warnings and settings are HOSTILE, and a
    secret is in the environment."""
    from tests.reporting.conftest import write_run

    folder = tmp_path_factory.mktemp("hostile") / "a<b>&'"
    run = write_run(folder, num_steps=60, extra_source=HOSTILE[0], score_every=4)
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


SCROLL_WIDTH = "document.documentElement.scrollWidth"
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


@contextmanager
def chromium() -> Iterator:
    """The installed Chromium, steered by Playwright, which has none of its own."""
    reason = "playwright is not installed (requirements-test.txt)"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser.find())
        yield started
        started.close()


def opened(started, page: Path, width: int, color_scheme: str = "light"):
    """A page as a device of ``width`` pixels shows it, the addresses it asks for, what its console hears."""
    context = started.new_context(
        viewport={"width": width, "height": 844}, is_mobile=width < 600, color_scheme=color_scheme
    )
    shown, requests, heard = context.new_page(), [], []
    shown.on("request", lambda request: requests.append(request.url))
    shown.on("console", lambda message: heard.append(message.text))
    shown.on("pageerror", lambda error: heard.append(str(error)))
    shown.goto(page.resolve().as_uri())
    return shown, requests, heard


@needs_browser
def test_the_page_fits_a_telephone_and_loads_and_runs_nothing(hostile_page):
    with chromium() as started:
        for width in (390, 1200):
            shown, requests, heard = opened(started, hostile_page, width)
            assert requests == [hostile_page.resolve().as_uri()] and heard == []
            assert shown.evaluate(SCROLL_WIDTH) == width, "the page scrolls sideways"
            assert shown.evaluate("document.scripts.length + document.images.length") == 0
            assert shown.evaluate(SMALLEST_TEXT) >= 12
        light = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        shown, _, _ = opened(started, hostile_page, 390, "dark")
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") != light


@needs_browser
def test_what_a_page_asks_for_is_seen(tmp_path):
    """The test above would notice a picture that is nowhere, a script that fails and a paragraph too wide."""
    page, picture = tmp_path / "page.html", (tmp_path / "none.png").as_uri()
    page.write_text(
        "<meta name='viewport' content='width=device-width'><p style='width: 999px'>"
        f"<img src='{picture}'><script>console.log('a'); undefined.b</script>"
    )
    with chromium() as started:
        shown, requests, heard = opened(started, page, 390)
        assert requests == [page.as_uri(), picture]
        assert len(heard) == 3, heard
        assert shown.evaluate(SCROLL_WIDTH) >= 999


@needs_browser
def test_a_screenshot_shows_the_whole_page_at_its_width(make_run, tmp_path, capsys):
    picture = tmp_path / "new/phone.png"
    assert main([str(make_run("a", num_steps=6)), "--screenshot", str(picture), "--width", "412"]) == 0
    assert str(picture) in capsys.readouterr().out
    with Image.open(picture) as shown:
        ground = Image.new("RGB", shown.size, "white")
        left, top, right, bottom = ImageChops.difference(shown.convert("RGB"), ground).getbbox()
    assert shown.width == 412 and 3000 < shown.height < browser.MAX_HEIGHT
    assert right + left == pytest.approx(412, abs=2), "the page was laid out for another width"
    assert shown.height - bottom == top, "the picture ends too early or too late"


@needs_browser
def test_a_screenshot_ends_at_the_height_that_chromium_can_draw(tmp_path):
    (tmp_path / "page.html").write_text("<body style='margin: 20px'>top<p style='height: 20000px'><p>end")
    browser.screenshot(tmp_path / "page.html", tmp_path / "page.png", 300)
    with Image.open(tmp_path / "page.png") as shown:
        assert shown.width == 300 and shown.height <= browser.MAX_HEIGHT


def test_a_browser_that_hangs_or_fails_is_ended_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(browser, "TIMEOUT_SECONDS", 2)
    program, pid, finished = (tmp_path / name for name in ("chromium", "pid", "finished"))
    hang = f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(30); open({str(finished)!r}, 'w')"
    for code in (hang, "sys.exit(1)", "sys.exit(0)"):
        program.write_text(f"#!{sys.executable} -S\nimport os, sys, time\n{code}\n")
        program.chmod(0o755)
        with pytest.raises(RuntimeError, match=r"was ended after 2 s.*open it in any browser instead"):
            browser.screenshot(tmp_path / "page.html", tmp_path / "page.png", 390)
    assert not finished.exists() and not psutil.pid_exists(int(pid.read_text()))
    assert not (tmp_path / "page.png").exists()


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
