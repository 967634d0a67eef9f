"""What nobody needs any more, and its way out of the store: `bitgrid gc`.

Needed is what a remembered grid has (see `harness.run.remembering`), what a launch with jobs in the
queue has in its plan, and what a living process computes. What cannot be read or reached counts as
needed; where that is not enough to know which keys are, nothing is removed.

What is not needed is moved to the trash, and removed once it has lain there for long enough.
Grids are planned and values computed meanwhile: after moving we look again, and put back what is
needed by now; and who plans a grid writes it down first and then looks into the trash. So whoever
comes second puts it back.
Not here: the trash (`harness.core.trash`), launches' records (`harness.cluster.launches`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from harness.cluster import launches, scheduler
from harness.cluster.launches import Launch
from harness.core.claims import Claims
from harness.core.errors import ClusterError, StoreError, nearest
from harness.core.store import Store
from harness.core.trash import RESTORED, Discarded, Trash
from harness.run import remembering
from harness.run.remembering import Known

YOUNG_S = 24 * 3600.0  # a hidden file is somebody's draft for so long
LAUNCH = "launch"  # the claim of who launches

Forget = Callable[[Known], bool]


@dataclass(frozen=True)
class View:
    """What is needed, and what is not."""

    root: Path
    grids: tuple[Known, ...]  # that are remembered, and are not to be forgotten
    forgotten: tuple[Known, ...]
    launches: dict[str, frozenset[str]]  # id -> keys, of those that may have jobs in the queue
    records: tuple[Launch, ...]  # of all launches that can be read
    unreadable: bool  # whether others cannot be
    claims: frozenset[str]  # keys that somebody computes
    dead: tuple[str, ...]  # names of claims whose owners are dead
    trouble: tuple[str, ...]  # what was counted as needed since it cannot be known, a line each
    stamp: tuple[int, ...]  # of the memory as it was looked at

    @cached_property
    def needed(self) -> frozenset[str]:
        """Keys of all stages that somebody needs."""
        return self.claims.union(*(grid.keys for grid in self.grids), *self.launches.values())

    def held(self) -> dict[Known, list[Path]]:
        """Values that the store keeps for an earlier version or a lost grid alone, by grid."""
        bound = [grid for grid in self.grids if grid.standing not in ("earlier", "lost")]
        firm = self.claims.union(*(grid.keys for grid in bound), *self.launches.values())
        present = set(_names(self.root / "values")) - firm
        return {
            grid: [self.root / "values" / key for key in sorted(grid.keys & present)]
            for grid in self.grids
            if grid.standing in ("earlier", "lost")
        }


def look(store: Store, forget: Forget = lambda _: False) -> View:
    """What is needed now. Raises StoreError where nobody can say; then nothing may be removed."""
    stamp = _read_stamp(store)
    known = remembering.list_known(store)
    claims, dead = _list_claims(store)
    records, trouble = launches.every(store)
    unreadable = bool(trouble)
    alive = _list_live_launches(store, records, trouble)
    forgotten = []
    for grid in filter(forget, known):
        if grid.keys & claims:
            trouble.append(f"{grid.id} is being computed: it is kept")
        else:
            forgotten.append(grid)
    ids = {grid.id for grid in forgotten}
    strange = claims.difference(*(grid.keys for grid in known), *alive.values())
    if strange:
        key = min(strange)
        owner = store.claimed(key) or {}
        raise StoreError(
            f"{owner.get('host', 'somebody')}:{owner.get('pid', '?')} computes {key}, which no "
            "remembered grid has: what it needs is not known, so nothing is removed; wait for its "
            "end"
        )
    return View(
        store.root,
        tuple(grid for grid in known if grid.id not in ids),
        tuple(forgotten),
        alive,
        tuple(records),
        unreadable,
        claims,
        dead,
        tuple(trouble),
        stamp,
    )


def choose(store: Store, lost: bool, earlier: bool, named: Collection[str]) -> Forget:
    """Which grids are to be forgotten: lost ones, earlier versions, those of these ids.

    Raises StoreError for an id that no grid has, or whose grid has its file.
    """
    known = {grid.id: grid for grid in remembering.list_known(store)} if named else {}
    for name in named:
        if name not in known:
            raise StoreError(f"no grid is remembered as {name!r}; {nearest(name, known)}")
        if known[name].standing == "there":
            raise StoreError(f"{name}: {known[name].path} is there; rename or remove it first")

    def forget(grid: Known) -> bool:
        standing = grid.standing
        chosen = (lost and standing == "lost") or (earlier and standing == "earlier")
        return chosen or (grid.id in known and standing != "there")

    return forget


def list_forgotten(store: Store, view: View) -> list[Path]:
    """The memory of grids that are to be forgotten: a plan before its version, which holds too."""
    found = []
    for grid in view.forgotten:
        plan = store.root / "plans" / f"{grid.place}.json"
        found += [plan] if grid.latest and plan != grid.file and plan.exists() else []
        found.append(grid.file)
    return found


def list_waste(store: Store, view: View) -> list[Path]:
    """What nobody needs: values, failures, scratch, drafts, dead claims, launches and code."""
    waste = []
    for kind in ("values", "failures", "work"):
        folder = store.root / kind
        waste += [path for name in _names(folder) if not _is_needed(path := folder / name, view)]
    drafts = store.root / "drafts"
    waste += [drafts / name for name in _names(drafts) if _key_of(name) not in view.claims]
    waste += [store.root / "claims" / name for name in view.dead]
    waste += _list_waste_of_launches(store, view)
    kinds = ("failures", "claims", "grids", "plans", "launches", "code")
    hidden = [store.root / kind / n for kind in kinds for n in _names(store.root / kind, True)]
    # By the file system's clock, as files' times are, and not by this host's.
    now = Claims(store.root / "claims").now() if hidden else 0.0
    return waste + [path for path in hidden if now - _changed(path, now) > YOUNG_S]


@dataclass
class Outcome:
    """What a collection did."""

    moved: list[Path] = field(default_factory=list)  # from where, relative to the store
    removed: list[Discarded] = field(default_factory=list)
    restored: list[Path] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)


def collect(store: Store, forget: Forget, older_s: float, tell: Callable[[Path], None]) -> Outcome:
    """Move what nobody needs to the trash, and remove what has lain there for `older_s` seconds.

    `tell` is told of each thing before it is moved or removed. Whatever ends this on the way, the
    next collection goes on. Raises StoreError and ClusterError.
    """
    outcome, trash = Outcome(), Trash(store.root)
    store.check()
    with launches.alone(store):
        trash.remove_remains()
        together = trash.open()
        view = look(store, forget)
        outcome.trouble += view.trouble
        planned = {grid.file: grid.planned for grid in view.forgotten}
        for path in list_forgotten(store, view):
            tell(path)
            with _noting(outcome, path):
                to = trash.discard(path, together)
                if to.stat().st_mtime_ns != planned.get(path, to.stat().st_mtime_ns):
                    to.rename(path)  # it was planned anew just now
                else:
                    outcome.moved.append(path.relative_to(store.root))
        view = look(store)
        outcome.restored += _restore(trash, view.needed)
        for path in list_waste(store, view):
            if _read_stamp(store) != view.stamp:
                view = look(store)
            if not _is_needed(path, view):
                tell(path)
                with _noting(outcome, path):
                    if _take_away(path, store, trash, together):
                        outcome.moved.append(path.relative_to(store.root))
        view = look(store)
        outcome.restored += _restore(trash, view.needed)
        for each in list_expired(trash, older_s, view):
            tell(each.path)
            with _noting(outcome, each.path):
                trash.remove(each)
                outcome.removed.append(each)
    return outcome


def list_expired(trash: Trash, older_s: float, view: View) -> list[Discarded]:
    """What has lain in the trash for `older_s` seconds, and is not needed."""
    return [
        each
        for each in trash.contents()
        if time.time() - each.since >= older_s
        and not (each.place.parts[0] in RESTORED and each.key in view.needed)
    ]


@contextlib.contextmanager
def _noting(outcome: Outcome, path: Path) -> Iterator[None]:
    """Has what cannot be moved or removed cost a line; what went by itself costs nothing."""
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        outcome.trouble.append(f"{path} cannot be moved or removed: {error.strerror}")


def _restore(trash: Trash, needed: Set[str]) -> list[Path]:
    try:
        return trash.restore(needed)
    except OSError as error:
        raise StoreError(f"{trash.folder}: what is needed cannot be put back: {error}") from None


def _take_away(path: Path, store: Store, trash: Trash, together: Path) -> bool:
    """Move something to the trash, or free a dead claim; not while somebody computes its value."""
    kind, key = path.parent.name, _key_of(path.name)
    scratch = kind in ("failures", "work", "drafts", "claims") and not path.name.startswith(".")
    if not scratch or store.has(key):  # nobody computes what is there
        if kind == "claims":
            path.unlink()
        else:
            trash.discard(path, together)
        return True
    claim = store.claim(key)
    if claim is None:
        return False
    with claim:  # it takes dead ones away
        if kind != "claims":
            trash.discard(path, together)
    return True


def _is_needed(path: Path, view: View) -> bool:
    kinds = ("values", "failures", "work")
    return path.parent.name in kinds and path.name.removesuffix(".json") in view.needed


def _list_claims(store: Store) -> tuple[frozenset[str], tuple[str, ...]]:
    """Keys with a claim that is alive or cannot be read, and the names of all other claims."""
    names = [name for name in _names(store.root / "claims") if _key_of(name) != LAUNCH]
    alive = set(store.owners()) - {LAUNCH}
    alive |= {_key_of(n) for n in names if not os.access(store.root / "claims" / n, os.R_OK)}
    alive &= {_key_of(name) for name in names} | set(store.owners())  # not those that ended by now
    return frozenset(alive), tuple(name for name in names if _key_of(name) not in alive)


def _list_live_launches(
    store: Store, records: Collection[Launch], trouble: list[str]
) -> dict[str, frozenset[str]]:
    """Keys of the plans of launches that may have jobs in the queue, by id."""
    local = {record.id for record in records if record.cluster != "slurm"}
    folders = [folder for folder in launches.folders(store) if folder.name not in local]
    if not folders:
        return {}
    queued = None
    try:
        queued = launches.ids_in(scheduler.queue(everybody=True))
    except ClusterError as error:
        trouble.append(f"the queue is not known ({error}): all launches count as queued")
    return {
        folder.name: _read_keys(folder)
        for folder in folders
        if queued is None or folder.name in queued or not _is_own(folder)
    }


def _read_keys(folder: Path) -> frozenset[str]:
    """All keys of a launch's plan. Raises StoreError where they are not known."""
    path = folder / launches.PLAN
    try:
        path.lstat()
    except FileNotFoundError:
        if not (folder / "submitted.jsonl").exists():  # it was cut off before it submitted
            return frozenset()
    except OSError:
        pass  # it is named by what follows
    return remembering.read_plan(path, "wait for the end of its jobs and remove the folder").keys


