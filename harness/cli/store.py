"""The verb of the store: gc. Not here: what is needed (`harness.cluster.garbage`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from harness.cli.terminal import print_line
from harness.cli.verb import Verb, open_store, parse_amount
from harness.cluster import garbage
from harness.core.errors import StoreError
from harness.core.store import Store
from harness.core.trash import Trash, measure

DAY_S = 24 * 3600.0
MIB = 2**20


def _add_gc_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="move to the trash, not only list")
    parser.add_argument(
        "--older",
        type=parse_amount,
        default=7.0,
        metavar="DAYS",
        help="with --yes: remove what has lain in the trash for so long (default: 7)",
    )
    parser.add_argument("--lost-grids", action="store_true", help="forget grids whose file is lost")
    parser.add_argument(
        "--earlier", action="store_true", help="forget what grids were before they were edited"
    )
    parser.add_argument(
        "--forget", nargs="+", default=[], metavar="ID", help="forget grids by the id that gc shows"
    )


def _collect_garbage(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    forget = garbage.choose(store, arguments.lost_grids, arguments.earlier, arguments.forget)
    view = garbage.look(store, forget)
    _show_grids(view)
    if not arguments.yes:
        return _list(store, view, arguments.older)
    try:
        store.check()
    except StoreError:
        _list(store, view, arguments.older)
        raise
    sizes: dict[Path, int] = {}

    def tell(path: Path) -> None:
        place = path.relative_to(store.root)
        sizes[place] = measure(path)
        _show(sizes[place], place)

    outcome = garbage.collect(store, forget, DAY_S * arguments.older, tell)
    for place in outcome.restored:
        print(f"put back from the trash, since it is needed: {place.relative_to(store.root)}")
    for line in outcome.trouble:
        print_line(f"bitgrid: {line}", file=sys.stderr)
    moved = sum(sizes[place] for place in outcome.moved)
    print(f"{moved / MIB:10.2f} MiB in {len(outcome.moved)} entries moved to the trash")
    freed = sum(sizes[each.path.relative_to(store.root)] for each in outcome.removed)
    print(f"{freed / MIB:10.2f} MiB in {len(outcome.removed)} entries removed from the trash")
    return 0


def _list(store: Store, view: garbage.View, days: float) -> int:
    """What --yes would do."""
    for line in view.trouble:
        print_line(f"bitgrid: {line}", file=sys.stderr)
    waste = [*garbage.list_forgotten(store, view), *garbage.list_waste(store, view)]
    total = _show_all(store, waste)
    print(
        f"{total / MIB:10.2f} MiB in {len(waste)} entries to remove; --yes moves them to the trash"
    )
    trash = Trash(store.root)
    if discarded := trash.contents():
        expired = garbage.list_expired(trash, DAY_S * days, view)
        total = _show_all(store, (each.path for each in expired))
        print(
            f"{total / MIB:10.2f} MiB in {len(expired)} of {len(discarded)} entries of the trash "
            f"have lain there for {days:g} days: --yes removes them"
        )
    return 0


def _show_grids(view: garbage.View) -> None:
    """Which grids are kept, and what is kept only because it is remembered."""
    bound = {grid.name for grid in view.grids if grid.standing in ("there", "out of reach")}
    print(f"grids that are kept: {', '.join(sorted(bound)) or 'none'}")
    for grid in view.grids:
        if grid.standing == "out of reach":
            print(f"  its file is out of reach: {grid}")
    for grid, values in view.held().items():
        if grid.standing == "lost":
            _show(sum(map(measure, values)), f"kept, file lost (--lost-grids): {grid}")
        elif values:
            _show(sum(map(measure, values)), f"kept, before an edit (--earlier): {grid}")


def _show_all(store: Store, paths: Iterable[Path]) -> int:
    """A line each; their bytes."""
    total = 0
    for path in paths:
        size = measure(path)
        _show(size, path.relative_to(store.root))
        total += size
    return total


def _show(size: int, what: object) -> None:
    print(f"{size / MIB:10.2f} MiB  {what}")


GC = Verb(
    "gc",
    "what no known grid needs any more",
    "bitgrid gc --yes",
    _collect_garbage,
    _add_gc_arguments,
)
