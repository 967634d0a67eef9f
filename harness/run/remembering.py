"""What a store remembers of grids: the last plan of each file, and the keys of all its versions.

    <root>/plans/<stem>-<place>.json            the last plan: read in place of the grid
    <root>/grids/<stem>-<place>.<content>.json  which keys a version of the grid has

<place> is a digest of the file's path, <content> one of the keys. A version is written before its
plan and never overwritten by another one, so a grid whose file is edited, renamed, moved, lost or
out of reach is known until `bitgrid gc` is asked to forget it. What lies in `grids/` has a schema
of its own, which outlives those of plans.
Not here: what a plan is (`harness.run.plan`), what may be removed (`harness.cluster.garbage`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.core.errors import BitgridError, GridError, StoreError
from harness.core.files import write_json
from harness.core.paths import check_file_name
from harness.core.store import Store
from harness.core.trash import Trash
from harness.run import plan as plans
from harness.run.basis import digest_content, find_again, list_moved
from harness.run.plan import Plan, begin, read, write
from harness.run.trials import are_due

SCHEMA = 1


def remembered(path: Path, store: Store) -> Plan | None:
    """The kept plan of a grid file, or None where what it was made from has changed since, or
    where trials have ended by which it chooses settings.

    One of the same content that was kept of another file, as of a copy of the grid or in another
    copy of the project, is kept for this one too.
    """
    place = _place(path, store)
    if (plan := _recall(place, path, store)) is not None:
        return plan
    others = (_recall(other, path, store) for other in _list_alike(path, place))
    plan = next((each for each in others if each is not None), None)
    return None if plan is None else remember(plan, store)


def _recall(place: Path, path: Path, store: Store) -> Plan | None:
    """The plan in a file, where it holds for the grid at `path`."""
    try:
        plan = _bring(read(place), path)
    except BitgridError:  # of another version, broken or unreadable: it is made anew
        return None
    return None if plan is None or are_due(plan, store) else plan


def _list_alike(path: Path, place: Path) -> list[Path]:
    """The plans of other files of the same text, the latest first."""
    with contextlib.suppress(OSError, StoreError):
        head = begin(digest_content(path))
        alike = [each for each in _list_json(place.parent) if each != place and _has(each, head)]
        return sorted(alike, key=_changed, reverse=True)
    return []


def _has(file: Path, head: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(head)) == head


def _bring(plan: Plan, path: Path) -> Plan | None:
    """A plan as it would be made for the grid at `path`; None where it would be another one.

    Raises GridError for a file that has no name for a grid.
    """
    basis = find_again(plan.basis, path)
    if basis is None:
        return None
    moved, left = list_moved(plan.basis, basis)
    if left and any(json.dumps(folder)[1:-1] in _describe_stages(plan) for folder in left):
        return None  # a key or a field names the other place
    nodes = plan.nodes
    if moved:
        marks = {old: (new.path, new.size, new.changed) for old, new in moved.items()}
        nodes = {
            key: replace(node, files=tuple(marks.get(mark[0], mark) for mark in node.files))
            for key, node in nodes.items()
        }
    name, where = check_file_name(path.stem, GridError), str(path.resolve())
    return replace(plan, name=name, path=where, nodes=nodes, basis=basis)


def _describe_stages(plan: Plan) -> str:
    return json.dumps([node.stage for node in plan.nodes.values()])


def remember(plan: Plan, store: Store, required: bool = False) -> Plan:
    """Keep a plan, so that later verbs need not build it; they do where the store is only read.

    The plan that comes back says of new stages why they are new, by the plan that was kept before.
    Values of the plan that lie in the store's trash are put back. `required`: where values are to
    be computed, which only a plan in memory keeps; raises StoreError where it cannot be written.
    """
    place = _place(Path(plan.path), store)
    version = _find_version(place, plan.nodes)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, StoreError):
            before = json.loads(place.read_text())["nodes"]
            plan = _with_reasons(plan, before)
            older = _find_version(place, before)
            if not older.exists():  # an earlier version of bitgrid wrote that plan alone
                _write_version(read_plan(place, ""), older)
        known = Known(version, plan.name, plan.path, frozenset(plan.nodes), 0, True)
        _write_version(known, version)
        write(plan, place)
        _write_version(known, version)  # after the plan: it is known to be of this version
        Trash(store.root).restore(plan.nodes)
    except (OSError, StoreError) as error:
        if required:
            raise StoreError(f"the store {store.root} cannot be written: {error}") from None
    return plan


@dataclass(frozen=True)
class Known:
    """A version of a grid that the store remembers."""

    file: Path  # of the memory: a version, or a plan that no version stands for
    name: str
    path: str  # of the grid
    keys: frozenset[str]
    planned: int  # when it was planned last, in ns since the epoch
    latest: bool  # of the versions of its path

    @property
    def id(self) -> str:
        return self.file.stem

    @cached_property
    def standing(self) -> str:
        """`there`, `lost` or `out of reach`, as its file is; `earlier`: planned anew since."""
        standing = look_for(Path(self.path))
        return "earlier" if standing == "there" and not self.latest else standing

    @property
    def place(self) -> str:
        """The name of the plan of its path."""
        return self.id.rpartition(".")[0] or self.id

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.planned / 1e9))
        return f"{self.id}: {self.path}, planned {when}"


def list_known(store: Store) -> list[Known]:
    """All versions of grids that the store remembers, by path, the latest of each last.

    A plan that was written by a version of bitgrid which kept no versions of grids, or after them,
    counts as one. Raises StoreError, with what to do, where one cannot be understood: what it needs
    is not known.
    """
    versions = [_read_version(path) for path in _list_json(store.root / "grids")]
    newest: dict[str, int] = {}
    for version in versions:
        newest[version.place] = max(newest.get(version.place, 0), version.planned)
    for path in _list_json(store.root / "plans"):
        if _changed(path) > newest.get(path.stem, -1):
            versions.append(read_plan(path, "`bitgrid plan` its grid anew"))
    versions.sort(key=lambda version: (version.path, version.planned))
    last = {version.path: version.planned for version in versions}
    return [replace(each, latest=each.planned == last[each.path]) for each in versions]


def look_for(path: Path) -> str:
    """Whether a file is `there`, `lost` or `out of reach`: then nobody can say.

    A file is lost where its folder can be looked into and does not have it. A folder that is not
    there either may be one that is not mounted on this machine.
    """
    try:
        path.stat()
        return "there"
    except FileNotFoundError:
        try:
            return "out of reach" if path.name in os.listdir(path.parent) else "lost"
        except OSError:
            return "out of reach"
    except (OSError, ValueError):
        return "out of reach"


def _find_version(place: Path, keys: Iterable[str]) -> Path:
    """The file of the version with these keys of the grid whose plan is at `place`."""
    content = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:8]
    return place.parent.parent / "grids" / f"{place.stem}.{content}.json"


def _write_version(known: Known, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"name": known.name, "path": known.path, "keys": sorted(known.keys)}
    write_json(path, {"schema": SCHEMA, **facts}, indent=None)
    if known.planned:
        os.utime(path, ns=(known.planned, known.planned))


def _read_version(path: Path) -> Known:
    facts = _read_facts(path)
    if facts.get("schema") != SCHEMA:
        raise StoreError(
            f"{path} is of another version of bitgrid, so what it needs is not known and nothing "
            "is removed: run gc of that version"
        )
    return _make_known(path, facts, facts.get("keys"))


def read_plan(path: Path, remedy: str) -> Known:
    """What a plan of this or an earlier version needs: all of them list keys under `nodes`.

    Raises StoreError, which ends in `remedy`.
    """
    facts = _read_facts(path)
    schema = facts.get("schema")
    if not isinstance(schema, int) or schema > plans.SCHEMA:
        raise StoreError(
            f"{path} is of another version of bitgrid, so what it needs is not known and nothing "
            f"is removed: run gc of that version, or {remedy}"
        )
    return _make_known(path, facts, facts.get("nodes"))


def _make_known(path: Path, facts: Mapping[str, Any], keys: Any) -> Known:
    name, grid = facts.get("name"), facts.get("path")
    if not isinstance(name, str) or not isinstance(grid, str) or not isinstance(keys, list | dict):
        raise _unreadable(path, "it lacks a name, a path or keys")
    return Known(path, name, grid, frozenset(keys), _changed(path), True)


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(facts, dict):
        raise _unreadable(path, "it is no object")
    return facts


def _unreadable(path: Path, why: object) -> StoreError:
    return StoreError(
        f"{path} cannot be read ({why}), so what it needs is not known and nothing is removed: "
        "make it readable, or remove it and `bitgrid plan` its grid anew"
    )


def _list_json(folder: Path) -> list[Path]:
    """Files of a folder, those aside that are being written. Raises StoreError."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(folder, error.strerror) from None
    return [folder / name for name in names if name.endswith(".json") and name[0] != "."]


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise _unreadable(path, error.strerror) from None