def _is_own(folder: Path) -> bool:
    """Whether the queue shows all jobs of a launch: SLURM may hide those of other users."""
    try:
        return os.getuid() in (0, folder.stat().st_uid)
    except OSError:
        return False


def _list_waste_of_launches(store: Store, view: View) -> list[Path]:
    """Launches without jobs whose grid is neither remembered nor there, and code that none uses."""
    paths = {grid.path for grid in view.grids}
    doomed = {
        record.id
        for record in view.records
        if record.id not in view.launches
        and record.path not in paths
        and remembering.look_for(Path(record.path)) == "lost"
    }
    waste = [store.root / "launches" / id for id in sorted(doomed)]
    used = {Path(record.code).name for record in view.records if record.id not in doomed}
    if not view.unreadable:
        code = store.root / "code"
        waste += [code / name for name in _names(code) if name not in used]
    return waste


def _changed(path: Path, otherwise: float) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return otherwise


def _read_stamp(store: Store) -> tuple[int, ...]:
    """It changes whenever a grid is planned."""
    folders = (store.root / "grids", store.root / "plans")
    return tuple(folder.stat().st_mtime_ns if folder.exists() else 0 for folder in folders)


def _key_of(name: str) -> str:
    return name.split(".")[0]


def _names(folder: Path, hidden: bool = False) -> list[str]:
    """Names in a folder, either the hidden or the others. Raises StoreError."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror}") from None
    return [name for name in names if name.startswith(".") == hidden]
