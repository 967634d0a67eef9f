"""What `bitgrid methods` lists: methods and their parts, the settings of each, and their meanings.

    <cache>/methods/<place>.json      what was listed last, and the files that it was read from

The methods themselves import torch, which takes seconds, so what they say is remembered: while no
file of the project or of a plug-in came or went, or has changed but in the bodies of functions that
run later, and the same entry points are there, the list is read and nothing is imported. Not here:
the methods (`harness.method`), what of a file counts (`declarations`), plans that are remembered so
(`harness.run.remembering`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from harness.core.definitions import ROOT
from harness.core.files import write_json
from harness.core.paths import cache_folder
from harness.core.provenance import list_sources
from harness.run.declarations import read_declarations
from harness.run.plan import is_unchanged, mark_file

SCHEMA = 3
GROUP = "bitgrid.methods"
_KINDS = ("methods", "parts")
# What makes a list of methods, and not only stands in one: it counts whole.
_DESCRIBING = tuple(ROOT / "harness" / part for part in ("core", "config", "run", "method.py"))


@dataclass(frozen=True)
class Setting:
    """A dotted path that a grid may set. `remarks`: what it may be, and when it stays as it is."""

    path: str
    value: str
    meaning: str
    remarks: tuple[str, ...]

    @property
    def text(self) -> str:
        """Meaning and remarks in a line."""
        return "; ".join(filter(None, (self.meaning, *self.remarks)))


@dataclass(frozen=True)
class Listed:
    """A method as it is listed, or a part of one, whose title is its name."""

    name: str
    title: str
    about: str
    source: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Listing:
    """All methods by name, their parts by `family/name`, and why some methods are unavailable."""

    methods: Mapping[str, Listed]
    parts: Mapping[str, Listed]
    unavailable: Mapping[str, str]


def list_methods() -> Listing:
    """All methods: as remembered where nothing changed, else by importing them."""
    is_imported = "harness.method" in sys.modules  # then memory would save nothing
    listing = None if is_imported else recall()
    if listing is None:
        listing = read_methods()
        if not is_imported:
            remember(listing)
    return listing


def read_methods() -> Listing:
    """All methods, imported."""
    from harness.method import METHODS, list_parts

    methods = {name: _describe(entry) for name, entry in METHODS.load().items()}
    return Listing(
        methods,
        {name: describe_part(cls) for name, cls in sorted(list_parts().items())},
        {
            name: f"unavailable: {missing.reason} ({os.path.relpath(missing.file)})"
            for name, missing in METHODS.unavailable().items()
        },
    )


def recall() -> Listing | None:
    """The remembered list; None where there is none, or where something has changed since."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RuntimeError):
        kept = json.loads(_find_place().read_text())
        watched = {path for path, *_ in kept["watch"]}
        is_same = (
            kept["schema"] == SCHEMA
            and kept["points"] == _list_points()
            and watched >= set(map(str, list_sources()))
            and all(
                is_unchanged((path, size, when)) or _digest(Path(path)) == digest
                for path, size, when, digest in kept["watch"]
            )
        )
        if is_same:
            methods, parts = ({each["name"]: _read(each) for each in kept[kind]} for kind in _KINDS)
            return Listing(methods, parts, {})
    return None


def remember(listing: Listing) -> None:
    """Keep a list for `recall`, where that can be done.

    One with unavailable methods is not kept: what they lack may be installed without a trace here.
    """
    if listing.unavailable:
        return
    with contextlib.suppress(OSError, RuntimeError):  # a user without a home has no cache
        place = _find_place()
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            place,
            {
                "schema": SCHEMA,
                "points": _list_points(),
                "watch": [(*mark_file(path), _digest(path)) for path in sorted(_list_files())],
                "methods": [asdict(each) for each in listing.methods.values()],
                "parts": [asdict(each) for each in listing.parts.values()],
            },
        )


def keep() -> None:
    """Remember the list, where it is not, once the methods are imported anyway."""
    if recall() is None:
        remember(read_methods())


def _digest(path: Path) -> str:
    """Of what in a file a list may be made of. Raises OSError."""
    text = path.read_text(errors="replace")
    if not any(path.is_relative_to(part) for part in _DESCRIBING):
        text = read_declarations(text)
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


def _read(raw: Any) -> Listed:
    settings = (Setting(**{**each, "remarks": tuple(each["remarks"])}) for each in raw["settings"])
    return Listed(**{**raw, "settings": tuple(settings)})


def _find_place() -> Path:
    """One file for each installation."""
    where = f"{ROOT} {sys.prefix} {sys.version}"
    return cache_folder() / "methods" / f"{hashlib.sha256(where.encode()).hexdigest()[:12]}.json"


def _list_points() -> list[str]:
    """The entry points that are there, as text."""
    return sorted(f"{point.name} = {point.value}" for point in entry_points(group=GROUP))


def _list_files() -> set[Path]:
    """The project's files, and those of all packages that register a method."""
    from harness.method import METHODS

    tops = {point.module.partition(".")[0] for point in entry_points(group=GROUP)}
    imported = {
        Path(file)
        for name, module in sys.modules.items()
        if name.partition(".")[0] in tops and (file := getattr(module, "__file__", None))
    }
    return {*list_sources(), *METHODS.files(), *imported}


def describe_part(cls: Any) -> Listed:
    """A part of a method, with its fields as they are when nothing is said."""
    from harness.config.meanings import list_meanings
    from harness.config.settings import describe_setting, find_families
    from harness.core.checked import field_types

    meanings, families, settings = list_meanings(cls), find_families(cls), []
    for field in dataclasses.fields(cls):
        choices = _list_choices(families.get(field.name), field_types(cls)[field.name])
        default = "required"
        if field.default_factory is not dataclasses.MISSING:
            default = describe_setting(field.default_factory())
        elif field.default is not dataclasses.MISSING:
            held = field.default
            default = held if isinstance(held, str) else describe_setting(held)
        settings.append(Setting(field.name, default, meanings.get(field.name, ""), choices))
    about = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    source = inspect.getsourcefile(cls) or ""
    return Listed(cls.identity_name(), cls.own_name(), about, source, tuple(settings))


def _list_choices(family: Any, hint: object) -> tuple[str, ...]:
    """What a field may be, where that is one of some, as a remark."""
    from harness.core.hints import list_choices

    choices = [] if family is None else sorted(family.siblings())
    for each in list_choices(hint):
        choices += map(str, get_args(each) if get_origin(each) is Literal else ())
    return (f"of {', '.join(choices)}",) if choices else ()


def _describe(entry: Any) -> Listed:
    from harness.config.meanings import find_owner, list_meanings
    from harness.config.settings import describe_setting, find_families, list_settings
    from harness.core.checked import field_types
    from harness.core.component import Component

    settings, families = [], find_families(type(entry.method))
    for path, value in list_settings(entry.method):
        owner, name = find_owner(entry.method, path), path.rpartition(".")[2]
        remarks = [*_list_choices(families.get(path), field_types(owner)[name])]
        if path in entry.fixed:
            remarks.append("fixed where only compared against")
        is_group = hasattr(value, "__dataclass_fields__") and not isinstance(value, Component)
        text = value if isinstance(value, str) else describe_setting(value)
        shown = "" if is_group else text
        meaning = list_meanings(owner).get(name, "")
        settings.append(Setting(path, shown, meaning, tuple(remarks)))
    return Listed(entry.name, entry.title, entry.about, entry.source, tuple(settings))
