"""What a stage reads from outside of the graph: files, data sets, models, that its key rests on.

A plan is made anew when one of the files changes; `bitgrid prefetch` fetches what lies on a hub.
Not here: any kind of thing that is read; each room has its own.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fetched:
    """One thing that a grid reads and that is here now; `new` where it was not before."""

    name: str
    revision: str
    size: int  # bytes
    new: bool

    def __str__(self) -> str:
        kilobytes = f"{self.size / 1e3:,.1f} kB"
        state = "fetched" if self.new else "there"
        return f"{self.name:56} {self.revision[:12]:12} {kilobytes:>16}  {state}"


class Read(ABC):  # noqa: B024  (every part has a default)
    """One thing that a stage reads. Subclasses are frozen dataclasses: equal ones are one."""

    def files(self) -> Iterable[Path]:
        """The files on this machine that the stage's key rests on."""
        return ()

    def fetch(self) -> Fetched | None:
        """Bring it here where there is a network. None where there is nothing to fetch."""
        return None

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be fetched, in words for the user; None where it can."""
        return None


@dataclass(frozen=True)
class LocalFiles(Read):
    """Files of the user's own, and those that come with a package."""

    paths: tuple[Path, ...]

    def files(self) -> Iterable[Path]:
        return self.paths
