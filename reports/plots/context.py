"""What every plot is drawn from, and what a plot is.

Not here: how anything looks (`style`), the numbers that several plots need (`data`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from matplotlib.figure import Figure

from reports.numbers.effects import Effect, compute_effects
from reports.numbers.model_columns import find_objective
from reports.numbers.summary import Summary
from reports.numbers.wording import Wording
from reports.plots import data, style
from reports.plots.chart import Chart
from reports.plots.style import Look, Widths
from reports.reading.export import Export


@dataclass(frozen=True)
class Context:
    """An export and its summary, with what is made of both for plots."""

    export: Export
    summary: Summary

    @cached_property
    def wording(self) -> Wording:
        """What axes and settings are called."""
        return Wording(self.summary.grid.report.names)

    @property
    def widths(self) -> Widths:
        """Of figures: see `report.width`."""
        return style.find_widths(self.summary.grid.report.width)

    @cached_property
    def models(self) -> pd.DataFrame:
        """One row a distinct model of each row of the table: see `data.list_models`."""
        return data.list_models(self.export.rows, self.summary)

    @cached_property
    def effects(self) -> tuple[Effect, ...]:
        """Of an axis that alone varies, or that the grid names: computed once."""
        return compute_effects(self.export)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """The training curves with the `name` of their row."""
        curves = self.export.curves
        return curves.assign(name=curves["cell"].map(self.summary.names))

    @cached_property
    def objectives(self) -> dict[str, str]:
        """What each row with curves was trained on, by its name; empty where it is not known."""
        keys = self.export.rows.drop_duplicates("cell").set_index("cell")["model_key"]
        found: dict[str, str] = {}
        for name, cell in self.curves.drop_duplicates("cell")[["name", "cell"]].to_numpy():
            objective = find_objective(str(keys.get(cell, "")), self.export.stages)
            objective = self.wording.name_value("objective", objective)
            found[str(name)] = objective if found.get(str(name), objective) == objective else ""
        return found

    @cached_property
    def looks(self) -> dict[str, Look]:
        """How each row looks, by its name: the same in all plots."""
        methods = [row.name for row in self.summary.rows if not row.reference]
        return style.make_looks([*methods, *self.curves["name"]])


@dataclass(frozen=True)
class Drawing:
    """A figure and what is said of it: statements of what was drawn, made where it is drawn."""

    figure: Figure
    title: str
    sentences: Sequence[str] = ()  # each without its full stop
    chart: Chart | None = None  # what the page's script draws in its place

    @property
    def words(self) -> str:
        """The caption under the title."""
        return " ".join(f"{sentence[:1].upper()}{sentence[1:]}." for sentence in self.sentences)


@dataclass(frozen=True)
class Plot:
    """A figure of a report. To add one, list it in `PLOTS` of the file that draws it."""

    name: str  # of its files
    draw: Callable[[Context], Drawing | None]  # None where the export has nothing to show
