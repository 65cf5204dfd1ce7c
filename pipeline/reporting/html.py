"""Writing of a page as one HTML file that can be sent to somebody.

Nothing is loaded from outside, and nothing runs in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import yaml
from markupsafe import Markup

from pipeline.reporting.pictures import Picture
from pipeline.reporting.visible import visible
from pipeline.settings import without_secrets

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
  :root {
    --ink: #1d2026; --soft: #5b616b; --line: #d9dce1; --ground: #ffffff; --box: #f4f5f7; --mark: #0072b2;
  }
  @media (prefers-color-scheme: dark) {
    :root {
      --ink: #e6e8eb; --soft: #a2a8b2; --line: #3a3f47; --ground: #15171a; --box: #20242a; --mark: #56b4e9;
    }
  }
  * { box-sizing: border-box; }
  body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
         max-width: 1160px; margin: 0 auto; padding: 1em 16px 4em; overflow-wrap: anywhere;
         -webkit-text-size-adjust: 100%; }
  h1 { font-size: 1.35em; line-height: 1.25; margin: .6em 0; }
  h2 { font-size: 1.15em; margin: 2.2em 0 .5em; border-bottom: 1px solid var(--line); padding-bottom: .2em; }
  p { margin: .5em 0; }
  .verdict { font-size: 1.12em; border-left: 4px solid var(--mark); padding: .1em 0 .1em .8em;
             margin: 1em 0; }
  .note, figcaption { color: var(--soft); font-size: .9em; }
  .wide { overflow-x: auto; max-width: 100%; margin: .6em 0; }
  table { border-collapse: collapse; font-size: .88em; }
  th, td { padding: .3em .7em; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top;
           overflow-wrap: normal; }
  th { vertical-align: bottom; color: var(--soft); font-weight: 600; white-space: pre; }
  .numbers td + td, .numbers th + th { text-align: right; white-space: pre; }
  td.short { white-space: pre; }
  td.text { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 15em; max-width: 38em; }
  td.word { overflow-wrap: anywhere; min-width: 8em; max-width: 14em; }
  .panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr));
            gap: 1.2em 1.4em; margin-top: .8em; }
  .legend { max-width: 358px; margin: .8em 0 0; }
  figure { margin: 0; max-width: 480px; } figcaption { margin-bottom: .2em; }
  svg { display: block; width: 100%; height: auto; } svg * { stroke-linejoin: round; stroke-linecap: butt; }
  details { margin: .5em 0; } summary { cursor: pointer; }
  pre { background: var(--box); padding: .8em; overflow-x: auto; font-size: .8em; overflow-wrap: normal; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="verdict">{{ verdict }}</p>
{% for line in lead %}
<p class="note">{{ line }}</p>
{% endfor %}
{% for section in sections %}

<h2>{{ section.title }}</h2>
{% if section.look_at %}
<p class="note">What to look at: {{ section.look_at }}</p>
{% endif %}
{% for line in section.notes %}
<p{% if section.tables %} class="note"{% endif %}>{{ line }}</p>
{% endfor %}
{% for table in section.tables %}
{% if table.title %}
<p>{{ table.title }}</p>
{% endif %}
<div class="wide" tabindex="0"><table{% if table.kinds is none %} class="numbers"{% endif %}>
<tr>{% for heading in table.headings %}<th>{{ heading }}</th>{% endfor %}</tr>
{% for cells in table.rows %}
<tr>
{% for cell in cells %}
<td{% if table.kinds %} class="{{ table.kinds[loop.index0] }}"{% endif %}><bdi>{{ cell }}</bdi></td>
{% endfor %}
</tr>
{% endfor %}
</table></div>
{% endfor %}
{% if section.pictures %}
{% if not section.pictures[0].title %}
<div class="legend">{{ section.pictures[0].svg }}</div>
{% endif %}
<div class="panels">
{% for picture in section.pictures if picture.title %}
<figure><figcaption>{{ picture.title }}</figcaption>{{ picture.svg }}</figure>
{% endfor %}
</div>
{% endif %}
{% endfor %}

<h2>Configuration and environment</h2>
{% for label, texts in details %}
<details><summary>{{ label }}</summary>{% for text in texts %}<pre>{{ text }}</pre>{% endfor %}</details>
{% endfor %}
</body>
</html>
"""


@dataclass(frozen=True)
class Table:
    """Rows of text under headings."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    """Cells row by row, as many in each as there are headings."""
    kinds: Sequence[str] | None = None
    """One a column: 'short', or 'word' and 'text' for what may be long. None: the first column holds names,
    the others numbers."""
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it: any of notes, tables and pictures."""

    title: str
    look_at: str = ""
    """One line: what a reader learns here."""
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()


def write_page(
    path: Path,
    title: str,
    verdict: str,
    lead: list[str],
    sections: list[Section],
    details: list[tuple[str, list[str]]],
) -> None:
    """Write a page.

    Args:
        verdict: what has come out, in a sentence or two.
        lead: lines under the verdict.
        details: (label, texts): texts that a reader unfolds by their label.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Sources, texts and settings come from users' files: all that is put in is made visible, and escaped.
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
    )
    page = environment.from_string(TEMPLATE).render(
        title=title, verdict=verdict, lead=lead, sections=sections, details=details
    )
    path.write_text(page, encoding="utf-8")


def yaml_text(value: dict) -> str:
    """YAML of ``value`` without the secrets among its settings, fit for a page."""
    return yaml.safe_dump(without_secrets(value), sort_keys=False, allow_unicode=True)
