"""docs/report.md explains everything that a report can say: fields, columns, figures, incidents, warnings."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

from pipeline.reporting import incidents, records
from pipeline.reporting.figures import PLOTS
from pipeline.reporting.summary import Summary, columns
from pipeline.training import guards

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "report.md").read_text()


def part(heading: str) -> str:
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def first_cells(text: str) -> list[str]:
    return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]


def tree(module) -> ast.Module:
    return ast.parse(Path(module.__file__).read_text())


def literals(*files: str) -> list[str]:
    """Pieces of text in the code; a text of several lines is one."""
    found = []
    for file in files:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize(
    "field",
    sorted(
        {
            name
            for required, optional in (records.STEPS, records.KEPT, records.PASSED, records.EVALUATIONS)
            for name in required + optional
        }
        | set(records.SECONDS)
    ),
)
def test_every_field_of_a_record_is_explained(field):
    assert f"`{field}`" in part("Records")


def test_every_kind_of_incident_has_a_row_and_no_other():
    kinds = {
        node.args[1].value
        for node in ast.walk(tree(incidents))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Incident"
    }
    rows = re.findall(r"`([^`]+)`", "\n".join(first_cells(part("Warnings and fallbacks"))))
    assert set(rows) == kinds and len(kinds) > 5


def test_every_warning_has_a_row_with_words_of_its_own():
    """One for each check of the watch, and for each that a look brings."""
    quoted = [
        cell[1:-1] for cell in first_cells(part("Warnings and fallbacks")) if re.fullmatch(r"\*[^*]+\*", cell)
    ]
    looks = ("pipeline/step/retries.py", "pipeline/step/chooser.py")
    texts = literals("pipeline/training/guards.py", *looks)
    assert not [words for words in quoted if not any(words in text for text in texts)]
    watch = next(
        node for node in tree(guards).body if isinstance(node, ast.ClassDef) and node.name == "Watch"
    )
    checks = {
        node.func.attr
        for node in ast.walk(watch)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr.startswith("_")
    }
    said_of_looks = sum((ROOT / file).read_text().count('f"WARNING at step') for file in looks)
    assert len(quoted) == len(checks) + said_of_looks and said_of_looks == 2


def test_every_sentence_of_the_verdict_that_it_quotes_is_there():
    quoted = [
        words for cell in first_cells(part("The verdict")) for words in re.findall(r"\*([^*]+)\*", cell)
    ]
    texts = literals("pipeline/reporting/verdict.py")
    assert len(quoted) > 4 and not [words for words in quoted if not any(words in text for text in texts)]


def test_every_column_and_every_figure_is_explained():
    filled = Summary(**{field.name: 0.5 for field in fields(Summary)})
    table = ", ".join(first_cells(part("In numbers")))
    assert not [heading for heading, _ in columns([filled]) if heading.replace("\n", " ") not in table]
    figures = part("Figures")
    assert not [plot.title for plot in PLOTS if f"**{plot.title}**" not in figures]
