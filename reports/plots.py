"""The figures, as the bytes of their PNG and PDF files.

Each is drawn from the summary or the curves alone, with no clock, no global state and no settings
of the user's, so that equal input gives equal bytes. Not here: colours and sizes (`style`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import matplotlib
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from reports import style
from reports.columns import Column, number, number_of_bits
from reports.style import Look
from reports.summary import REFERENCE_BITS, Entry, Row, Summary

_POINTS = 1500  # of a curve: more cannot be seen
_FEW = 8  # methods that a legend in one column of a paper can hold
_DASHES = ["--", ":", "-."]  # of references


def draw(summary: Summary, curves: pd.DataFrame) -> dict[str, dict[str, bytes]]:
    """Name -> {"png": …, "pdf": …} of every figure that has something to show."""
    trained = curves["cell"].map(summary.names)
    methods = [row.name for row in summary.rows if not row.reference]
    looks = style.looks([*methods, *trained])
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, style.RC))
        figures = {
            "score_vs_bits": _score(summary, looks),
            "perplexity": _perplexity(summary, looks),
            "training_loss": _loss(curves.assign(name=trained), looks),
        }
        return {name: _files(figure) for name, figure in figures.items() if figure is not None}


# --- score against bits -------------------------------------------------------------------------


def _score(summary: Summary, looks: dict[str, Look]) -> Figure | None:
    """The average (or the only task) of each row over its effective bits per weight."""
    scores = [index for index, column in enumerate(summary.columns) if column.higher]
    if not scores:
        return None
    index = scores[-1]
    column = summary.columns[index]
    points: dict[str, list[tuple[float, Entry]]] = {}
    for row in summary.rows:
        entry = row.entries[index]
        if entry is None or not math.isfinite(entry.mean) or row.reference:
            continue
        weight = row.bits if row.bits_per_weight is None else row.bits_per_weight
        points.setdefault(row.name, []).append((weight, entry))
    if not points:
        return None
    figure = Figure(figsize=(style.COLUMN if len(points) <= _FEW else style.PAGE, 2.4))
    axes = figure.subplots()
    handles: list[Line2D] = _references(axes, summary, index, percent=True)
    for name, found in points.items():
        found.sort(key=lambda point: point[0])
        look = looks[name]
        axes.errorbar(
            [weight for weight, _ in found],
            [100 * entry.mean for _, entry in found],
            yerr=[100 * _spread(entry) for _, entry in found],
            color=look.colour,
            marker=look.marker,
            markeredgecolor="white",
            markeredgewidth=0.5,
            elinewidth=0.8,
            capsize=1.5,
        )
        shown = name + _marks(mark for _, entry in found for mark in entry.marks)
        handles.append(
            Line2D([], [], color=look.colour, marker=look.marker, mec="white", label=shown)
        )
    axes.margins(x=0.08, y=0.1)
    axes.set_xlabel("effective bits per weight")
    title = "average score" if column.task is None else column.title
    axes.set_ylabel(f"{title} (%)")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    _legend(figure, handles)
    return figure


# --- perplexity ---------------------------------------------------------------------------------


def _perplexity(summary: Summary, looks: dict[str, Look]) -> Figure | None:
    """A panel a column that is better lower, a group of bars for each number of bits."""
    columns = [index for index, column in enumerate(summary.columns) if not column.higher]
    groups = [group for group in summary.groups() if not group[0].reference]
    names = dict.fromkeys(row.name for group in groups for row in group)
    if not columns or not groups:
        return None
    bars = sum(len(group) for group in groups)
    wide = bars * len(columns) > 10 or len(names) > _FEW
    size = (style.PAGE if wide else style.COLUMN, 2.3)
    figure = Figure(figsize=size)
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    handles: dict[str, Line2D] = {}
    for axes, index in zip(panels, columns, strict=True):
        for line in _references(axes, summary, index, percent=False):
            handles.setdefault(str(line.get_label()), line)
        room = size[0] / len(columns) / max(1, bars)  # inches a bar
        _bars(axes, summary, groups, index, looks, upright=room < 0.36)
        column = summary.columns[index]
        named = "perplexity" if column.metric in ("ppl", "perplexity") else column.metric
        axes.set_ylabel(f"{named} (log scale)")
        if len(columns) > 1:
            axes.set_title(column.title)
    _legend(figure, [*handles.values(), *(_patch(looks[name], name) for name in names)])
    return figure


def _bars(
    axes: Axes,
    summary: Summary,
    groups: list[tuple[Row, ...]],
    index: int,
    looks: dict[str, Look],
    upright: bool,
) -> None:
    column = summary.columns[index]
    shown = [
        entry.mean
        for row in summary.rows
        if (entry := row.entries[index]) is not None
        if math.isfinite(entry.mean) and entry.mean > 0
    ]
    if not shown:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no finite perplexity", ha="center", transform=axes.transAxes)
        return
    low, high = 0.8 * min(shown), max(shown)
    span = math.log(high / low)
    axes.set_yscale("log")
    axes.set_ylim(low, high * math.exp(span * (0.3 if upright else 0.12)))
    _log_ticks(axes, low, high)
    at, ticks = 0.0, []
    for group in groups:
        start = at
        for row in group:
            entry, look = row.entries[index], looks[row.name]
            words, top = ("–", low) if entry is None else _bar(axes, at, entry, column, look, low)
            axes.annotate(
                words,
                (at, top),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                rotation=90 if upright else 0,
                fontsize=6,
                path_effects=[withStroke(linewidth=1.5, foreground="white")],
            )
            at += 1
        ticks.append(((start + at - 1) / 2, f"{number_of_bits(group[0].bits)} bits"))
        at += 0.8
    axes.set_xticks([place for place, _ in ticks], [words for _, words in ticks])
    axes.set_xlim(-0.7, at - 0.8 - 0.3)
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")


def _bar(
    axes: Axes, at: float, entry: Entry, column: Column, look: Look, low: float
) -> tuple[str, float]:
    """Draws it; what stands on top, and where."""
    words = number(entry.mean, column, 1) + _marks(entry.marks)
    if not (math.isfinite(entry.mean) and entry.mean > 0):
        return words, low
    axes.bar(
        at,
        entry.mean - low,
        bottom=low,
        width=0.9,
        color=look.colour,
        hatch=look.hatch,
        edgecolor="white",
        linewidth=0,
    )
    spread = _spread(entry)
    if spread:
        below = min(spread, entry.mean - low)
        error = [[below], [spread]]
        axes.errorbar(at, entry.mean, yerr=error, color="#222222", elinewidth=0.7, capsize=1.5)
    return words, entry.mean + spread


def _log_ticks(axes: Axes, low: float, high: float) -> None:
    decades = math.log10(high / low)
    subs: Sequence[float] = (1.0,) if decades > 3 else (1.0, 2.0, 5.0)
    if decades < 0.6:
        subs = [float(digit) for digit in range(1, 10)]
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _power(value: float) -> str:
    if value < 1e5:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return ("" if mantissa == "1" else f"{mantissa}×") + f"10{raised}"


# --- training loss ------------------------------------------------------------------------------


def _loss(curves: pd.DataFrame, looks: dict[str, Look]) -> Figure | None:
    """A panel a number of bits; every seed a faint raw curve and a smoothed one over it."""
    if not curves["loss"].notna().any():
        return None
    bits = sorted(curves["bits"].unique(), reverse=True)
    tokens = bool(curves["tokens"].notna().all())
    place = "tokens" if tokens else "step"
    unit, words = _unit(float(curves[place].max())) if tokens else (1.0, "optimiser step")
    width = style.COLUMN if len(bits) == 1 else style.PAGE
    figure = Figure(figsize=(width, 2.4))
    panels = figure.subplots(1, len(bits), squeeze=False, sharey=True)[0]
    smallest, largest = float(curves["loss"].min()), float(curves["loss"].max())
    logarithmic = smallest > 0 and largest / smallest > 30
    for axes, each in zip(panels, bits, strict=True):
        for (name, _), line in curves[curves["bits"] == each].groupby(["name", "cell"], sort=False):
            line = line.sort_values("step")
            line = line.iloc[:: max(1, math.ceil(len(line) / _POINTS))]
            window = len(line) // 25 * 2 + 1  # centred, so that it does not lag
            smooth = line["loss"].rolling(window, center=True, min_periods=1).mean()
            smooth = smooth.where(line["loss"].notna())  # a gap stays one
            look = looks[str(name)]
            at = line[place] / unit
            axes.plot(at, line["loss"], color=look.colour, alpha=0.25, linewidth=0.6)
            axes.plot(at, smooth, color=look.colour, ls=look.dash)
        if logarithmic:
            axes.set_yscale("log")
            _log_ticks(axes, smallest, largest)
        axes.set_title(f"{number_of_bits(each)} bits")
        axes.set_xlabel(words)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    panels[0].set_ylabel("training loss" + (" (log scale)" if logarithmic else ""))
    drawn = {name: look for name, look in looks.items() if name in set(curves["name"])}
    _legend(
        figure,
        [Line2D([], [], color=k.colour, ls=k.dash, label=name) for name, k in drawn.items()],
    )
    return figure


def _unit(largest: float) -> tuple[float, str]:
    for unit, words in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if largest >= unit:
            return unit, f"tokens trained on ({words})"
    return 1.0, "tokens trained on"


# --- what all share -----------------------------------------------------------------------------


def _references(axes: Axes, summary: Summary, index: int, percent: bool) -> list[Line2D]:
    """The 16-bit rows as dashed lines across the axes."""
    lines: list[Line2D] = []
    for row in summary.rows:
        entry = row.entries[index]
        if row.bits < REFERENCE_BITS or entry is None or not math.isfinite(entry.mean):
            continue
        value = 100 * entry.mean if percent else entry.mean
        dash = _DASHES[len(lines) % len(_DASHES)]
        label = f"{row.name} ({number_of_bits(row.bits)} bits)"
        lines.append(axes.axhline(value, color=style.REFERENCE, ls=dash, lw=1.0, label=label))
    return lines


def _marks(marks: Iterable[str]) -> str:
    """The table's notes hold for a figure too."""
    told = ",".join(sorted(set(marks)))
    return f" [{told}]" if told else ""


def _spread(entry: Entry) -> float:
    return entry.sd if entry.sd is not None and math.isfinite(entry.sd) else 0.0


def _patch(look: Look, name: str) -> Patch:
    return Patch(facecolor=look.colour, hatch=look.hatch, edgecolor="white", lw=0, label=name)


def _legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Below the axes, never over the data, which keep their height."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    letters = figure.get_figwidth() * 16
    columns = max(1, min(len(handles), int(letters // (longest + 6))))
    figure.set_figheight(figure.get_figheight() + 0.165 * math.ceil(len(handles) / columns))
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def _files(figure: Figure) -> dict[str, bytes]:
    """Without date or program version, so that they are equal whenever the picture is."""
    metadata = {"png": ["Software"], "pdf": ["CreationDate", "Creator", "Producer"]}
    files = {}
    for suffix, keys in metadata.items():
        out = io.BytesIO()
        figure.savefig(out, format=suffix, metadata=dict.fromkeys(keys))
        files[suffix] = out.getvalue()
    return files
