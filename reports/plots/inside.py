"""A model from inside: its weights, the error of each layer, where its loss comes from."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from harness.core.records import Confidence, Diagnostic, Histogram, Level, Weights
from reports.numbers.columns import format_bits
from reports.plots import style
from reports.plots.context import Context, Drawing, Plot
from reports.plots.panels import draw_legend, is_wide, make_handle, set_logarithmic, write_remark
from reports.plots.style import Widths

_LETTERS = 26  # of a line of a panel's title
_PANELS = 8  # of a figure over both columns
_RARE = 0.05  # share of the groups below which a level is not drawn
_LEAST = 10  # labels below which a mean loss is noise
BEFORE = "before training"  # the step of a record

Kind = TypeVar("Kind", bound=Diagnostic)


class Step(NamedTuple):
    """One step of a method at the fewest bits, under the name of the row whose result it is."""

    title: str
    record: Weights


def list_steps(records: Sequence[Diagnostic], names: Mapping[str, str]) -> list[Step]:
    """The distinct steps whose weights were looked at, of the grid's fewest bits, in order.

    Methods share steps: what clipping gives is a step of one row and the result of another, whose
    name it then has.
    """
    records_of_weights = _of_fewest_bits(records, Weights)
    titles: dict[str, str] = {}
    for last in {record.cell: record for record in records_of_weights}.values():
        titles.setdefault(last.key, names[last.cell])
    for record in records_of_weights:
        titles.setdefault(record.key, f"{names[record.cell]}: {record.step}")
    distinct = {record.key: record for record in records_of_weights}
    return [Step(titles[key], record) for key, record in distinct.items()]


def draw_weights(context: Context) -> Drawing | None:
    """A panel a step: the histogram of one layer, with the levels that it is rounded to."""
    all_steps = list_steps(context.export.diagnostics, context.summary.names)
    shown = all_steps[:_PANELS]
    if not shown:
        return None
    figure, panels = _grid(context.widths, len(shown), 1.25)
    ends = [end for step in shown for end in _ends(step.record.histogram)]
    for axes, (title, record) in zip(panels, shown, strict=True):
        _histogram(axes, record.histogram)
        axes.set_xlim(1.03 * min(ends), 1.03 * max(ends))
        axes.set_title(textwrap.fill(title, _LETTERS))
        axes.set_xlabel("weight")
        axes.set_yticks([])
        axes.grid(False)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    layers = dict.fromkeys(step.record.histogram.layer for step in shown)
    write_remark(figure, [", ".join(layers), *_cut(all_steps)])
    draw_legend(
        figure,
        [
            Patch(facecolor=style.WEIGHTS, label="weights before rounding"),
            Line2D([], [], color=style.LEVELS, label="levels"),
        ],
    )
    levels = [level for step in shown for level in step.record.histogram.levels]
    words = []
    if levels:
        words.append(
            "lines are the median over groups of each level counted from zero, fainter where fewer "
            "groups have it; bands reach from quartile to quartile"
        )
    if any(level.share < _RARE for level in levels):
        words.append(f"levels that fewer than {100 * _RARE:g} % of the groups have are not drawn")
    if any(step.record.histogram.outside for step in shown):
        words.append("some weights lie outside what is drawn")
    words.append(_describe_choice(context, Weights))
    return Drawing(figure, "Weights of one layer and the levels they are rounded to", words)


def _ends(histogram: Histogram) -> list[float]:
    """Where a histogram and its levels end."""
    quartiles = (end for level in _frequent(histogram) for end in level.quartiles)
    return [histogram.low, histogram.high, *quartiles]


def _frequent(histogram: Histogram) -> list[Level]:
    return [level for level in histogram.levels if level.share >= _RARE]


def _histogram(axes: Axes, histogram: Histogram) -> None:
    counts = np.asarray(histogram.counts, dtype=float)
    edges = np.linspace(histogram.low, histogram.high, len(counts) + 1)
    if len(counts):
        axes.stairs(counts / counts.max(), edges, fill=True, color=style.WEIGHTS)
    for level in _frequent(histogram):
        low, middle, high = level.quartiles
        strength = math.sqrt(level.share)
        axes.axvspan(low, high, color=style.LEVELS, alpha=0.25 * strength, lw=0)
        axes.axvline(middle, color=style.LEVELS, alpha=strength, lw=1.2)


def draw_errors(context: Context) -> Drawing | None:
    """A heat map a step: layers over projections, all on one scale."""
    all_steps = list_steps(context.export.diagnostics, context.summary.names)
    shown = all_steps[:_PANELS]
    if not shown:
        return None
    import seaborn  # slow, and only here

    columns = list(dict.fromkeys(e.projection for step in shown for e in step.record.errors))
    blocks = 1 + max(e.block for step in shown for e in step.record.errors)
    tables, unknown = [], 0
    for step in shown:
        table = np.full((blocks, len(columns)), np.nan)
        for each in step.record.errors:
            table[each.block, columns.index(each.projection)] = each.error
            unknown += not math.isfinite(each.error)
        tables.append(np.where(np.isfinite(table), table, np.nan))
    largest = max((float(np.nanmax(t)) for t in tables if np.isfinite(t).any()), default=1.0)
    figure, panels = _grid(context.widths, len(shown), min(4.0, max(0.9, 0.13 * blocks)))
    for number, (axes, step, table) in enumerate(zip(panels, shown, tables, strict=True)):
        seaborn.heatmap(
            table,
            ax=axes,
            vmin=0,
            vmax=largest,
            cmap=style.HEAT,
            cbar=False,
            xticklabels=_short(columns),
            yticklabels="auto" if number % _across(len(shown)) == 0 else False,
            rasterized=True,
        )
        axes.set_title(textwrap.fill(step.title, _LETTERS))
        axes.tick_params(length=0, labelrotation=0)
        axes.tick_params(axis="x", labelrotation=90)
        axes.grid(False)
        if number % _across(len(shown)) == 0:
            axes.set_ylabel("block")
    bar = figure.colorbar(panels[0].collections[0], ax=panels, aspect=30, pad=0.01)
    bar.outline.set_visible(False)
    bar.set_label("relative error")
    notes = [f"{unknown} layers not finite, left white"] if unknown else []
    write_remark(figure, [*notes, *_cut(all_steps)])
    words = [
        "|rounded − full precision| / |full precision| of the weights, Frobenius norms; after "
        "training it includes what training moved, after scaling it is against the scaled weights",
        _describe_choice(context, Weights),
    ]
    return Drawing(figure, "Quantisation error of each layer", words)


def draw_confidence(context: Context) -> Drawing | None:
    """The mean loss of a token, and the share of the loss, by how sure the teacher is of it."""
    names, looks = context.summary.names, context.looks
    measured = _of_fewest_bits(context.export.diagnostics, Confidence)
    measured = [record for record in measured if sum(record.tokens)]
    if not measured:
        return None
    shown = list(dict.fromkeys(names[record.cell] for record in measured))[:_PANELS]
    figure = Figure(figsize=(context.widths.column, 3.3))
    above, below = figure.subplots(2, 1, sharex=True)
    means: list[float] = []
    notes = []
    drawn: list[Confidence] = []
    for record in measured:
        name = names[record.cell]
        if name not in shown:
            continue
        tokens, loss = np.asarray(record.tokens, float), np.asarray(record.loss, float)
        edges = np.linspace(0, 1, len(tokens) + 1)
        enough = tokens >= _LEAST
        each = np.where(enough, loss * tokens.sum() / np.maximum(tokens, 1), np.nan)
        means += [float(mean) for mean in each if mean > 0]
        drawn.append(record)
        before = record.step == BEFORE
        line = {"color": looks[name].colour, "ls": ":" if before else looks[name].dash}
        above.plot((edges[1:] + edges[:-1]) / 2, each, marker=".", ms=3, **line)
        if loss.sum() > 0:
            below.plot(edges, 100 * np.append(0, loss.cumsum()) / loss.sum(), **line)
        if record.unbounded:
            text = f"{record.unbounded} tokens without a finite loss left out"
            notes.append(f"{name}, {record.step}: {text}")
    share = np.append(0, np.cumsum(measured[0].tokens)) / sum(measured[0].tokens)
    below.fill_between(
        np.linspace(0, 1, len(share)), 100 * share, color=style.FRONT, lw=0, label="tokens"
    )
    if is_wide(means):
        set_logarithmic(above, "y", min(means), max(means))
    above.set_ylabel("loss of a token")
    below.set_ylabel("cumulative share (%)")
    below.set_xlabel("teacher's probability of the label")
    rest = len({names[record.cell] for record in measured}) - len(shown)
    write_remark(figure, [*notes, *([f"{rest} more methods not drawn"] if rest else [])])
    handles = [make_handle(looks[name], name, line=True) for name in shown]
    alike = all(record.tokens == measured[0].tokens for record in drawn)
    dotted = any(record.step == BEFORE for record in drawn)
    draw_legend(
        figure,
        [
            *handles,
            *([Line2D([], [], color=style.REFERENCE, ls=":", label=BEFORE)] if dotted else []),
            Patch(facecolor=style.FRONT, label="tokens" if alike else f"tokens ({shown[0]})"),
        ],
    )
    return Drawing(figure, "Where the loss comes from", _describe_losses(context, drawn))


def _describe_losses(context: Context, drawn: Sequence[Confidence]) -> list[str]:
    """Only of what was drawn."""
    words = ["by the teacher's probability of the label, on a sample of the training data"]
    if any(record.step == BEFORE for record in drawn):
        words.append("dotted before training")
    if any(0 < tokens < _LEAST for record in drawn for tokens in record.tokens):
        words.append(f"no mean loss of fewer than {_LEAST} labels")
    called = (context.wording.name_value("objective", record.objective) for record in drawn)
    objectives = dict.fromkeys(called)
    if len(objectives) > 1:
        words.append(f"only losses of one objective compare (here {', '.join(objectives)})")
    return [*words, _describe_choice(context, Confidence)]


def _describe_choice(context: Context, kind: type[Diagnostic]) -> str:
    """Of which seeds and width the records are that were drawn."""
    of_kind = [record for record in context.export.diagnostics if isinstance(record, kind)]
    chosen = _of_fewest_bits(of_kind, kind)
    seeds = sorted({str(each.seed) for each in chosen if each.seed is not None})
    width = f"{format_bits(chosen[0].bits)} bits"
    width += ", the fewest" if len({record.bits for record in of_kind}) > 1 else ""
    return f"seed {', '.join(seeds)}; {width}" if seeds else width


def _of_fewest_bits(records: Sequence[Diagnostic], kind: type[Kind]) -> list[Kind]:
    of_kind = [record for record in records if isinstance(record, kind)]
    fewest = min((record.bits for record in of_kind), default=0)
    return [record for record in of_kind if record.bits == fewest]


def _grid(widths: Widths, count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Panels of `height` inches, four to a row or three, the last row perhaps shorter."""
    across = _across(count)
    down = math.ceil(count / across)
    width = widths.choose(count > 2)
    figure = Figure(figsize=(width, (height + 0.55) * down))
    panels = list(figure.subplots(down, across, squeeze=False).flatten())
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def _across(count: int) -> int:
    return min(count, 3 if count in (5, 6) else 4)


def _cut(all_steps: Sequence[Step]) -> list[str]:
    return [f"the first {_PANELS} of {len(all_steps)} steps"] if len(all_steps) > _PANELS else []


def _short(names: Sequence[str]) -> list[str]:
    """`down` for `mlp.down_proj`, where that stays unique."""
    short = [name.rpartition(".")[2].removesuffix("_proj") for name in names]
    return short if len(set(short)) == len(short) else list(names)


PLOTS = (
    Plot("weights", draw_weights),
    Plot("errors", draw_errors),
    Plot("confidence", draw_confidence),
)
