"""The points of a grid: each of its methods, configured at every combination of the axes.

Not here: the stages that a point stands for (`expand`), what a setting means (`settings`).
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from harness.config.document import Document
from harness.config.settings import (
    check_possible,
    configure,
    describe_setting,
    is_possible,
    is_redefined,
    list_places,
    list_settings,
)
from harness.core.component import Component
from harness.core.errors import SettingError, nearest
from harness.core.misfit import Where, show
from harness.core.records import Match
from harness.core.seeds import Seeds
from harness.grid.contenders import Contender, list_contenders, list_inside
from harness.grid.reading import fit, is_beside
from harness.grid.schema import GridFile
from harness.grid.seeds import read_seeds
from harness.grid.showing import show_setting
from harness.method import Method


@dataclass(frozen=True)
class Point:
    """A method with all its settings, and the axes that it has, as tables show them."""

    contender: Contender
    source: str
    seed: int  # the number of its cell
    seeds: Seeds
    method: Method
    axes: dict[str, Any]
    tried: dict[str, Any]  # those of its settings that are tuned, as tables show them
    match: Match | None = None  # its training budget, in a grid that matches budgets


class Configured(NamedTuple):
    """A method at one point of a grid."""

    method: Method
    shown: dict[str, Any]  # the axes that it has, as tables show them
    axes: set[str]  # their names
    defaults: set[str]  # those of the grid's that it took
    kept: dict[tuple[str, str], str]  # (section, path) that it did not take, and why


def list_points(document: Document, file: GridFile) -> list[Point]:
    """Every method at every combination of the axes, in the order of the file.

    Axes that a method does not have collapse: its points there are equal. Raises GridError for an
    axis or a default that is a setting of none of them.
    """
    axes = _read_axes(document, file)
    contenders, seeds = list_contenders(document, file), read_seeds(document, file).seeds
    # A default may be for a component that this grid does not choose, since bases share defaults.
    methods = dict.fromkeys(type(each.entry.method) for each in contenders)
    known = {path for method in methods for path, *_ in list_places(method)}
    sections = (("vary", {*file.vary} - {"seed", "model"}), ("defaults", file.defaults))
    for section, paths in (*sections, ("tune", _read_tuned(file))):
        for path in paths:
            if not any(is_possible(method, path) for method in methods):
                message = f"{path!r} is not a setting of any method here; {nearest(path, known)}"
                raise document.error((section, path), message)
    _check_number(document, file, axes, len(contenders))
    points, used, taken = [], {"seed", "model"}, set()
    kept: dict[tuple[str, str], str] = {}
    for contender in contenders:
        alike: dict[tuple[int, ...], Configured] = {}  # by where its settings stand on their axes
        for places in itertools.product(*(range(len(values)) for values in axes.values())):
            at = dict(zip(axes, places, strict=True))
            chosen = {axis: axes[axis][place] for axis, place in at.items()}
            which = tuple(place for axis, place in at.items() if axis not in ("seed", "model"))
            if which not in alike:
                alike[which] = _configure(document, file, contender, chosen)
            made = alike[which]
            used |= made.axes
            taken |= made.defaults
            kept |= made.kept
            drawn = seeds[chosen["seed"]]
            points.append(_make_point(contender, chosen, drawn, made, _read_tuned(file)))
    for (section, path), why in kept.items():
        if path not in (taken if section == "defaults" else used):
            raise document.error((section, path), why)
        print(document.error((section, path), why), file=sys.stderr)
    for path in (path for path in axes if path not in used):
        axis = _find_mapping(axes, path)
        message = (
            f"{path!r} is not a setting of any method here; {nearest(path, known)}"
            if axis is None
            else f"{path!r} is said by the values of the axis {axis!r} already"
        )
        raise document.error((_find_section(file, path), path), message)
    for path, value in file.defaults.items():
        try:
            _check_default(points, path, value)
        except SettingError as error:
            raise document.error(("defaults", path), str(error)) from None
    return points


def _make_point(
    contender: Contender,
    chosen: Mapping[str, Any],
    seeds: Seeds,
    made: Configured,
    tuned: Container[str],
) -> Point:
    shown = made.shown.items()
    return Point(
        contender,
        chosen["model"],
        chosen["seed"],
        seeds,
        made.method,
        {path: value for path, value in shown if path not in tuned},
        {path: value for path, value in shown if path in tuned},
    )


def _check_number(
    document: Document, file: GridFile, axes: Mapping[str, list[Any]], methods: int
) -> None:
    """Raise GridError where a grid has more points than it says it may, before any is made."""
    number = methods * math.prod(map(len, axes.values()))
    if number > file.max_points:
        longest = max(axes, key=lambda path: len(axes[path]))
        section = _find_section(file, longest)
        raise document.error(
            (section, longest),
            f"{section}: {methods} methods at {number // methods:,} combinations are {number:,} "
            f"points; 'max_points: {number}' in the grid would let it have so many",
        )


def _check_default(points: Sequence[Point], path: str, value: Any) -> None:
    """Raise SettingError for a default that no method of the grid could have, used or not.

    An axis may overrule it everywhere, and so may what methods set themselves.
    """
    fault: SettingError | None = None
    entries = {point.contender.entry.name: point.contender.entry.method for point in points}
    for point in points:
        before = entries[point.contender.entry.name]
        if path not in dict(list_settings(point.method)) or is_redefined(
            point.method, path, before
        ):
            continue
        try:
            configure(point.method, {path: value})
            return
        except SettingError as error:
            fault = fault or error
    for method in () if fault else dict.fromkeys(map(type, entries.values())):
        try:
            check_possible(method, path, value)
            return
        except SettingError as error:
            fault = fault or error
    if fault is not None:
        raise fault


def _find_mapping(axes: Mapping[str, list[Any]], path: str) -> str | None:
    """The axis some of whose values are mappings that speak of `path`."""
    axis_of = {
        inside: a for a, each in axes.items() for v in each for inside in list_inside({a: v})
    }
    return axis_of.get(path)


def _read_axes(document: Document, file: GridFile) -> dict[str, list[Any]]:
    """The values of every axis; seed and model are axes of each grid."""
    tuned = _read_tuned(file)
    for path in tuned:
        if path in file.vary or path in ("seed", "model"):
            why = "is an axis of `vary` already" if path in file.vary else "cannot be tuned"
            raise document.error(("tune", path), f"tune: {path!r} {why}")
    axes = {**file.vary, **tuned}
    axes["seed"] = list(read_seeds(document, file).seeds)
    axes.setdefault("model", [file.model])
    for path, values in axes.items():
        if not values:
            raise document.error((_find_section(file, path), path), f"axis {path!r} has no values")
    axes["model"] = fit(document, ("vary", "model"), list[str], axes["model"])
    if file.model not in axes["model"] and is_beside(document, "model"):
        near = nearest(file.model, axes["model"])
        message = f"model: {file.model!r} is no value of the axis over models; {near}"
        raise document.error(("model",), message)
    return axes


def _read_tuned(file: GridFile) -> dict[str, list[Any]]:
    """The settings that are tuned, each with the values that are tried."""
    return {} if file.tune is None else file.tune.axes


def _find_section(file: GridFile, axis: str) -> str:
    """The key of the grid under which an axis stands."""
    return "tune" if axis in _read_tuned(file) else "vary"


def _configure(
    document: Document, file: GridFile, contender: Contender, chosen: Mapping[str, Any]
) -> Configured:
    """The method at one point.

    An axis wins over the main method's own settings; a compared method keeps what it sets itself
    and what makes it what it is, so that there the axis collapses. What is said beside a
    component's name wins over all that is said of such components in general, and so does a
    default by which the component differs from its family.
    """
    axis_of, varied = _choose_settings(contender, chosen)
    said = contender.fixed | list_inside(contender.own) | list_inside(varied)
    defaults = {path: value for path, value in file.defaults.items() if path not in said}
    settings = {**defaults, **contender.own, **varied}
    method, shown, kept = contender.entry.method, {}, {}
    # A component before its parts: `format: nf`, then `format.bits: 3`.
    for path in sorted(settings, key=lambda path: path.count(".")):
        section, where = _find_origin(file, contender, chosen, axis_of, path)
        is_lacking = path not in dict(list_settings(method))
        if is_lacking and section != "own":
            continue
        is_chosen = path.rpartition(".")[0] in settings
        is_general = section == "defaults" or (
            section in ("vary", "tune") and (is_chosen or not contender.main)
        )
        if is_general and is_redefined(method, path, contender.entry.method):
            kept[section, axis_of.get(path, path)] = _say_own(method, path, settings[path])
            continue
        try:
            method = configure(method, {path: settings[path]})
        except SettingError as error:
            inside = error.path.removeprefix(path).removeprefix(".")
            raise document.error(document.descend(where, inside), str(error)) from None
        if path in varied:
            shown[path] = show_setting(settings[path], dict(list_settings(method))[path])
    method, overruled = _lay_own_again(method, settings, axis_of, kept)
    for path in overruled:
        if contender.main:
            message = f"{path!r} is said by what {path.rpartition('.')[0]!r} holds itself"
            axis = axis_of[path]
            raise document.error((_find_section(file, axis), axis), message)
        shown.pop(path, None)
    in_order = {path: shown[path] for path in varied if path in shown}
    taken = {path for path in defaults if ("defaults", path) not in kept}
    return Configured(method, in_order, {axis_of[path] for path in shown}, taken, kept)


def _lay_own_again(
    method: Method,
    settings: Mapping[str, Any],
    axis_of: Mapping[str, str],
    kept: Mapping[tuple[str, str], str],
) -> tuple[Method, list[str]]:
    """The method, where what a list says of a member wins over what is said of all members, and
    what is said of a part that stands in for its kind over what is said of the kind; and the
    varied settings over which something won."""
    overruled = []
    passed_over = {path for _, path in kept}
    for above, value in settings.items():
        held = dict(list_settings(method)).get(above)
        stands_in = isinstance(held, Component) and held.stands_in is not None
        has_parts = isinstance(value, list) and any(isinstance(each, Mapping) for each in value)
        has_parts |= isinstance(value, Mapping) and stands_in
        if not has_parts or held is None or above in passed_over:
            continue
        method = configure(method, {above: value})
        for path in (path for path in axis_of if path.startswith(f"{above}.")):
            if configure(method, {path: settings[path]}) != method:
                overruled.append(path)
    return method, overruled


def _find_origin(
    file: GridFile,
    contender: Contender,
    chosen: Mapping[str, Any],
    axis_of: Mapping[str, str],
    path: str,
) -> tuple[str, Where]:
    """Which part of the grid a setting is from: vary, own (the method's entry) or defaults."""
    if path in axis_of:
        axis = axis_of[path]
        section = _find_section(file, axis)
        values = file.vary[axis] if section == "vary" else _read_tuned(file)[axis]
        return section, (section, axis, values.index(chosen[axis]))
    if path in contender.own:
        return "own", (*contender.where, path)
    return "defaults", ("defaults", path)


def _say_own(method: Method, path: str, value: Any) -> str:
    """That a component keeps its own value of a setting, and how to give it another."""
    held = dict(list_settings(method))
    above, _, field = path.rpartition(".")
    name = describe_setting(held[above])
    return (
        f"{path}: {show(value)} is not for {name!r}, whose own is {show(held[path])}; "
        f"'{above}: {{name: {name}, {field}: {show(value)}}}' would say it of that one"
    )


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
        settings = {axis: value}
        if axis in fixed:
            settings = _list_parts(contender.entry.method, axis, value)
        for path, part in settings.items():
            if path not in fixed:
                axis_of[path], varied[path] = axis, part
    for path in list_inside(varied) & varied.keys():  # said beside a name, which wins
        del axis_of[path], varied[path]
    return axis_of, varied


def _list_parts(method: Method, axis: str, value: Any) -> dict[str, Any]:
    """What an axis value says beside the component's name, for a method that keeps its own.

    `format: {name: nf, bits: 3}` still says `format.bits: 3` where the format is kept; not what
    means something else in the component that it names.
    """
    if not isinstance(value, Mapping):
        return {}
    try:
        named = configure(method, {axis: value}) if "name" in value else method
    except SettingError:
        named = method  # said where it stands
    parts = {f"{axis}.{part}": setting for part, setting in value.items() if part != "name"}
    return {path: part for path, part in parts.items() if not is_redefined(named, path, method)}
