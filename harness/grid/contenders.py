"""The methods that a grid names, as it names them.

Not here: what they are at the points of the grid (`points`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.config.document import Document
from harness.core.errors import GridError
from harness.core.misfit import Where, show
from harness.grid.reading import fit
from harness.grid.schema import GridFile
from harness.method import METHODS, Entry

_LONGEST_LABEL = 120  # characters


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
    def said(self) -> set[str]:
        """The settings that its own entry names, those inside of mappings too."""
        return {*self.own, *list_inside(self.own)}

    @property
    def fixed(self) -> set[str]:
        """The settings that the grid's axes and defaults leave alone."""
        return set() if self.main else {*self.entry.fixed, *self.said}


def list_contenders(document: Document, file: GridFile) -> list[Contender]:
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
        label = " ".join(label.split())
        if not any(letter.isprintable() and letter != " " for letter in label):
            raise document.error((*where, "label"), "label: '' should name the method in tables")
        if len(label) > _LONGEST_LABEL:
            message = f"label: {show(label)} should be at most {_LONGEST_LABEL} characters"
            raise document.error((*where, "label"), message)
        contenders.append(Contender(where, entry, label, own, where == ("method",), is_labelled))
    return contenders


def list_inside(settings: Mapping[str, Any]) -> set[str]:
    """The paths of which mappings speak: of `format: {name: nf, bits: 3}`, `format.bits`."""
    paths: set[str] = set()
    for path, value in settings.items():
        if isinstance(value, Mapping):
            parts = {f"{path}.{part}": each for part, each in value.items() if part != "name"}
            paths |= parts.keys() | list_inside(parts)
    return paths
