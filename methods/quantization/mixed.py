"""A format that differs by layer.

    format: {name: mixed, default: {name: int-asym, bits: 2},
             layers: {"*.down_proj": {bits: 4}, "model.layers.0.*": none, lm_head: {bits: 8}}}

Of the patterns that match a layer's name the first wins. Embeddings and head lie outside of the
blocks: they are rounded where a pattern is their very name, and not by one with wildcards. Not
here: rounding layer by layer (`rounding`), what the other formats are (`formats`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar

from torch import Tensor

from harness.core.component import Changes
from harness.core.errors import BitgridError, FormatError, SettingError, nearest
from harness.models import Quantized
from methods.quantization.formats import Format, IntAsym


@dataclass(frozen=True)
class Mixed(Format):
    """`layers`: a format by pattern (`*`, `?`, `[abc]`) of a layer's name; the first that matches
    wins. A mapping without a name is `default` with those fields changed."""

    name = "mixed"
    stands_in: ClassVar[str] = "default"
    default: Format = IntAsym(bits=2)  # of layers that no pattern matches
    # Formats by pattern of a layer's name.
    layers: Mapping[str, Format | Changes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in self.kinds():
            if isinstance(kind, Mixed):
                raise FormatError("a mixed format has no mixed one inside")

    def of(self, layer: str) -> Format:
        pattern = self._find_pattern(layer)
        return self.default if pattern is None else self._resolve(pattern)

    def kinds(self) -> tuple[Format, ...]:
        return tuple(dict.fromkeys((self.default, *map(self._resolve, self.layers))))

    def for_rounding(self) -> Mixed:
        layers = {pattern: self._resolve(pattern).for_rounding() for pattern in self.layers}
        return Mixed(self.default.for_rounding(), layers)

    def of_end(self, name: str) -> Format | None:
        return self._resolve(name) if name in self.layers else None

    def check_names(self, layers: Collection[str], ends: Collection[str]) -> None:
        """Raises FormatError for a pattern that decides no layer's format."""
        winners = {name: self._find_pattern(name) for name in layers}
        for pattern in self.layers:
            if pattern in ends or pattern in winners.values():
                continue
            before = [winners[name] for name in layers if fnmatchcase(name, pattern)]
            if before:
                raise FormatError(
                    f"format.layers: {pattern!r} decides no layer, since {before[0]!r} stands "
                    "before it; the first that matches wins"
                )
            kinds = {f"*.{name.rpartition('.')[2]}" for name in layers}
            near = nearest(pattern, {*ends, *(kinds if "*" in pattern else layers)})
            raise FormatError(f"format.layers: {pattern!r} matches no layer; {near}")

    def _find_pattern(self, layer: str) -> str | None:
        return next((each for each in self.layers if fnmatchcase(layer, each)), None)

    def _resolve(self, pattern: str) -> Format:
        """The format of a pattern. Raises SettingError where it changes what is not there."""
        own = self.layers[pattern]
        if isinstance(own, Format):
            return own
        try:
            return own.apply(self.default)
        except BitgridError as error:
            inside = f"layers.{pattern}"
            path = error.path if isinstance(error, SettingError) else ""
            message = str(error).removeprefix(f"{path}: ")
            full = f"{inside}.{path}" if path else inside
            raise SettingError(f"{full}: {message}", full) from None

    def quantize(self, weight: Tensor) -> Tensor:
        raise self._refuse()

    def bits_per_weight(self, in_features: int) -> float:
        raise self._refuse()

    def describe(self, in_features: int) -> Quantized:
        raise self._refuse()

    def check(self, layer: str, in_features: int) -> None:
        self.of(layer).check(layer, in_features)

    def _refuse(self) -> BitgridError:
        return BitgridError("a mixed format is another one in each layer: see `Format.of`")
