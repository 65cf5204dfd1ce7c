"""Pictures of panels: side by side in a PNG file, or one by one as SVG, whose text is readable in a page of
any width."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from pipeline.reporting.visible import visible

WIDE, DPI, COLUMNS = 11.0, 110, 3
NARROW = 3.73
"""Inches: 358 CSS pixels, which a telephone of 390 leaves between margins. Where a page has more room, the
picture grows."""
INK = "#010203"
"""A placeholder for the colour of the page's text, which is another one in the dark."""
# 9 points in a picture of NARROW inches are 12 pixels on a telephone: the smallest text that is easy to read.
IN_PAGE: dict[Any, Any] = {
    "font.size": 9.2,
    "axes.labelsize": 9.2,
    "xtick.labelsize": 9.2,
    "ytick.labelsize": 9.2,
    "legend.fontsize": 9.2,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}
IN_FILE: dict[Any, Any] = {
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.titlesize": 10,
}
MAX_LABEL = 22
"""Characters of a name; a longer one is shown by its beginning and end."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes. ``draw`` may set whatever it likes on them but the title."""

    title: str
    draw: Callable[[Axes], None]
    height: float = 2.1
    """Inches, in a page."""


@dataclass(frozen=True)
class Picture:
    """A panel drawn for a page; the legend that panels share has no title."""

    title: str
    svg: Markup


def png(panels: Sequence[Panel], legend: bool = True) -> bytes:
    """A PNG file of all panels."""
    with matplotlib.rc_context(IN_FILE):
        figure = wide(panels, legend)
        file = BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()


def wide(panels: Sequence[Panel], legend: bool = True) -> Figure:
    """A figure of all panels in rows of ``COLUMNS``, with one legend below."""
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    height = rows * max(1.45 * max(panel.height for panel in panels), 2.2) + 0.4
    # Figure without pyplot: no global state, and it draws the same with or without a display.
    figure = Figure(
        figsize=(WIDE if columns > 1 else WIDE * 0.75, height),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1),
    )
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis, panel in zip(axes, panels):
        axis.set_title(panel.title)
        panel.draw(axis)
        _frame(axis)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    if legend:
        _legend(figure, _entries(axes), columns=4, place="outside lower center")
    return figure


def pictures(panels: Sequence[Panel], name: str, legend: bool = True) -> list[Picture]:
    """A picture of each panel, after one of the legend that they share. ``name`` sets their ids apart from
    those of other pictures of a page."""
    drawn, entries = list[Picture](), dict[str, Artist]()
    with matplotlib.rc_context({**IN_PAGE, "svg.hashsalt": name}):
        for panel in panels:
            figure = Figure(figsize=(NARROW, panel.height), layout="constrained")
            axis = figure.subplots()
            panel.draw(axis)
            _frame(axis)
            entries |= _entries([axis])
            drawn.append(Picture(panel.title, _svg(figure, panel.title)))
        if legend and entries:
            columns = 2 if max(map(len, entries)) <= MAX_LABEL else 1
            figure = Figure(figsize=(NARROW, 0.2 * -(-len(entries) // columns) + 0.1))
            _legend(figure, entries, columns, "center")
            drawn.insert(0, Picture("", _svg(figure, "Legend")))
    return drawn


def short(text: str) -> str:
    """A name that fits beside a panel, written so that matplotlib takes it as text."""
    text = " ".join(visible(text).split())
    text = text if len(text) <= MAX_LABEL else text[: MAX_LABEL // 2 - 1] + "\u2026" + text[-MAX_LABEL // 2 :]
    return text.replace("$", r"\$")  # which would begin a formula, and fail on half of one


def _frame(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.18, linewidth=0.6)
    axis.set_axisbelow(True)


def _entries(axes: Sequence[Axes]) -> dict[str, Artist]:
    return {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}


def _legend(figure: Figure, entries: dict[str, Artist], columns: int, place: str) -> None:
    if entries:
        columns = min(len(entries), columns)
        look: dict[str, Any] = {
            "loc": place,
            "ncols": columns,
            "frameon": False,
            "borderpad": 0,
            "columnspacing": 1.2,
        }
        figure.legend(list(entries.values()), [short(label) for label in entries], **look)


def _svg(figure: Figure, title: str) -> Markup:
    """A figure as an element for a page. matplotlib has escaped its texts; ids that nothing refers to and
    digits that nobody sees are left out."""
    file = StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # An element's style holds for the whole page, and the page has this one already.
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # the page's parser knows them
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found.group() if found[1] in used else "", text)
    text = re.sub(r' d="[^"]*"', lambda found: re.sub(r"(\.\d)\d+", r"\1", found.group()), text)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*\n\s*", "\n", text).replace(INK, "currentColor")
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{Markup.escape(visible(title))}"', 1))
