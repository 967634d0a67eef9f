"""Which numbers of several grids may be set side by side, and what keeps others apart.

Two numbers compare that are of one task and metric, of models made from one full-precision model at
one revision, and measured alike. There is no ranking over grids: what differs between two of them
beside the method, such as training data, was not held equal, and no test was paired over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reports.numbers.columns import Quantity, name_metric
from reports.numbers.summary import Summary
from reports.pages.page import PROTOCOL_TITLES, describe_value
from reports.pages.sheet import Cell, Sheet
from reports.reading.export import Export

Named = tuple[str, Export, Summary]
"""A grid with its title."""

_CAPTION = (
    "A line names the grids whose numbers of a task and metric compare: of one full-precision "
    "model, measured alike. Numbers of two lines do not compare. Nothing was tested between grids: "
    "what is bold, and ranks, hold within one, and what they held equal, as training data, is each "
    "grid's own. An average compares where all its tasks do. A number with a mark was measured "
    "otherwise than its column. To rank methods of several grids, list them in one: models and "
    "scores that are stored are not computed again."
)


def make_sheet(grids: Sequence[Named]) -> Sheet:
    """A group a task and metric that several grids have; a line those that were measured alike."""
    measured: dict[Quantity, dict[str, dict[str, str]]] = {}
    for name, (title, export, summary) in zip(_tell_apart(grids), grids, strict=True):
        model = describe_model(title, export, summary)
        columns = [column for column in summary.columns if column.task is not None]
        for column, usual in zip(columns, summary.protocols, strict=True):
            facts = {words: describe_value(usual[key]) for key, words in PROTOCOL_TITLES.items()}
            measured.setdefault(column.quantity, {})[name] = {"Model": model, **facts}
    shared = {quantity: own for quantity, own in measured.items() if len(own) > 1}
    if not shared:
        sentence = "No task and metric is measured in two of these grids: no numbers compare."
        return Sheet("comparable", sentence, head=(), groups=())
    alone = [
        f"{_name_quantity(quantity)} ({next(iter(own))})"
        for quantity, own in measured.items()
        if len(own) == 1
    ]
    more = f" In one grid alone: {', '.join(alone)}." if alone else ""
    return Sheet(
        name="comparable",
        caption=_CAPTION + more,
        head=("Task and metric", "Grids", "Measured otherwise than in the other lines"),
        groups=tuple(tuple(_list_lines(each, own)) for each, own in shared.items()),
        left=3,
    )


def describe_model(title: str, export: Export, summary: Summary) -> str:
    """The full-precision models of a grid with their digests; one that is not recorded is told from
    all others."""
    digests: dict[str, list[str]] = {}
    for stage in export.stages.values():
        source, digest = stage.stage.get("source"), stage.stage.get("digest")
        if stage.name.lower() == "pretrained" and digest:
            digests.setdefault(str(source), []).append(str(digest)[:12])
    return ", ".join(
        f"{model} ({' and '.join(sorted(set(digests[model])))})"
        if model in digests
        else f"{model} (of {title}, revision not recorded)"
        for model in summary.models
    )


def _tell_apart(grids: Sequence[Named]) -> list[str]:
    """Titles, with the folder where several grids have one."""
    titles = [title for title, _, _ in grids]
    return [
        f"{title} ({export.folder})" if titles.count(title) > 1 else title
        for title, export, _ in grids
    ]


def _name_quantity(quantity: Quantity) -> str:
    task, metric, filter_name = quantity
    return f"{task} {name_metric(metric, filter_name)}"


def _list_lines(quantity: Quantity, own: dict[str, dict[str, str]]) -> Iterator[tuple[Cell, ...]]:
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, facts in own.items():
        alike.setdefault(tuple(facts.values()), []).append(name)
    fields = list(next(iter(own.values())))
    differ = [place for place in range(len(fields)) if len({each[place] for each in alike}) > 1]
    for values, names in alike.items():
        told = "; ".join(f"{fields[place]}: {values[place]}" for place in differ)
        yield Cell(_name_quantity(quantity)), Cell(", ".join(names)), Cell(told or "all alike")
