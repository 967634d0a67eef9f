"""What a stage computes: the type of its value, and whether it comes back from its files.

A value is JSON facts, or an object whose class has `save(folder) -> facts` and
`load(folder, facts) -> value`. It may have `check()`, which raises BitgridError where the value is
not what it says, and `fingerprint()`, a digest by part, by which a change is noticed.
"""

from __future__ import annotations

import json
import typing
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import StoreError, ValueChanged
from harness.core.fingerprint import find_change, fingerprint, recall_fingerprint

if TYPE_CHECKING:
    from harness.core.stage import Stage


def find_value_type(cls: type[Stage[Any]]) -> type:
    """T of the `Stage[T]` that a stage class derives from."""
    from harness.core.stage import Stage  # here: verbs that only read manifests start without it

    for parent in cls.__mro__:
        for base in getattr(parent, "__orig_bases__", ()):
            if typing.get_origin(base) is Stage:
                (kind,) = typing.get_args(base)
                return typing.get_origin(kind) or kind
    raise StoreError(f"{cls.__name__} does not say what it computes: derive it from Stage[...]")


def check_written(stage: Stage[Any], result: Any, folder: Path, facts: Any) -> None:
    """Raise ValueChanged, naming the part, where a value's files would give back another one."""
    kind = find_value_type(type(stage))
    if not hasattr(kind, "load") or not isinstance(result, kind):
        return
    options = {"on_host": True} if "on_host" in signature(kind.load).parameters else {}
    loaded = kind.load(folder, json.loads(json.dumps(facts)), **options)
    if (part := find_change(recall_fingerprint(result), fingerprint(loaded))) is not None:
        raise ValueChanged(
            f"{stage.subject}: {part} of its {kind.__name__.lower()} does not come back from its "
            "files as it is; nothing was stored"
        )
