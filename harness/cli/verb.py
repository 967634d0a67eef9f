"""What a verb of the `bitgrid` command is, and what several verbs share.

Not here: any verb (a file for each group), and what happens to errors (`main`).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import StoreError
from harness.core.store import Store
from harness.run import plan as plans
from harness.run.plan import Plan

RUNS = Path("runs")
"""Where runs and reports are written, in the current folder. results/ holds what is published."""


@dataclass(frozen=True)
class Verb:
    """One verb: `function` does it and returns the exit status, 0 done, 1 something failed.

    Heavy imports stay inside functions, so that verbs which only read answer at once.
    """

    name: str
    help: str
    example: str
    function: Callable[[argparse.Namespace], int]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    asks_hub: bool = False  # also where a mirror is named


def add_grid_argument(
    parser: argparse.ArgumentParser, more: str = "", locate: Callable[[str], Path] = Path
) -> None:
    """GRID, as `arguments.grid`; `more` says what else it may be than a grid file."""
    parser.add_argument("grid", type=locate, metavar="GRID", help=f"a grid file (YAML){more}")


def add_computing_arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` and `launch` have in common."""
    add_grid_argument(parser)
    parser.add_argument("--retry", choices=["failed"], help="run failed stages again")
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="let tasks run code that models write (in a sandbox)",
    )


def find_plan(arguments: argparse.Namespace, store: Store) -> Plan:
    """The plan of a grid: remembered where nothing changed, else built (which imports torch)."""
    plan = plans.remembered(arguments.grid, store)
    if plan is None:
        from harness.grid import expand as grids

        plan = plans.build(grids.load(arguments.grid, allow_code_execution=True))
        plans.remember(plan, store)
    return plan


def open_store(arguments: argparse.Namespace) -> Store:
    """The store that is meant; it need not exist yet. Raises StoreError if it cannot be read."""
    store = Store(arguments.store.absolute()) if arguments.store else Store.default()
    try:
        os.scandir(store.root).close()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StoreError(f"the store {store.root} cannot be read: {error.strerror}") from error
    return store
