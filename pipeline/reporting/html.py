"""The report as one HTML file that can be sent to somebody: nothing is loaded from outside."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from pipeline.reporting.figures import Plot
from pipeline.reporting.records import Run, labels
from pipeline.reporting.summary import Summary, columns, notes

# Names that always differ between runs and say nothing about them.
BOOKKEEPING = ("run.folder", "run.overwrite")
MOST_WARNINGS = 20  # of a run on the page; steps.jsonl has all

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2em auto; padding: 0 1em; }
  h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd; }
  table { border-collapse: collapse; font-size: .92em; } .wide { overflow-x: auto; }
  th, td { padding: .3em .7em; text-align: left; border-bottom: 1px solid #eee; vertical-align: bottom; }
  td { overflow-wrap: anywhere; } .numbers th { white-space: pre; }
  .numbers td + td, .numbers th + th { text-align: right; white-space: pre; overflow-wrap: normal; }
  img { max-width: 100%; height: auto; } figure { margin: 0; }
  .note { color: #555; margin: .4em 0; } pre { background: #f6f6f4; padding: .8em; overflow-x: auto; font-size: .85em; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for line in lead %}
<p class="note">{{ line }}</p>
{% endfor %}
{% for section in sections %}

<h2>{{ section.title }}</h2>
{% if section.look_at %}
<p class="note">What to look at: {{ section.look_at }}</p>
{% endif %}
{% if section.rows %}
<div class="wide"><table{% if section.has_numbers %} class="numbers"{% endif %}>
<tr>{% for heading in section.headings %}<th>{{ heading }}</th>{% endfor %}</tr>
{% for cells in section.rows %}
<tr>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endif %}
{% for note in section.notes %}
<p class="note">{{ note }}</p>
{% endfor %}
{% if section.png %}
<figure><img alt="{{ section.title }}" src="data:image/png;base64,{{ section.png | base64 }}"></figure>
{% endif %}
{% endfor %}

<h2>All settings and environment</h2>
{% for label, texts in details %}
<details><summary>{{ label }}</summary>{% for text in texts %}<pre>{{ text }}</pre>{% endfor %}</details>
{% endfor %}
</body>
</html>
"""


@dataclass(frozen=True)
class Section:
    """A heading with a table, notes and a figure under it, whichever there are."""

    title: str
    look_at: str = ""
    """One line: what a reader learns here."""
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """Cells of the table, as many a row as there are headings."""
    has_numbers: bool = True
    """All columns but the first are numbers."""
    notes: Sequence[str] = ()
    png: bytes = b""


def write_page(path: Path, title: str, lead: list[str], sections: list[Section], details: list[tuple[str, list[str]]]) -> None:
    """Write a page: lines under the title, sections, and texts to unfold by their label."""
    # Autoescape: sources and settings come from files of users and must not become markup.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["base64"] = lambda png: base64.b64encode(png).decode("ascii")
    page = environment.from_string(TEMPLATE).render(title=title, lead=lead, sections=sections, details=details)
    path.write_text(page, encoding="utf-8")


def write_html(path: Path, runs: list[Run], summaries: list[Summary], figures: list[tuple[Plot, bytes]]) -> None:
    """Write the report; ``figures`` are plots with their PNG files."""
    names, cells, differences = labels(runs), columns(summaries), differing_settings(runs)
    rows = [[name, *(column[row] for _, column in cells)] for row, name in enumerate(names)]
    sections = [Section("In numbers", headings=["run", *(heading for heading, _ in cells)], rows=rows, notes=notes(summaries))]
    warned = [[s.label, text] for s in summaries for text in s.warnings[-MOST_WARNINGS:]]
    if warned:
        left_out = [
            f"{s.label}: its last {MOST_WARNINGS} of {len(s.warnings)}." for s in summaries if len(s.warnings) > MOST_WARNINGS
        ]
        sections.append(Section("Warnings", headings=["run", "said"], rows=warned, has_numbers=False, notes=left_out))
    sections += [Section(plot.title, plot.look_at, png=png) for plot, png in figures]
    if differences:
        rows = [[name, *values] for name, values in differences.items()]
        sections.append(Section("Settings that differ", headings=["setting", *names], rows=rows, has_numbers=False))
    write_page(
        path, "Data selection: " + ", ".join(names), [f"{s.label}: {s.num_steps} steps, {s.folder}" for s in summaries], sections,
        [(name, [yaml_text(run.config), yaml_text(run.environment)]) for name, run in zip(names, runs)],
    )  # fmt: skip


def differing_settings(runs: list[Run]) -> dict[str, list[str]]:
    """Dotted names of the settings in which the runs differ, with the value of each run; '-' where a run has none."""
    flat = [dict(flatten(run.config)) for run in runs]
    names = [name for name in dict.fromkeys(name for settings in flat for name in settings) if name not in BOOKKEEPING]
    values = {name: [str(settings.get(name, "-")) for settings in flat] for name in names}
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def flatten(config: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def yaml_text(value: dict) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
