"""Texts by name: `texts("wikitext2", "train")` is a stage whose value is a list of documents.

A grid names a text as NAME or NAME:PART (`testbed:stories`, `wikitext2:validation`, `file:PATH`).
What a name stands for is registered, by a package with an entry point in the group `bitgrid.texts`:

    @dataclass(frozen=True)
    class Letters(TextSource):
        about = "letters of the archive"

        def pin(self, part: str, split: str, access: Access) -> str:
            return "letters-2024"                        # another one where the documents differ

        def documents(self, part: str, split: str, access: Access) -> list[str]:
            ...

    register_text("letters", Letters())

Not here: any text, data sets of the hub (`hub`), token blocks (`tokens`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness.core.errors import TextError, nearest
from harness.core.reads import Read
from harness.core.registry import Registry, find_caller
from harness.core.stage import Stage, incidental
from harness.data.hub import Access, current, find_access

SPLITS = ("train", "calibration", "heldout")


class TextSource(ABC):
    """Where the documents of a registered name come from.

    `part` is what a grid says after the name and a colon, or "". `split` is one of `SPLITS`.
    """

    about: str  # a line for `bitgrid tasks` and the docs
    caveat: str | None = None  # what must be known of every score on the text
    whole_prompts: bool = False  # a prompt is given to a model as it is, not only its opening
    quick: bool = False  # reading takes no time, so that the documents are looked into early

    def resolve(self, part: str) -> str:
        """The part as keys hold it: another spelling of one thing is the same thing."""
        return part

    @abstractmethod
    def pin(self, part: str, split: str, access: Access) -> str:
        """What tells the content from any other: a commit, a version, a digest.

        Raises TextError where there is no such part or split, or where it cannot be read.
        """

    @abstractmethod
    def documents(self, part: str, split: str, access: Access) -> list[str]:
        """What is packed and scored."""

    def prompts(self, part: str, split: str, access: Access) -> list[str]:
        """What a model is given to continue."""
        return self.documents(part, split, access)

    def reads(self, part: str, split: str, access: Access) -> tuple[Read, ...]:
        """The files and data sets that `pin` rests on."""
        return ()

    def uses(self) -> tuple[Callable[..., Any] | type, ...]:
        """The classes and functions whose code makes the documents."""
        return (type(self),)


TEXTS: Registry[TextSource] = Registry("text", "bitgrid.texts", error=TextError)


def register_text(name: str, source: TextSource) -> None:
    """Make a text known as `name`. Raises BitgridError where another one has the name."""
    TEXTS.register(name, source, find_caller())


def find_text(text_name: str) -> tuple[TextSource, str]:
    """What a text named as in a grid comes from, and the part of it."""
    name, _, part = text_name.partition(":")
    return TEXTS.find(name), part


@dataclass(frozen=True)
class Documents(Stage[list[str]]):
    """The documents of one split of a text. `digest` pins what a name alone does not."""

    kind: ClassVar[str] = "documents"
    stored: ClassVar[bool] = False
    source: str  # as a grid names it, with its part
    split: str
    prompts: bool = False  # what a model is given to continue, not what is packed
    digest: str = ""
    mirror: str | None = incidental(None)  # data sets are read from it; BITGRID_MIRROR goes before

    def uses(self) -> tuple[Callable[..., Any] | type, ...]:
        return find_text(self.source)[0].uses()

    def reads(self) -> tuple[Read, ...]:
        source, part = find_text(self.source)
        return source.reads(part, self.split, current(self.mirror))

    @property
    def quick(self) -> bool:
        """Whether the documents may be read before anything runs, to look into them."""
        return find_text(self.source)[0].quick

    def read(self) -> list[str]:
        """The documents. Raises TextError where there are none."""
        source, part = find_text(self.source)
        access = find_access(self.mirror)
        read = source.prompts if self.prompts else source.documents
        contents = read(part, self.split, access)
        if not any(map(str.strip, contents)):
            raise TextError(f"text {self.source!r}, split {self.split!r}: no documents")
        return contents

    def run(self, work: Path) -> list[str]:
        return self.read()


def texts(text_name: str, split: str, prompts: bool = False) -> Documents:
    """The stage of a text named as in a grid.

    Raises TextError, with the nearest name, and where the text cannot be read: a data set that is
    neither mirrored nor reachable, a broken file.
    """
    if split not in SPLITS:
        raise TextError(f"split {split!r} is unknown; {nearest(split, SPLITS)}")
    source, part = find_text(text_name)
    access = current()
    try:
        part = source.resolve(part)
        digest = source.pin(part, split, access)
    except TextError as error:
        raise TextError(f"text {text_name!r}: {error}") from error
    name = text_name.partition(":")[0]
    folder = None if access.folder is None else str(access.folder)
    return Documents(f"{name}:{part}" if part else name, split, prompts, digest, folder)


def gives_whole_prompts(text_name: str) -> bool:
    """Whether a model is given a text's prompts as they are, or only the opening of each."""
    return find_text(text_name)[0].whole_prompts
