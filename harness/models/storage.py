"""What the files of a published model hold its weights as, by their headers.

    storage = read_gguf(path)           # Storage(types=("Q4_1",), bits_per_weight=5.0)

A model that was unpacked from four bits is a four-bit model, in whichever type it is computed; one
whose files hold codes that nothing here unpacks is refused. Not here: weights (`model`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from harness.core.errors import ModelError
from harness.models.parts import read_text_config

_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # in files
_BITS = {"F64": (53, 11), "F32": (24, 8), "F16": (11, 5), "BF16": (8, 8)}  # precision, exponent
_IN_BLOCKS = re.compile(r"\.\d+\..*(?<!bias)$")  # but for masks, which old files call a bias
_LEGACY = ("quantize_config.json", "quant_config.json")  # of GPTQ's and AWQ's own programs


@dataclass(frozen=True)
class Storage:
    """The types of the matrices of a model's blocks, the most frequent first, and what they cost:
    bits a weight, scales counted."""

    types: tuple[str, ...]
    bits_per_weight: float

    @classmethod
    def plain(cls, dtype: str | None) -> Storage | None:
        """Of weights in one of torch's types, by its name; None where that is none of them."""
        name = _NAMES.get(dtype or "")
        return None if name is None else cls((name,), float(_width(name)))

    @property
    def is_quantized(self) -> bool:
        return not _BITS.keys() >= set(self.types)

    @property
    def title(self) -> str:
        """What tables call a model of such weights: BF16, FP32, `Q4_1 (as published)`."""
        names = [re.sub("^F(?=[0-9]+$)", "FP", name) for name in self.types]
        return "+".join(names) + (" (as published)" if self.is_quantized else "")

    def is_rounded_to(self, dtype: str | None) -> bool:
        """Whether weights may change when they are read as `dtype`, a name of torch's."""
        if dtype not in _NAMES:
            return False
        kept = _BITS[_NAMES[dtype]]
        # Codes times scales are unpacked to float32.
        published = [_BITS.get(name, _BITS["F32"]) for name in self.types]
        return any(has > can for bits in published for has, can in zip(bits, kept, strict=True))

    def read_as(self, dtype: str | None) -> Storage:
        """What is left of it in `dtype`: a wider type adds nothing to what was published."""
        is_narrowed = not self.is_quantized and self.is_rounded_to(dtype)
        return (Storage.plain(dtype) if is_narrowed else None) or self

    def tell(self, source: str, dtype: str | None) -> str | None:
        """In words, that a model was published in few bits, or is rounded to `dtype`."""
        types, rounded = "+".join(self.types), self.is_rounded_to(dtype)
        if self.is_quantized:
            told = f", rounded to {dtype} when they are read" if rounded else ""
            return (
                f"{source} was published as {types}, in {self.bits_per_weight:.2f} bits a weight "
                "of its blocks, scales counted: those weights are the full-precision model here, "
                f"and what every method begins with{told}"
            )
        if rounded:
            return f"{source} was published in {types}: it is rounded to {dtype} when it is read"
        return None


def read_gguf(path: Path) -> Storage | None:
    """Of a GGUF file; None where it has no blocks."""
    import gguf

    reader = gguf.GGUFReader(path)
    tensors = [each for each in reader.tensors if each.name.startswith("blk.")]
    return _sum_up(
        (each.tensor_type.name, int(each.n_elements), 8 * int(each.n_bytes))
        for each in tensors
        if len(each.shape) > 1
    )


def read_safetensors(folder: Path) -> Storage | None:
    """Of the files in a folder, by their headers; None where there are none, or no blocks."""
    parts: list[tuple[str, int, int]] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                tensor = file.get_slice(name)
                shape = tensor.get_shape()
                if len(shape) > 1 and _IN_BLOCKS.search(f".{name}"):
                    size = torch.Size(shape).numel()
                    parts.append((tensor.get_dtype(), size, size * _width(tensor.get_dtype())))
    return _sum_up(parts)


def check_unquantized(name: str, config: PreTrainedConfig, folder: Path | None = None) -> None:
    """Raise ModelError for a model whose weights are codes, by its configuration or its files."""
    format = _name_format(config) or _name_format(read_text_config(config))
    if format is None and folder is not None:
        format = _find_codes(folder)
    if format is not None:
        raise ModelError(
            f"model {name!r} is quantised already ({format}): methods start from weights, not from "
            "codes; name the model that it was made from, or a GGUF file, which is unpacked"
        )


def _find_codes(folder: Path) -> str | None:
    if legacy := next((each for each in _LEGACY if (folder / each).is_file()), None):
        return f"it has a {legacy}"
    try:
        storage = read_safetensors(folder)
    except (SafetensorError, OSError):
        return None  # a damaged file is said where it is loaded
    return ", ".join(storage.types) if storage and storage.is_quantized else None


def _name_format(config: PreTrainedConfig) -> str | None:
    """The method of a configuration's `quantization_config`, and its bits where it says them."""
    given: Any = getattr(config, "quantization_config", None)
    if not given:
        return None
    facts: Mapping[str, Any] = given if isinstance(given, Mapping) else given.to_dict()
    method = getattr(facts.get("quant_method"), "value", facts.get("quant_method"))
    bits = facts.get("bits") or facts.get("w_bit")
    bits = bits or next((n for n in (4, 8) if facts.get(f"load_in_{n}bit")), None)
    return f"{method or 'an unnamed format'}{f', {bits} bits' if bits else ''}"


def _sum_up(parts: Iterable[tuple[str, int, int]]) -> Storage | None:
    """Of (type, weights, bits) of each matrix."""
    weights: Counter[str] = Counter()
    total = 0
    for name, count, bits in parts:
        weights[name] += count
        total += bits
    if not weights:
        return None
    return Storage(tuple(name for name, _ in weights.most_common()), total / weights.total())


def _width(name: str) -> int:
    """Bits of a type by its name in safetensors: F16, U8, F8_E4M3."""
    return 1 if name == "BOOL" else int(re.findall(r"\d+", name)[0])
