"""The points of a grid: each of its methods, configured at every combination of the axes.

Not here: the stages that a point stands for (`expand`), what a setting means (`settings`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.config.document import Document
from harness.config.settings import configure, list_possible, list_settings
from harness.core.errors import GridError, SettingError, nearest
from harness.core.misfit import Where
from harness.core.scalars import forget_text
from harness.grid.reading import fit
from harness.grid.schema import GridFile, Seed
from harness.method import METHODS, Entry, Method


@dataclass(frozen=True)
class Contender:
    """A method as one grid names it: the main one, or one that is compared with it."""

    where: Where
    entry: Entry
    label: str
    own: Mapping[str, Any]  # the settings that it names itself
    main: bool
    is_labelled: bool = True  # by the grid itself

    @property
    def fixed(self) -> set[str]:
        """The settings that the grid's axes and defaults leave alone."""
        return set() if self.main else {*self.entry.fixed, *self.own}


@dataclass(frozen=True)
class Point:
    """A method with all its settings, and the axes that it has, as tables show them."""

    contender: Contender
    source: str
    seed: int
    method: Method
    axes: dict[str, Any]


def list_points(document: Document, file: GridFile) -> list[Point]:
    """Every method at every combination of the axes, in the order of the file.

    Axes that a method does not have collapse: its points there are equal. Raises GridError for an
    axis or a default that is a setting of none of them.
    """
    axes = _read_axes(document, file)
    contenders = _list_contenders(document, file)
    points, used = [], {"seed", "model"}
    for contender in contenders:
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            method, shown, varying = _configure(document, file, contender, chosen)
            used |= varying
            points.append(Point(contender, chosen["model"], chosen["seed"], method, shown))
    # A default may be for a component that this grid does not choose, since bases share defaults.
    known = {path for each in contenders for path in list_possible(each.entry.method)}
    for section, paths, valid in (("vary", file.vary, used), ("defaults", file.defaults, known)):
        for path in paths:
            if path not in valid:
                message = f"{path!r} is not a setting of any method here; {nearest(path, known)}"
                raise document.error((section, path), message)
    return points


def _read_axes(document: Document, file: GridFile) -> dict[str, list[Any]]:
    """The values of every axis; seed and model are axes of each grid."""
    axes = dict(file.vary)
    axes.setdefault("seed", file.seed if isinstance(file.seed, list) else [file.seed])
    axes.setdefault("model", [file.model])
    for path, values in axes.items():
        if not values:
            raise document.error(("vary", path), f"axis {path!r} has no values")
    axes["seed"] = fit(document, ("vary", "seed"), list[Seed], axes["seed"])
    axes["model"] = fit(document, ("vary", "model"), list[str], axes["model"])
    return axes


def _list_contenders(document: Document, file: GridFile) -> list[Contender]:
    places: list[tuple[Where, str | dict[str, Any]]] = [(("method",), file.method)]
    places += [(("compare", number), item) for number, item in enumerate(file.compare)]
    contenders = []
    for where, item in places:
        own = {"name": item} if isinstance(item, str) else dict(item)
        name = own.pop("name", None)
        if name is None:
            raise document.error(where, "a method needs a 'name'")
        try:
            entry = METHODS.find(str(name))
        except GridError as error:
            raise document.error((*where, "name"), str(error)) from None
        is_labelled = "label" in own
        label = fit(document, (*where, "label"), str, own.pop("label", entry.title))
        if not (label := " ".join(label.split())):
            raise document.error((*where, "label"), "label: '' should name the method in tables")
        contenders.append(Contender(where, entry, label, own, where == ("method",), is_labelled))
    return contenders


def _configure(
    document: Document, file: GridFile, contender: Contender, chosen: Mapping[str, Any]
) -> tuple[Method, dict[str, Any], set[str]]:
    """The method at one point, the axes that it has as tables show them, and their names.

    An axis wins over the main method's own settings; a compared method keeps what it sets itself
    and what makes it what it is, so that there the axis collapses.
    """
    axis_of, varied = _choose_settings(contender, chosen)
    defaults = {path: v for path, v in file.defaults.items() if path not in contender.fixed}
    settings = {**defaults, **contender.own, **varied}
    method, shown = contender.entry.method, {}
    # A component before its parts: `format: nf`, then `format.bits: 3`.
    for path in sorted(settings, key=lambda path: path.count(".")):
        where: Where = (*contender.where, path) if path in contender.own else ("defaults", path)
        if path in varied:
            axis = axis_of[path]
            where = ("vary", axis, file.vary[axis].index(chosen[axis]))
        is_lacking = path not in dict(list_settings(method))
        if is_lacking and (path in varied or path not in contender.own):
            continue
        try:
            method = configure(method, {path: settings[path]})
        except SettingError as error:
            raise document.error(where, str(error)) from None
        if path in varied:
            shown[path] = _show(settings[path], dict(list_settings(method))[path])
    in_order = {path: shown[path] for path in varied if path in shown}
    return method, in_order, {axis_of[path] for path in shown}


def _choose_settings(
    contender: Contender, chosen: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, Any]]:
    """The axis that each varied setting comes from, and the settings."""
    fixed = contender.fixed
    axis_of: dict[str, str] = {}
    varied: dict[str, Any] = {}
    for axis, value in chosen.items():
        if axis in ("seed", "model"):
            continue
        settings = _list_parts(axis, value) if axis in fixed else {axis: value}
        for path, part in settings.items():
            if path not in fixed:
                axis_of[path], varied[path] = axis, part
    return axis_of, varied


def _list_parts(axis: str, value: Any) -> dict[str, Any]:
    """What an axis value says beside the component's name, for a method that keeps its own.

    `format: {name: nf, bits: 3}` still says `format.bits: 3` where the format is kept.
    """
    if not isinstance(value, Mapping):
        return {}
    return {f"{axis}.{part}": setting for part, setting in value.items() if part != "name"}


def _show(value: Any, held: object) -> Any:
    """An axis value, which a method now holds, as tables show it: `{name: nf, bits: 3}` -> `nf
    bits=3`. Text is what it was in the file, a number what it is worth."""
    if isinstance(value, Mapping):
        name = [str(value["name"])] if "name" in value else []
        parts = {k: _show(v, getattr(held, k, None)) for k, v in value.items() if k != "name"}
        return " ".join(name + [f"{k}={part}" for k, part in parts.items()])
    return held if isinstance(held, str) else forget_text(value)
