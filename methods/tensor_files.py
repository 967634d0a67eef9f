"""Tensors in files that are whole or not there: what a stage keeps for its next attempt.

    keep_tensors(path, tensors, "block 3")     # safetensors, with a digest of all its bytes
    kept = read_kept(path)                     # None where it is not whole

Not here: values of stages, which the store writes; what is in a file (`checkpoint`, `walking`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.core.errors import BitgridError

_DIGEST = "sha256"  # the last tensor of a file: of all bytes before it
_DIGEST_BYTES = hashlib.sha256().digest_size
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}


def keep_tensors(path: Path, tensors: Mapping[str, Tensor], what: str) -> None:
    """Write tensors on the host for whoever goes on; where the disk fails, the work does all the
    same, and a warning says that `what` is not kept."""
    specs = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    try:
        write_checked(path, specs, tensors.values())
    except OSError as error:
        warnings.warn(f"{what} is not kept: {error}", stacklevel=2)


def write_checked(
    path: Path,
    specs: Mapping[str, tuple[torch.dtype, torch.Size]],
    tensors: Iterable[Tensor | None],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """A safetensors file with a digest, whole or not at all. Raises OSError.

    `specs`: type and shape of each of `tensors`, which are written one at a time; the library's own
    writer would want all at once.
    """
    header: dict[str, Any] = {"__metadata__": {"facts": json.dumps(facts or {})}}
    end = 0
    for name, (dtype, shape) in {
        **specs,
        _DIGEST: (torch.uint8, torch.Size([_DIGEST_BYTES])),
    }.items():
        start, end = end, end + dtype.itemsize * shape.numel()
        header[name] = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    draft, digest = path.with_suffix(".draft"), hashlib.sha256()
    try:
        with draft.open("wb") as file:
            head = [len(text).to_bytes(8, "little"), text]
            for part in chain(head, _read_bytes(specs, tensors)):
                digest.update(part)
                file.write(part)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _read_bytes(
    specs: Mapping[str, tuple[torch.dtype, torch.Size]], tensors: Iterable[Tensor | None]
) -> Iterator[bytes | memoryview]:
    for (name, (dtype, shape)), tensor in zip(specs.items(), tensors, strict=True):
        # The offsets count on it, and a file that breaks them reads as other weights.
        if tensor is None or tensor.shape != shape or tensor.dtype != dtype:
            stored_type = None if tensor is None else (tensor.dtype, tuple(tensor.shape))
            raise BitgridError(f"{name} is {stored_type}, not {dtype} {tuple(shape)}")
        yield tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def read_kept(path: Path) -> dict[str, Tensor] | None:
    """What `keep_tensors` wrote; None where it is not there, or not whole."""
    if not is_whole(path):
        return None
    # Copied: products of mapped tensors, which lie anywhere, may round otherwise than those of a
    # run that was not interrupted.
    return {name: tensor.clone() for name, tensor in load_file(path).items() if name != _DIGEST}


def map_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """What `write_checked` wrote, mapped, and the digest that it ends with, which is not compared.
    Raises OSError."""
    tensors = load_file(path)
    return tensors, bytes(tensors.pop(_DIGEST).tolist()).hex()


def is_whole(path: Path) -> bool:
    """Whether a file of `write_checked` is there and has the bytes that were written."""
    try:
        left = path.stat().st_size - _DIGEST_BYTES
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while left > 0 and (part := file.read(min(left, 2**20))):
                digest.update(part)
                left -= len(part)
            return left == 0 and file.read() == digest.digest()
    except OSError:
        return False
