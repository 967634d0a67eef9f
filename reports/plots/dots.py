"""Dot plots: a row a method or a setting, its numbers as points with intervals."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from reports.numbers.columns import Column, format_difference, format_number
from reports.numbers.effects import Effect, Status
from reports.numbers.entries import Row
from reports.numbers.excess import compute_excess, is_crowded
from reports.numbers.summary import Summary
from reports.plots import data, style
from reports.plots.context import Context, Drawing, Plot
from reports.plots.data import Mean, Over
from reports.plots.intervals import describe_means, draw_bar, make_interval_handles
from reports.plots.panels import (
    describe_quantity,
    draw_legend,
    draw_references,
    get_scale,
    is_wide,
    list_marks,
    set_logarithmic,
    title_quantities,
)
from reports.plots.style import Look, Widths

_LEAST = 1.25  # largest over smallest on an axis: less would make a small difference look large
_LETTERS = 22  # of a line of a row's name, which leave room for data in one column
_LINE = 0.13  # inches
_BELOW: dict[str, Any] = {"marker": "<", "color": style.FAINT, "ls": "none"}
_FILLED = {"marker": "o", "mec": "white", "ls": "none"}
_STATUSES: dict[str, dict[str, Any]] = {
    "better": _FILLED | {"color": style.BETTER},
    "worse": _FILLED | {"color": style.WORSE},
    Status.NOT_DISTINGUISHED.value: _FILLED | {"color": style.UNTOLD},
    Status.UNTESTED.value: {"marker": "o", "mfc": "none", "mec": style.UNTOLD, "ls": "none"},
}
"""How an effect looks by what is known of it."""


def draw_perplexity(context: Context) -> Drawing | None:
    """A panel a column that is better lower, a row of dots for each row of the table.

    Dots and not bars: a logarithmic axis has no zero for a bar to stand on.
    """
    summary, models, looks = context.summary, context.models, context.looks
    columns = [index for index, column in enumerate(summary.columns) if not column.higher]
    rows = _list_quantised(summary)
    if not columns or not rows:
        return None
    figure, panels, places = _rows_of_table(context, len(columns))
    handles: dict[str, Line2D] = {}
    drawn: list[Mean] = []
    cut = False
    for axes, index in zip(panels, columns, strict=True):
        lines = draw_references(axes, summary, index, upright=True)
        handles |= {str(line.get_label()): line for line in lines}
        means = data.average_by_row(models, index, get_scale(summary.columns[index]))
        row_means = [means[row.name, row.bits] for row in rows]
        base = [Mean(means[row.name, row.bits].mean) for row in summary.rows if row.reference]
        scaled = _limits(axes, [*row_means, *base])
        for row, mean, at in zip(rows, row_means, places, strict=True):
            _print(axes, at, _words(row, mean, index, summary.columns[index]))
            _dot(axes, at, mean, looks[row.name], scaled)
            drawn.append(mean)
            cut |= scaled and mean.low <= 0 < mean.mean
        axes.set_xlabel(
            describe_quantity(summary.columns[index]) + (" (log scale)" if scaled else "")
        )
    kinds = make_interval_handles(drawn, summary.grid.report)
    if handles or kinds:
        draw_legend(figure, [*handles.values(), *kinds])
    words = describe_means(drawn, summary.grid.report, "error bars")
    words += ["error bars that reach zero end at the axis"] if cut else []
    words += [f"broken lines: {', '.join(handles)}"] if handles else []
    return Drawing(figure, title_quantities(summary.columns[index] for index in columns), words)


def draw_perplexity_differences(context: Context) -> Drawing | None:
    """Each perplexity less the 16-bit model's, on a logarithmic axis, where the dots of the
    perplexities themselves pile up: see `is_crowded`."""
    summary, looks = context.summary, context.looks
    rows = _list_quantised(summary)
    references = [row for row in summary.rows if row.reference]
    if len(references) != 1:
        return None
    found = {
        index: differences
        for index, column in enumerate(summary.columns)
        if column.is_perplexity
        and (differences := _find_differences(context, rows, references[0], index))
    }
    if not found:
        return None
    figure, panels, places = _rows_of_table(context, len(found))
    drawn: list[Mean] = []
    below = cut = False
    for axes, (index, differences) in zip(panels, found.items(), strict=True):
        column = summary.columns[index]
        above = [mean for mean in differences if mean.mean > 0]
        _limits(axes, above, logarithmic=True)
        for mean, row, at in zip(differences, rows, places, strict=True):
            entry = row.entries[index]
            text = "–" if entry is None else _show_difference(mean.mean, column)
            _print(axes, at, text + list_marks([entry] if entry else []))
            _dot(axes, at, mean, looks[row.name], True)
            if mean.mean <= 0:
                axes.plot(axes.get_xlim()[0], at, clip_on=False, **_BELOW)
            below |= mean.mean <= 0
            cut |= mean.low <= 0 < mean.mean
        drawn += above
        axes.set_xlabel(f"Δ {describe_quantity(column)} (log scale)")
    if kinds := make_interval_handles(drawn, summary.grid.report):
        draw_legend(figure, kinds)
    base = references[0]
    words = [
        f"perplexity less that of {base.name} ({base.width} bits)",
        *describe_means(drawn, summary.grid.report, "error bars"),
    ]
    if any(mean.over == "items" for mean in drawn):
        words.append("over items they are paired: of the differences of each window's loss")
    words += ["error bars that reach zero end at the axis"] if cut else []
    words += [f"triangles at the axis: not above {base.name}"] if below else []
    titles = title_quantities(summary.columns[index] for index in found)
    return Drawing(figure, f"{titles} above the {base.width}-bit model", words)


def _find_differences(
    context: Context, rows: Sequence[Row], reference: Row, index: int
) -> list[Mean] | None:
    """Of each row what its perplexity is above the reference's; None where no axis of them is
    needed."""
    base = reference.entries[index]
    if base is None or not math.isfinite(base.mean):
        return None
    means = data.average_by_row(context.models, index, 1.0)
    values = [means[row.name, row.bits] for row in rows]
    finite = [mean.mean for mean in values if math.isfinite(mean.mean)]
    above = [value - base.mean for value in finite]
    if not finite or not is_crowded(finite, above, is_wide(finite)):
        return None
    differences = []
    for row, mean in zip(rows, values, strict=True):
        entry = row.entries[index]
        low, high = mean.low - base.mean, mean.high - base.mean
        if entry is not None and mean.n == 1:
            paired = compute_excess(entry, base)
            low, high = paired.low, paired.high
        over = mean.over if math.isfinite(low) and math.isfinite(high) else None
        differences.append(Mean(mean.mean - base.mean, low, high, mean.n, over))
    return differences


def _show_difference(value: float, column: Column) -> str:
    """+12.30, +0.0042: with two digits at least."""
    size = abs(value)
    shown = format_number(size, column, 1) if size >= 1 or size != size else f"{size:#.2g}"
    return f"{'−' if value < 0 else '+'}{shown}" if math.isfinite(value) else shown


def draw_ablation(context: Context) -> Drawing | None:
    """What each setting of an axis changes against the first one, paired by seed.

    Bits are no such axis: what they cost is in the score over bits.
    """
    summary = context.summary
    effects = [effect for effect in context.effects if effect.bits is not None]
    score = data.find_main_score(summary)
    chosen = [] if score is None else [summary.columns[score]]
    chosen += [c.in_differences for c in summary.columns if not c.higher][:2]
    known = {(e.label, e.context, e.bits, e.baseline, e.setting, e.column): e for e in effects}
    keys = list(dict.fromkeys(key[:5] for key in known))
    columns = [column for column in chosen if any((*key, column) in known for key in keys)]
    if not columns:
        return None
    named = [", ".join(filter(None, [key[0], key[1], key[4]])) for key in keys]
    common, names = data.shorten(named)
    if len(keys) == 1:
        common, names = ", ".join(filter(None, keys[0][:2])), [keys[0][4]]
    figure, panels, places = _rows(context.widths, names, [len(keys)], [], len(columns))
    drawn: list[Effect] = []
    for axes, column in zip(panels, columns, strict=True):
        axes.axvline(0, color=style.REFERENCE, lw=1.0, zorder=1)
        for key, at in zip(keys, places, strict=True):
            effect = known.get((*key, column))
            if effect is None:
                _print(axes, at, "–")
                continue
            difference, factor = effect.difference, get_scale(column)
            drawn.append(effect)
            ends = (factor * difference.low, factor * difference.high)
            over: Over = "items" if effect.over == "items" else "models"
            mean = Mean(factor * difference.mean, *ends, over=over)
            status = _describe_status(effect)
            if effect.status is Status.UNTESTED:
                axes.plot(mean.mean, at, **_STATUSES[status])
                _print(axes, at, "untested")
                continue
            _dot(axes, at, mean, Look(_STATUSES[status]["color"], "o"), False)
            _print(axes, at, format_difference(mean.mean, 1 if column.percent else 3))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.margins(x=0.08)
        axes.set_xlabel(f"Δ {describe_quantity(column)}".replace("(%)", "(points)"))
    baselines = dict.fromkeys(key[3] for key in keys)
    against = f"{effects[0].axis}: against {', '.join(baselines)}"
    width = int(figure.get_figwidth() * 14)
    panels[0].set_title(textwrap.shorten(against, width, placeholder=" …"), loc="left")
    found = {_describe_status(effect) for effect in drawn}
    handles = [
        Line2D([], [], label=status, **look)
        for status, look in _STATUSES.items()
        if status in found
    ]
    draw_legend(figure, handles, common)
    return Drawing(figure, f"What {effects[0].axis} changes", _describe_effects(drawn))


def _describe_status(effect: Effect) -> str:
    """As `_STATUSES` has it."""
    if effect.status is Status.DISTINGUISHED:
        return "better" if effect.better else "worse"
    return effect.status.value


def _describe_effects(drawn: Sequence[Effect]) -> list[str]:
    """Only of what was drawn."""
    found = {effect.status for effect in drawn}
    tested = [effect for effect in drawn if effect.status is not Status.UNTESTED]
    sentences = []
    if tested:
        names = dict.fromkeys(effect.over for effect in tested)
        over = " or over ".join("items (thin and broken)" if n == "items" else n for n in names)
        sentences.append(f"bars are simultaneous 95 % intervals over {over}")
        coloured = "coloured where the interval excludes zero"
        untold = "gray: not distinguished, which is not the same as equal"
        sentences.append(
            "; ".join(
                words
                for status, words in (
                    (Status.DISTINGUISHED, coloured),
                    (Status.NOT_DISTINGUISHED, untold),
                )
                if status in found
            )
        )
    if Status.UNTESTED in found:
        why = dict.fromkeys(effect.untested for effect in drawn if effect.untested)
        sentences.append(f"hollow: untested ({'; '.join(why)})")
    return sentences


def _list_quantised(summary: Summary) -> list[Row]:
    return [row for group in summary.groups() if not group[0].reference for row in group]


def _rows_of_table(context: Context, panels: int) -> tuple[Figure, list[Axes], list[float]]:
    """`_rows` of all quantised rows, under their widths where there are several."""
    summary = context.summary
    groups = [group for group in summary.groups() if not group[0].reference]
    common, names = data.shorten([row.name for row in _list_quantised(summary)])
    headings = [f"{group[0].width}{'' if group[0].attachments else ' bits'}" for group in groups]
    headings = headings if len(groups) > 1 else []
    figure, axes_row, places = _rows(
        context.widths, names, [len(group) for group in groups], headings, panels
    )
    axes_row[0].set_title(common, loc="left")
    return figure, axes_row, places


def _rows(
    widths: Widths,
    names: Sequence[str],
    sizes: Sequence[int],
    headings: Sequence[str],
    panels: int,
) -> tuple[Figure, list[Axes], list[float]]:
    """A figure with a row for each name, top down, in groups; the places of the names on y."""
    wide = panels > 1 or max(map(len, names)) > 2 * _LETTERS
    letters = 2 * _LETTERS if max(map(len, names)) > 2 * _LETTERS else _LETTERS
    wrapped = [textwrap.fill(name, letters, break_long_words=False) or name for name in names]
    places: list[float] = []
    ticks: dict[float, str] = {}
    for group, size in enumerate(sizes):
        if headings:
            ticks[float(len(places) + group)] = headings[group]
        start = len(places) + (group + 1 if headings else 0)
        places += [float(start + index) for index in range(size)]
    labels = dict(zip(places, wrapped, strict=True))
    line = _LINE * max(name.count("\n") for name in wrapped) + _LINE + 0.03
    height = 0.75 + line * (places[-1] + 1)
    figure = Figure(figsize=(widths.choose(wide), height))
    axes_row = list(figure.subplots(1, panels, squeeze=False, sharey=True)[0])
    axes_row[0].set_yticks([*labels, *ticks], [*labels.values(), *ticks.values()])
    for label in axes_row[0].get_yticklabels()[len(labels) :]:
        label.set_fontweight("bold")
    axes_row[0].set_ylim(places[-1] + 0.7, -0.7)
    for axes in axes_row:
        axes.grid(True, axis="y", linestyle=":")
        axes.tick_params(axis="y", length=0)
    return figure, axes_row, places


def _limits(axes: Axes, means: Iterable[Mean], logarithmic: bool = False) -> bool:
    """Room for all intervals; whether the axis is logarithmic, as it is where it should be."""
    finite = [mean for mean in means if math.isfinite(mean.mean)]
    ends = [mean.mean for mean in finite]
    ends += [end for mean in finite if mean.over for end in (mean.low, mean.high)]
    positive = [end for end in ends if end > 0]
    scaled = logarithmic or is_wide(positive)
    if positive:
        low, high = min(positive), max(positive)
        if scaled:
            set_logarithmic(axes, "x", low, high)
        stretch = max(1.0, _LEAST * low / high) ** 0.5
        low, high = low / stretch, high * stretch
        margin = (high / low) ** 0.06 if scaled else 0.06 * (high - low)
        axes.set_xlim(*((low / margin, high * margin) if scaled else (low - margin, high + margin)))
    if not scaled:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    return scaled


def _dot(axes: Axes, at: float, mean: Mean, look: Look, scaled: bool) -> None:
    if not math.isfinite(mean.mean) or (scaled and mean.mean <= 0):
        return
    least = 1e-3 * mean.mean if scaled else -math.inf
    draw_bar(axes, at, mean, look.colour, upright=False, least=least)
    edge: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.5}
    axes.plot(mean.mean, at, color=look.colour, marker=look.marker, ls="none", **edge)


def _words(row: Row, mean: Mean, index: int, column: Column) -> str:
    entry = row.entries[index]
    return "–" if entry is None else format_number(mean.mean, column, 1) + list_marks([entry])


def _print(axes: Axes, at: float, text: str) -> None:
    """A row's number, right of the axes."""
    axes.annotate(
        text,
        (1, at),
        xycoords=axes.get_yaxis_transform(),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
    )


PLOTS = (
    Plot("perplexity", draw_perplexity),
    Plot("perplexity_differences", draw_perplexity_differences),
    Plot("ablation", draw_ablation),
)