def _place(path: Path, store: Store) -> Path:
    where = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    return store.root / "plans" / f"{path.stem[:40]}-{where}.json"  # a name of at most 255 bytes


def _with_reasons(plan: Plan, before: Mapping[str, Any]) -> Plan:
    """The plan, with the reason of each stage that `before`, nodes by key, had otherwise or not."""
    places = {(node["kind"], node["title"]): node for node in before.values()}
    nodes = dict(plan.nodes)
    for key, node in plan.nodes.items():
        old = before.get(key)
        if old is not None:
            nodes[key] = replace(node, why=old.get("why"))
        elif (node.kind, node.title) in places:
            why = _difference(places[node.kind, node.title]["stage"], node.stage)
            nodes[key] = replace(node, why=why)
    return replace(plan, nodes=nodes)


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two descriptions of a stage, in words."""
    one, other = dict(_flat(old)), dict(_flat(new))
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    own = [name for name in names if not name.endswith("stage")]
    if not own:
        return "an input changed"
    shown = [f"{name}: {one.get(name)} -> {other.get(name)}" for name in own[:3]]
    more = f" and {len(own) - 3} more" if len(own) > 3 else ""
    return f"parameters changed: {', '.join(shown)}{more}"


def _flat(part: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """A description's values by dotted path."""
    if isinstance(part, Mapping):
        for name, inside in part.items():
            yield from _flat(inside, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(part, list | tuple):
        for number, inside in enumerate(part):
            yield from _flat(inside, f"{prefix}.{number}")
    else:
        yield prefix, part
