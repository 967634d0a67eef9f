"""The pictures of a page: what is drawn in them, in words, and their files.

Not here: drawing them (`reports.plots`).
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_COLUMN = 1100  # px: plots are 3.3 or 7 inches wide, a column or a page, at 220 to the inch


@dataclass(frozen=True)
class Picture:
    """One figure, whose files are `plots/<name>.<suffix>`."""

    name: str
    title: str
    words: str  # what is drawn
    files: dict[str, bytes]  # suffix -> content: png, pdf
    chart: Mapping[str, Any] | None = None  # what the page's script draws in its place

    @property
    def caption(self) -> str:
        return f"{self.title}. {self.words}".strip()

    @property
    def embedded(self) -> str:
        """The PNG as an address that holds it."""
        return f"data:image/png;base64,{base64.b64encode(self.files['png']).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as the PNG's header has them."""
        width, height = struct.unpack(">II", self.files["png"][16:24])
        return width, height

    @property
    def is_wide(self) -> bool:
        """Whether it was drawn for a page's width: else its letters are half as large."""
        return self.size[0] > _COLUMN
