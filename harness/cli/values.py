"""The verbs that look after values: verify, keep. `verify` compares with printed figures, too.

Not here: removing values (`harness.cli.store`), what becomes of figures (`harness.cli.figures`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.cli import figures
from harness.cli.verb import Verb, find_plan, open_store
from harness.core.claims import Claims
from harness.core.errors import Damaged, GridError, StoreError
from harness.core.files import describe
from harness.core.store import Store
from harness.grid import published
from harness.run import plan as plans
from harness.run import renewal
from harness.run.plan import Plan

DAY_S = 24 * 3600.0
SHOWN = 5  # cells that are named; of more their number


def _add_grid(
    parser: argparse.ArgumentParser, more: str = "", locate: Callable[[str], Path] = Path
) -> None:
    about = f"a grid file: its values alone{more}"
    parser.add_argument("grid", nargs="?", type=locate, metavar="GRID", help=about)


def _open_store(arguments: argparse.Namespace) -> Store:
    """A store that is there: of one that is not, nothing is to be said. Raises StoreError."""
    store = open_store(arguments)
    if not store.root.exists():
        raise StoreError(
            f"there is no store at {store.root}: name it with --store, or set BITGRID_STORE"
        )
    return store


def _add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    more = "; published figures (a name or a CSV file): run their grid, compare each with it"
    _add_grid(parser, more, published.locate)
    parser.add_argument(
        "--discard",
        action="store_true",
        help="move what is damaged to the trash: the next run computes it again",
    )


def _verify(arguments: argparse.Namespace) -> int:
    """Read every byte, and compare it with what was written; of figures what is measured."""
    if arguments.grid is not None and arguments.grid.suffix == ".csv":
        if arguments.discard:
            raise GridError("--discard is about stored values, and these are published figures")
        return figures.verify_figures(arguments)
    store = _open_store(arguments)
    known = [find_plan(arguments, store)] if arguments.grid else list(plans.read_known(store))
    keys = [key for key in known[0].stored() if _is_there(store, key)] if arguments.grid else None
    keys = _list_keys(store) if keys is None else keys
    damaged = unread = undigested = 0
    for key in keys:
        try:
            manifest = store.manifest(key)
            store.check_files(key, manifest)
            undigested += "sha256" not in manifest
            continue
        except Damaged as error:
            print(f"damaged: {error}{_name_cells(known, key)}", flush=True)
        except StoreError as error:
            print(f"not read: {error}{_name_cells(known, key)}", flush=True)
            unread += 1
            continue
        damaged += 1
        if arguments.discard:
            renewal.take_out(store, key)
    outcome = "moved to the trash, to be computed again" if arguments.discard else "damaged"
    sound = len(keys) - damaged - unread
    print(f"{len(keys)} values: {sound} as they were written, {damaged} {outcome}")
    if unread:
        print(f"{unread} could not be read, so nothing is known of them")
    if undigested:
        print(f"{undigested} of them were written before there were digests: only sizes are known")
    if damaged and not arguments.discard:
        print("--discard moves damaged values to the trash; the next run computes them again")
    return 1 if damaged or unread else 0


def _list_keys(store: Store) -> list[str]:
    """Every folder of a value, also one whose manifest is gone."""
    try:
        return sorted(path.name for path in (store.root / "values").iterdir() if path.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(describe(error, store.root / "values")) from error


def _is_there(store: Store, key: str) -> bool:
    try:
        return store.path(key).exists()
    except OSError:
        return True  # and cannot be looked at, which is said


def _name_cells(known: list[Plan], key: str) -> str:
    """The cells that a value touches, for the end of a line."""
    names = [
        f"{plan.name}: {cell.id}"
        for plan in known
        if key in plan.nodes
        for cell in plan.cells
        if any(key in plan.upstream(root) for root in cell.roots)
    ]
    if not names:
        return "; no known grid has it"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"; it touches {', '.join(names[:SHOWN])}{more}"


VERIFY = Verb(
    "verify",
    "compare stored values with the digests that they were written with, or published figures "
    "with what their grid measures",
    "bitgrid verify experiments/quickstart.yaml",
    _verify,
    _add_verify_arguments,
)


def _keep(arguments: argparse.Namespace) -> int:
    """Touch what scratch file systems remove by age."""
    store = _open_store(arguments)
    values = store.root / "values"
    roots = [store.root]
    if arguments.grid:
        roots = [values / key for key in find_plan(arguments, store).stored() if store.has(key)]
        roots += [store.root / name for name in ("plans", "grids", "launches", "code")]
    # By the file system's clock, as files' times are.
    now, oldest, touched, unkept = Claims(store.root / "claims").now(), 0.0, 0, ""
    for path in (path for root in roots for path in _walk(root, store.root)):
        try:
            oldest = max(oldest, now - path.stat().st_mtime)
            os.utime(path)
            touched += 1
        except FileNotFoundError:
            continue  # a run has just moved it
        except OSError as error:
            unkept = describe(error, path)
    print(f"{touched} files and folders touched; the oldest was {oldest / DAY_S:.1f} days old")
    if unkept:
        print(f"bitgrid: not all of it: {unkept}", file=sys.stderr)
    return 1 if unkept else 0


def _walk(root: Path, store: Path) -> Iterator[Path]:
    """A folder and all in it, but for claims, whose times say who lives, and the trash."""
    for folder, folders, files in os.walk(root):
        if Path(folder) == store:
            folders[:] = [name for name in folders if name not in ("claims", "trash")]
        yield Path(folder)
        for name in files:
            yield Path(folder, name)


KEEP = Verb(
    "keep",
    "touch stored values, where a scratch file system removes what is old",
    "bitgrid keep experiments/quickstart.yaml",
    _keep,
    _add_grid,
)
