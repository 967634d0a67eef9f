"""Values that are computed again; what was made of them stands where they are what they were.

A stale or damaged value is taken out, and what it was is noted. Once it has been computed again the
two are compared. Where they differ, all that was made of the former one is taken out too, and the
next run makes it of the new one. The note stands until then, so that no stop loses a comparison.

    <root>/renewals/<key>.json    what the value was: a digest of its content

Not here: what is stale (`harness.run.states`), how it is computed (`harness.run.runner`).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.core.errors import StoreError
from harness.core.files import digest_json, explained, read_json, write_json
from harness.core.store import Store
from harness.run import plan as plans
from harness.run.plan import Plan
from harness.run.states import explain_staleness

# Of a value's files, what differs from one time to the next: the code behind it, seconds of steps.
_INCIDENTAL = ("code.json", "metrics.jsonl")


@dataclass
class Renewed:
    """What became of values that were computed again, by key."""

    same: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    taken_out: list[str] = field(default_factory=list)  # made of the `other`

    def tell(self, plan: Plan) -> list[str]:
        """What became of them, a line each."""
        lines = []
        if self.same:
            lines.append(f"computed again, as before: {_count_kinds(plan, self.same)}")
        if self.other:
            lines.append(f"computed again, other than before: {_count_kinds(plan, self.other)}")
        if self.taken_out:
            number = len(self.taken_out)
            lines.append(f"moved to the trash, to be computed again: {number} values made of those")
        return lines


def begin(plan: Plan, store: Store, roots: Iterable[str]) -> list[str]:
    """Take out what is stale of the values behind `roots`; its keys. Raises StoreError."""
    behind = {key for root in roots for key in plan.upstream(root)}
    stale = [key for key in plan.stored() if key in behind and explain_staleness(plan, key, store)]
    for key in stale:
        take_out(store, key, "stale")
    return stale


def take_out(store: Store, key: str, kind: str = "damaged") -> None:
    """Move a value to the trash, to be computed again and compared. Raises StoreError.

    `kind`: the folder of the trash. Of one whose manifest cannot be read nothing is known, and
    nothing noted.
    """
    note, manifest = _note(store, key), None
    with contextlib.suppress(StoreError):
        manifest = store.manifest(key)
    if manifest is not None:
        with explained(note):
            note.parent.mkdir(exist_ok=True)
            write_json(note, {"content": digest_content(manifest)})
    store.discard(key, kind)


def list_open(plan: Plan, store: Store, roots: Iterable[str] | None = None) -> list[str]:
    """Values of a plan, or of those behind `roots`, that were taken out and not compared since."""
    noted = {path.stem for path in (store.root / "renewals").glob("[!.]*.json")}
    if noted and roots is not None:
        noted &= {key for root in roots for key in plan.upstream(root)}
    return [key for key in plan.stored() if key in noted] if noted else []


def settle(plan: Plan, store: Store) -> Renewed:
    """Compare what has been computed again, and take out what the former values went into, of all
    grids whose plan the store keeps (of a grid whose file was changed since, its last one). Raises
    StoreError."""
    renewed, opened = Renewed(), list_open(plan, store)
    for key in opened:
        if not store.has(key):
            continue  # it is still to come
        was = read_note(_note(store, key))
        if was is not None and was == digest_content(store.manifest(key)):
            if not explain_staleness(plan, key, store):  # else it was noted, and never taken out
                renewed.same.append(key)
        else:
            renewed.other.append(key)
            for known in (plan, *plans.read_known(store)):
                renewed.taken_out += _take_out_made_of(known, store, key, opened)
        with explained(_note(store, key)):
            _note(store, key).unlink(missing_ok=True)
    return renewed


def digest_content(manifest: Mapping[str, Any]) -> str | None:
    """A digest of a value, without how and when it was computed; None of one without digests."""
    if "sha256" not in manifest:
        return None
    files = {name: each for name, each in manifest["sha256"].items() if name not in _INCIDENTAL}
    return digest_json({"files": files, "value": manifest["value"]})


def read_note(path: Path) -> str | None:
    """The digest in a note; None where it has none that can be read."""
    try:
        return read_json(path).get("content")
    except (OSError, StoreError):
        return None


def _take_out_made_of(plan: Plan, store: Store, key: str, opened: list[str]) -> list[str]:
    """Take out the kept values that a former value went into; their keys."""
    taken: list[str] = []
    if key not in plan.nodes:
        return taken
    for user in plan.stored():
        if user == key or key not in plan.upstream(user) or not store.path(user).exists():
            continue
        # Computed again too, after its inputs and so of the new one; what is stale still was not.
        if user in opened and store.has(user) and not explain_staleness(plan, user, store):
            continue
        store.discard(user, "outdated")
        taken.append(user)
    return taken


def _count_kinds(plan: Plan, keys: list[str]) -> str:
    kinds = Counter(plan.nodes[key].kind for key in keys)
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items())


def _note(store: Store, key: str) -> Path:
    return store.root / "renewals" / f"{key}.json"
