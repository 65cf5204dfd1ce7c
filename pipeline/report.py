"""Report on one or several runs: a table here, and report.html, figures/*.png and summary.json in a folder.

python -m pipeline.report RUN [RUN ...] [--output FOLDER] [--screenshot FILE.png [--width 390]] [--json]
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Optional

from pipeline.data.texts import pool_texts
from pipeline.reporting import browser
from pipeline.reporting.equal_time import against_random
from pipeline.reporting.figures import PLOTS
from pipeline.reporting.pictures import png
from pipeline.reporting.records import ENCODING, Run, read_run
from pipeline.reporting.run_page import panels, write_run_page
from pipeline.reporting.summary import Summary, summarise, table
from pipeline.reporting.verdict import main_run, verdict


def main(arguments: Optional[list[str]] = None) -> int:
    options = parse(arguments)
    try:
        runs = [read_run(folder) for folder in options.runs]
        summaries = summarise(runs)
        table(summaries)
        report = write(
            runs,
            summaries,
            options.output or Path(os.path.commonpath([str(run.folder) for run in runs]) or "."),
        )
        print(verdict(runs, summaries))
        print(f"Report: {report}")
        if options.screenshot:
            browser.screenshot(report, options.screenshot, options.width)
            print(f"Screenshot, {options.width} pixels wide: {options.screenshot}")
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(headline(runs, summaries, report, options.seconds_since), allow_nan=False))
    return 0


def parse(arguments: Optional[list[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipeline.report", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where the report goes; default: the runs' common folder",
    )
    parser.add_argument(
        "--screenshot", type=Path, metavar="FILE.png", help="what headless Chromium makes of the page"
    )
    parser.add_argument(
        "--width",
        type=int,
        default=390,
        metavar="PIXELS",
        help="width of the screenshot; default: a telephone's 390",
    )
    parser.add_argument(
        "--json", action="store_true", help="end the output with one line of JSON, for programs"
    )
    parser.add_argument(
        "--seconds-since", type=float, metavar="EPOCH_SECONDS", help="start of it all (date +%%s), for --json"
    )
    options = parser.parse_args(arguments)
    if not 200 <= options.width <= 4000:
        parser.error(f"--width is {options.width}: a page is 200 to 4000 pixels wide")
    return options


def write(runs: list[Run], summaries: list[Summary], output: Path) -> Path:
    """Path of the page, after writing all files of the report."""
    folder, drawn = output / "figures", panels(runs)
    folder.mkdir(parents=True, exist_ok=True)
    for plot in PLOTS:  # those of an earlier report that these runs do not have must not stay
        (folder / f"{plot.name}.png").unlink(missing_ok=True)
    for plot, own in drawn:
        (folder / f"{plot.name}.png").write_bytes(png(own))
    text = json.dumps([asdict(s) for s in summaries], indent=2, allow_nan=False)
    (output / "summary.json").write_text(text + "\n", **ENCODING)
    texts, problem = pool_texts([(run.config.get("data") or {}, run.pool.get("file_bytes")) for run in runs])
    write_run_page(output / "report.html", runs, summaries, drawn, texts, problem)
    return output / "report.html"


def headline(runs: list[Run], summaries: list[Summary], report: Path, since: Optional[float]) -> dict:
    """The result as one object: the held-out loss of every run, and of filter_then_weight (without it of the
    first run) the share of damaged samples that it kept and its price against random's run."""
    mine = main_run(summaries)
    return {
        "run": mine.folder,
        "report": str(report),
        "loss": {**{s.label: s.loss_after for s in summaries}, "before": mine.loss_before},
        "damaged": {"pool": mine.damaged_pool, "kept": mine.damaged_kept},
        **against_random(runs[summaries.index(mine)], runs),
        "seconds": None if since is None else round(time.time() - since, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
