"""What all figures share: legends, references, ticks of logarithmic axes, and the files."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from harness.core.errors import show_lines
from reports.numbers.columns import Column
from reports.numbers.entries import REFERENCE_BITS, Entry
from reports.numbers.summary import Summary
from reports.plots import style
from reports.plots.data import Mean
from reports.plots.intervals import draw_bar
from reports.plots.style import Look

FEW = 8  # entries that a legend in one column of a paper can hold
_WIDE = 30.0  # largest over smallest from which an axis is logarithmic
_DASHES = ["--", ":", "-."]  # of references


def draw_references(
    axes: Axes, summary: Summary, index: int, upright: bool = False
) -> list[Line2D]:
    """The 16-bit rows as broken lines across the axes; `upright` where x has the values."""
    lines: list[Line2D] = []
    draw = axes.axvline if upright else axes.axhline
    for row in summary.rows:
        entry = row.entries[index]
        if row.bits < REFERENCE_BITS or entry is None or not math.isfinite(entry.mean):
            continue
        if entry.mean <= 0 and not summary.columns[index].higher:
            continue  # a model's divergence from itself, which a logarithmic axis does not have
        value = get_scale(summary.columns[index]) * entry.mean
        dash = _DASHES[len(lines) % len(_DASHES)]
        label = row.name if row.attachments else f"{row.name} ({row.width} bits)"
        lines.append(draw(value, color=style.REFERENCE, ls=dash, lw=1.0, zorder=1, label=label))
    return lines


def draw_chance(axes: Axes, column: Column) -> list[Line2D]:
    """What guessing scores, as a dotted line."""
    if column.chance is None:
        return []
    value = get_scale(column) * column.chance
    return [axes.axhline(value, color=style.FAINT, ls=":", lw=1.0, zorder=1, label="guessing")]


def get_scale(column: Column) -> float:
    """Scores are drawn in percent."""
    return 100.0 if column.percent else 1.0


def describe_quantity(column: Column) -> str:
    """The words at an axis that shows a column."""
    if column.higher:
        return "average score (%)" if column.task is None else f"{column.title} (%)"
    if column.metric == "kl" or column.title.startswith("ln "):
        return f"{column.title} (nats)"
    named = "perplexity" if column.is_perplexity else column.metric
    first, _, rest = column.title.partition(" ")
    of_what = rest if first.casefold() == column.metric.casefold() else column.title
    return f"{of_what} {named}".strip()


def list_marks(entries: Iterable[Entry]) -> str:
    """The table's notes hold for a figure too."""
    listed = ",".join(sorted({mark for entry in entries for mark in entry.marks}))
    return f" [{listed}]" if listed else ""


def make_handle(look: Look, label: str, line: bool = False) -> Line2D:
    """A legend's entry: a marker, or the curve that has none."""
    if line:
        return Line2D([], [], color=look.colour, ls=look.dash, label=label)
    return Line2D([], [], color=look.colour, marker=look.marker, mec="white", label=label)


def is_wide(values: Iterable[float]) -> bool:
    """Whether an axis over these values should be logarithmic."""
    numbers = list(values)
    return bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) >= _WIDE


def set_logarithmic(axes: Axes, side: Literal["x", "y"], low: float, high: float) -> None:
    """Ticks from `low` to `high` in one notation: all plain numbers, or all powers of ten."""
    axes.set(**{f"{side}scale": "log"})
    axis = axes.xaxis if side == "x" else axes.yaxis
    decades = math.log10(high / low)
    powers = high >= 1e5
    subs: Sequence[float] = (1.0,) if decades > 2.5 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=(1.0,) if powers else subs, numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, powers)))
    axis.set_minor_formatter(NullFormatter())


def set_places(axes: Axes, values: Sequence[float]) -> None:
    """An x axis with its ticks at the values given, logarithmic where they are far apart."""
    if is_wide(values) or (min(values) > 0 and max(values) / min(values) > 10):
        axes.set_xscale("log")
    if len(values) <= FEW:
        axes.xaxis.set_major_locator(FixedLocator(list(values)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _tick(value: float, powers: bool) -> str:
    if not powers:
        return f"{value:g}"
    raised = str(round(math.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}"


def choose_unit(largest: float) -> tuple[float, str]:
    """What a number of tokens is divided by for an axis, and the axis's words."""
    for size, size_name in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if largest >= size:
            return size, f"tokens trained on ({size_name})"
    return 1.0, "tokens trained on"


def draw_means(axes: Axes, at: list[float], means: list[Mean], look: Look) -> None:
    """A line through means, with the intervals of those that have one."""
    axes.plot(
        at,
        [each.mean for each in means],
        color=look.colour,
        marker=look.marker,
        markeredgecolor="white",
        markeredgewidth=0.5,
    )
    for place, each in zip(at, means, strict=True):
        draw_bar(axes, place, each, look.colour)


def title_quantities(columns: Iterable[Column]) -> str:
    """What an axis or several show, as a title begins."""
    words = ", ".join(describe_quantity(column).removesuffix(" (%)") for column in columns)
    return words[:1].upper() + words[1:]


def draw_legend(figure: Figure, handles: Sequence[Artist], title: str = "") -> None:
    """Below the axes, never over the data, which keep their height."""
    longest = max(len(str(each.get_label())) for each in handles)
    letters = figure.get_figwidth() * 16
    columns = max(1, min(len(handles), int(letters // (longest + 6))))
    _taller(figure, 0.165 * (math.ceil(len(handles) / columns) + bool(title)))
    figure.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=columns,
        title=title or None,
        title_fontsize=7,
    )


def write_remark(figure: Figure, remarks: Sequence[str]) -> None:
    """What a reader must know of a figure that it does not show, in small print above it."""
    if remarks:
        lines = textwrap.wrap("; ".join(remarks), int(figure.get_figwidth() * 17))
        _taller(figure, 0.13 * len(lines) + 0.05)
        figure.suptitle("\n".join(lines), fontsize=7, color="#555555", x=0.01, ha="left")


def _taller(figure: Figure, inches: float) -> None:
    figure.set_figheight(figure.get_figheight() + inches)


def encode_figure(figure: Figure) -> dict[str, bytes]:
    """Without date or program version, so that they are equal whenever the picture is.

    Axes and legends are laid out once, for the PNG, and lie in the PDF as they do in it.
    """
    _show_texts(figure)
    png, pdf = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    figure.set_layout_engine("none")
    # Not by `savefig`, which draws twice: first for a layout, whatever the engine.
    empty: dict[str, Any] = dict.fromkeys(["CreationDate", "Creator", "Producer"])
    FigureCanvasPdf(figure).print_pdf(pdf, metadata=empty)
    return {"png": png.getvalue(), "pdf": pdf.getvalue()}


def _show_texts(figure: Figure) -> None:
    """Every text of a figure as what can be seen, whatever names it was made of."""
    for axis in [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]:
        ticks = [label.get_text() for label in axis.get_majorticklabels()]
        if ticks != (shown := list(map(show_lines, ticks))):  # else they would be formatted anew
            axis.set_major_formatter(FixedFormatter(shown))
    for artist in figure.findobj(Text):
        if isinstance(artist, Text) and (text := artist.get_text()) != show_lines(text):
            artist.set_text(show_lines(text))
