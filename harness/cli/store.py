"""The verb of the store: gc. Not here: the store (`harness.core.store`)."""

from __future__ import annotations

import argparse
import contextlib
import shutil

from harness.cli.verb import Verb, open_store
from harness.cluster import launches
from harness.core.store import size_of
from harness.run import plan as plans


def _add_gc_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="remove, not only list")


def _collect_garbage(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    known_plans = plans.kept(store)
    with launches.alone(store) if arguments.yes else contextlib.nullcontext():
        waste = store.waste({key for plan in known_plans for key in plan.nodes})
        waste |= {path: size_of(path) for path in launches.waste(store)}
        total = sum(waste.values())
        names = ", ".join(sorted(plan.name for plan in known_plans)) or "none"
        print(f"grids that are kept: {names}")
        for path, size in waste.items():
            print(f"{size / 2**20:10.2f} MiB  {path.relative_to(store.root)}")
            if arguments.yes:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    outcome = "removed" if arguments.yes else "to remove; --yes removes"
    print(f"{total / 2**20:10.2f} MiB in {len(waste)} entries {outcome}")
    return 0


GC = Verb(
    "gc",
    "what no known grid needs any more",
    "bitgrid gc --yes",
    _collect_garbage,
    _add_gc_arguments,
)
