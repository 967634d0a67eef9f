"""Tasks from 16 bits down: a panel a method, a line a task."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.numbers.columns import Column, format_bits
from reports.numbers.entries import REFERENCE_BITS, Row
from reports.plots import style
from reports.plots.context import Context, Drawing, Plot
from reports.plots.intervals import name_over
from reports.plots.panels import draw_legend, make_handle, write_remark
from reports.plots.style import Look, Widths

_PANELS = 8  # of a figure over both columns
_LETTERS = 15  # an inch, of a panel's title


def draw_slopes(context: Context) -> Drawing | None:
    """A panel a method: each task from the 16-bit model down to the fewest bits."""
    summary = context.summary
    tasks = [i for i, c in enumerate(summary.columns) if c.higher and c.task is not None]
    reference = next((row for row in summary.rows if row.reference), None)
    if len(tasks) < 2 or reference is None:
        return None
    methods: dict[str, list[Row]] = {}
    for row in summary.rows:
        if not row.reference and row.name != reference.name:
            methods.setdefault(row.name, []).append(row)
    fewest = min((row.bits for rows in methods.values() for row in rows), default=math.inf)
    chosen = {n: rows for n, rows in methods.items() if any(row.bits == fewest for row in rows)}
    if not chosen:
        return None
    shown = dict(list(chosen.items())[:_PANELS])
    widths = sorted({row.bits for rows in shown.values() for row in rows}, reverse=True)
    figure, panels, letters = _make_panels(context.widths, len(shown))
    looks = style.make_looks([summary.columns[index].title for index in tasks])
    chances = _find_chances([summary.columns[index] for index in tasks], looks)
    for axes, (name, rows) in zip(panels, shown.items(), strict=True):
        ordered = [reference, *sorted(rows, key=lambda row: -row.bits)]
        for level, colour in chances.items():
            axes.axhline(100 * level, color=colour, ls=":", lw=1.0, zorder=1)
        for index in tasks:
            look = looks[summary.columns[index].title]
            entries = [(row.bits, row.entries[index]) for row in ordered]
            finite = [(b, e.mean) for b, e in entries if e is not None and math.isfinite(e.mean)]
            axes.plot(
                [0 if bits >= REFERENCE_BITS else 1 + widths.index(bits) for bits, _ in finite],
                [100 * value for _, value in finite],
                color=look.colour,
                marker=look.marker,
                markeredgecolor="white",
                markeredgewidth=0.5,
            )
        axes.set_title(textwrap.fill(name, letters, break_on_hyphens=False))
        ticks = [reference.width, *map(format_bits, widths)]
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlim(-0.25, len(ticks) - 0.75)
        axes.grid(False, axis="x")
        axes.set_xlabel("bits")
    figure.supylabel("score (%)", fontsize=8)
    if len(methods) > len(shown):
        fewer = f"{len(methods) - len(shown)} of {len(methods)} methods not drawn"
        write_remark(figure, [fewer + (": no row at the fewest bits" if chosen == shown else "")])
    handles = [make_handle(look, title) for title, look in looks.items()]
    if chances:
        handles.append(Line2D([], [], color=style.FAINT, ls=":", lw=1.0, label="guessing"))
    draw_legend(figure, handles)
    words = [
        "each panel is a method, each line a task",
        *_describe_chances([summary.columns[index] for index in tasks], chances),
    ]
    if any(row.models > 1 for rows in shown.values() for row in rows):
        options = summary.grid.report
        over = name_over(options)
        words.append(f"points are {options.aggregate}s over {over}; their spread is not drawn")
    return Drawing(figure, f"Tasks from {reference.width} bits down", words)


def _make_panels(widths: Widths, count: int) -> tuple[Figure, list[Axes], int]:
    """A figure with so many panels, and the letters of a line of a panel's title."""
    across = min(4, count)
    down = math.ceil(count / across)
    size = (widths.choose(across > 2), 0.3 + 1.75 * down)
    figure = Figure(figsize=size)
    panels = list(figure.subplots(down, across, squeeze=False, sharey=True).flatten())
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count], int(_LETTERS * size[0] / across)


def _find_chances(columns: Sequence[Column], looks: Mapping[str, Look]) -> dict[float, str]:
    """What guessing scores -> the colour of the one task that it is of, or gray for several."""
    by_level: dict[float, list[str]] = {}
    for column in columns:
        if column.chance is not None:
            by_level.setdefault(column.chance, []).append(looks[column.title].colour)
    return {
        level: own[0] if len(own) == 1 < len(columns) else style.FAINT
        for level, own in by_level.items()
    }


def _describe_chances(columns: Sequence[Column], chances: Mapping[float, str]) -> list[str]:
    """What the dotted lines are, and which tasks have none."""
    if not chances:
        return []
    alone = any(colour != style.FAINT for colour in chances.values())
    of_one = ", in the colour of a task where it is of that one alone" if alone else ""
    rest = [column.title for column in columns if column.chance is None]
    without = f"; not known of {', '.join(rest)}" if rest else ""
    return [f"dotted: what guessing scores{of_one}{without}"]


PLOTS = (Plot("slopes", draw_slopes),)
