"""Pages lead where they say: files and headings that they link to, and settings that they name, are there."""

import re
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from pipeline.config import Config, build_parser, parse_with
from pipeline.plan import plan_parser
from pipeline.planning import hardware
from pipeline.planning.planned_run import plan_run

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"`([a-z]+)\.(\w+)(?:[:= ][^`]*)?`")
SECTIONS = {f.name: {own.name for own in fields(f.type)} for f in fields(Config) if is_dataclass(f.type)}


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Ends of links to headings, as GitHub makes them: letters, digits, _ and - stay, spaces become -, a
    second of a kind gets -1."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = base = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        number = 0
        while anchor in found:
            number += 1
            anchor = f"{base}-{number}"
        found.add(anchor)
    return found | set(re.findall(r'<a id="([^"]+)"', page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(page):
    broken = []
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if (
            not target.exists()
            or not target.is_relative_to(ROOT)
            or (anchor and anchor not in anchors(target))
        ):
            broken.append(link)
    assert not broken, f"{named(page)}: {broken}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_setting_that_a_page_names_exists(page):
    wrong = [
        f"{section}.{name}"
        for section, name in NAMED.findall(page.read_text())
        if section in SECTIONS and name not in SECTIONS[section] | {"py", "md"}
    ]
    assert not wrong, f"{named(page)}: {wrong}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_formula_goes_over_the_end_of_a_line(page):
    """GitHub would show its source."""
    broken = [line for line in prose(page).splitlines() if re.sub(r"`[^`]*`", "", line).count("$") % 2]
    assert not broken


def test_every_page_is_reached_from_the_readme():
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(prose(ROOT / "README.md"))}
    assert not [named(page) for page in PAGES[1:] if page not in linked]


def test_the_page_on_installing_has_every_command():
    declared = re.findall(r"^(ftw-\w+) = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    shown = re.findall(r"^\| `(ftw-\w+)` \|", (ROOT / "docs" / "installing.md").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(declared)


def test_links_that_lead_nowhere_are_found(tmp_path):
    """The checks above can fail."""
    (tmp_path / "a.md").write_text("# One, two\n## One two\n## `x.y`: [z](b.md)\n```\n# no heading\n```\n")
    assert anchors(tmp_path / "a.md") == {"one-two", "one-two-1", "xy-z"}
    assert LINK.findall("[a](b.md#c) ![d](e.png) [f] (g)") == ["b.md#c", "e.png"]
    assert NAMED.findall("`data.pool` `run.folder: x` `a.b.c` `selection.ridge = 1`") == [
        ("data", "pool"),
        ("run", "folder"),
        ("selection", "ridge"),
    ]


TRAIN = (
    "bash launch/train.sh --config launch/recipes/",
    "sbatch launch/slurm/train.sbatch --config launch/recipes/",
)


def commands(*starts: str) -> list[tuple[str, str]]:
    """Those of pages that name a recipe of this repository; the tutorial's are run by a test of their own."""
    return [
        (named(page), line)
        for page in PAGES
        if page.name != "tutorial.md"
        for block in re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith(starts)
    ]


@pytest.mark.parametrize("page, command", commands(*TRAIN))
def test_a_command_with_a_recipe_has_settings_that_fit_together(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    parse_with(build_parser(""), words[words.index("--config") :], needs_data=False)


@pytest.mark.parametrize(
    "page, command",
    [
        *commands("python -m pipeline.plan "),
        ("pipeline/plan.py", (ROOT / "pipeline/plan.py").read_text().split("\n")[2].partition(" [")[0]),
    ],
)
def test_a_plan_that_is_shown_is_one_of_a_run_that_divides(page, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    config, options = parse_with(plan_parser(), shlex.split(command)[3:], needs_data=False)
    plan_run(config, hardware.find(options.hardware), options.world_size, options.tokens)
