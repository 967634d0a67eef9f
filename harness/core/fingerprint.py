"""What a value is, part by part: so that a change to it is noticed, and named.

    before = fingerprint(model)          # part -> digest or plain value
    find_change(before, fingerprint(model))      # the first part that is another one, or None

A value says its own parts in a method `fingerprint`; of others they are found: tensors, numbers and
texts in dataclasses, mappings and sequences. Not here: when values are looked at (`execution`,
`store`).
"""

from __future__ import annotations

import dataclasses
import sys
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Fingerprint: TypeAlias = Mapping[str, Any]

_AT_ONCE = 2**22  # numbers of 64 bits that are digested together
_LOW_32, _LOW_35 = 2**32 - 1, 2**35 - 1

# By identity: a value is looked at before each stage that takes it, and is the same after the last.
_known: dict[int, Fingerprint] = {}


def fingerprint(thing: Any) -> Fingerprint:
    """The parts of a value by name: tensors as digests, all else as it is."""
    if hasattr(thing, "fingerprint"):
        known: Fingerprint = thing.fingerprint()
        return known
    return dict(_find_parts("", thing))


def recall_fingerprint(thing: Any) -> Fingerprint:
    """`fingerprint`, taken only once of a value that must not change as long as it lives."""
    if id(thing) not in _known:
        found = fingerprint(thing)
        try:
            weakref.finalize(thing, _known.pop, id(thing), None).atexit = False
        except TypeError:  # plain data cannot be watched, and is small
            return found
        _known[id(thing)] = found
    return _known[id(thing)]


def forget_fingerprint(thing: Any) -> None:
    """A value was changed after all."""
    _known.pop(id(thing), None)


def find_change(before: Fingerprint, after: Fingerprint) -> str | None:
    """The first part that differs, is new or is gone; None where there is none."""
    names = [*before, *(name for name in after if name not in before)]
    lacks = object()
    return next((n for n in names if before.get(n, lacks) != after.get(n, lacks)), None)


def digest_tensor(tensor: Tensor) -> tuple[Any, ...]:
    """Dtype, shape, and a digest over all bytes, computed where they lie.

    The sum modulo 2^64 of its 64-bit words, each mixed one to one in a way that depends on its
    place. A change of one word always shows. Changes of several could cancel in the sum: of random
    ones about one case in 2^64 does, of others nothing is proved. It is there to notice mistakes,
    not to withstand intent. Nothing is copied but 2^22 words at a time.
    """
    import torch

    if tensor.is_meta:
        return str(tensor.dtype), tuple(tensor.shape)
    flat = tensor.detach().reshape(-1)
    size = _AT_ONCE * 8 // max(flat.element_size(), 1)
    words = min(_AT_ONCE, -(-flat.numel() * flat.element_size() // 8))
    odd = torch.arange(words, device=flat.device, dtype=torch.int64)
    odd = odd.mul_(-7046029254386353131 & ~1).add_(1)  # 2^64 over the golden ratio, made even
    total = 0
    for number, part in enumerate(flat.split(size) if len(flat) else ()):
        values = _as_words(part)
        # Each step maps words one to one; shifts bring high bits, all that some floats have, down.
        # Torch's shift repeats the sign, which would give a word and its complement one digest.
        mixed = ((values >> 32) & _LOW_32).bitwise_xor_(values).mul_(odd[: len(values)])
        summed = int(mixed.bitwise_xor_((mixed >> 29) & _LOW_35).sum())
        total = (total * 6364136223846793005 + summed + number) % 2**64
    return str(tensor.dtype), tuple(tensor.shape), total


def _as_words(part: Tensor) -> Tensor:
    """The bytes of a tensor as int64, zeros after them; a copy only where they are not aligned."""
    import torch

    raw = part.contiguous().view(torch.uint8) if part.dtype != torch.bool else part.byte()
    if len(raw) % 8:
        raw = torch.nn.functional.pad(raw, (0, 8 - len(raw) % 8))
    if raw.storage_offset() % 8:
        raw = raw.clone()
    return raw.view(torch.int64)


def _find_parts(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    torch = sys.modules.get("torch")  # where nobody imported it there is no tensor
    if torch is not None and isinstance(thing, torch.Tensor):
        yield name, digest_tensor(thing)
    elif hasattr(thing, "fingerprint"):
        yield from ((f"{name}.{part}", digest) for part, digest in thing.fingerprint().items())
    elif isinstance(thing, Mapping):
        yield name, tuple(sorted(map(str, thing)))
        for key, item in thing.items():
            yield from _find_parts(f"{name}.{key}" if name else str(key), item)
    elif isinstance(thing, list | tuple):
        yield name, len(thing)
        for index, item in enumerate(thing):
            yield from _find_parts(f"{name}[{index}]", item)
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        for field in dataclasses.fields(thing):
            inner = f"{name}.{field.name}" if name else field.name
            yield from _find_parts(inner, getattr(thing, field.name))
    else:
        yield name, thing if isinstance(thing, str | int | bool | None) else repr(thing)
