"""Pre-trained models by name: what a source of one must say, and the names that are registered.

    @dataclass(frozen=True)
    class Archive(ModelSource):
        about = "the archive's model of 2024"
        ...

    register_model("archive", Archive())

by a package with an entry point in the group `bitgrid.models`; a model that lies in a folder is
`register_model("archive", FolderModel(path, about="…"))`. Not here: models that need no name, a
folder's and the hub's (`sources`), their weights (`model`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.core.errors import ModelError
from harness.core.reads import Read
from harness.core.registry import Registry, find_caller
from harness.models.storage import Storage


class Pin(NamedTuple):
    """What tells a model's content: name in full, a digest or commit, and the hub's revision."""

    name: str
    digest: str
    revision: str = "main"


class ModelSource(ABC):
    """Where one pre-trained model comes from."""

    about: str  # a line for lists of models
    caveat: str | None = None  # what must be known of every score of the model

    @abstractmethod
    def pin(self, name: str) -> Pin:
        """What tells the content of the model that a grid calls `name` from any other.

        Raises ModelError where it is not there.
        """

    @abstractmethod
    def place(self, revision: str | None) -> dict[str, Any]:
        """Arguments of transformers' `from_pretrained`, the folder or hub id as `where`.

        Fetches or unpacks what has to be. `revision`: the pinned one, where there are any.
        """

    def folder(self) -> Path | None:
        """A folder, or GGUF file, that may be looked into at once; None where there is none yet."""
        return None

    def storage(self, pin: Pin) -> Storage | None:
        """What its files hold its weights as; None where they are not here yet."""
        return None

    def reads(self, pin: Pin) -> tuple[Read, ...]:
        """The files that the pin rests on, and what has to be fetched."""
        return ()

    def files(self, pin: Pin) -> tuple[Path, ...]:
        """All files that it is read from, of one folder, where they are here and a copy of them in
        another folder would do; none elsewhere."""
        return ()

    def holds(self, pin: Pin, paths: Sequence[Path]) -> bool:
        """Whether what is in `files`, or in copies of them, is what the pin says."""
        raise NotImplementedError


MODELS: Registry[ModelSource] = Registry("model", "bitgrid.models", error=ModelError)


def register_model(name: str, source: ModelSource) -> None:
    """Make a model known as `name`. Raises BitgridError where another one has the name."""
    MODELS.register(name, source, find_caller())
