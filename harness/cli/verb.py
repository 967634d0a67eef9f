"""What a verb of the `bitgrid` command is, and what several verbs share.

Not here: any verb (a file for each group), and what happens to errors (`main`).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.errors import GridError, StoreError, nearest
from harness.core.store import Store
from harness.run import plan as plans
from harness.run import remembering
from harness.run.plan import CellInfo, Plan

if TYPE_CHECKING:
    from harness.grid.expand import Grid

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


def add_grid_argument(
    parser: argparse.ArgumentParser, more: str = "", locate: Callable[[str], Path] = Path
) -> None:
    """GRID, as `arguments.grid`; `more` says what else it may be than a grid file."""
    parser.add_argument("grid", type=locate, metavar="GRID", help=f"a grid file (YAML){more}")


def add_computing_arguments(
    parser: argparse.ArgumentParser, retry: Sequence[str] = ("failed",)
) -> None:
    """What `run` and `launch` have in common; `retry`: which ends may be asked to be run again."""
    add_grid_argument(parser)
    parser.add_argument("--retry", choices=retry, help=f"run {' or '.join(retry)} stages again")
    parser.add_argument(
        "--only",
        action="append",
        metavar="CELLS",
        help="cells with these words in their names, as 'bits=2'; again for others",
    )
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="let tasks run code that models write (in a sandbox)",
    )


def parse_count(text: str) -> int:
    """A whole number of at least 1. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number of at least 1")
    return int(text)


def parse_amount(text: str) -> float:
    """A finite number of at least 0. Raises ArgumentTypeError."""
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 <= amount < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} should be a number of at least 0")
    return amount


def select_cells(plan: Plan, named: Iterable[str]) -> list[CellInfo]:
    """The cells that have all words of any of these in their ids. Raises GridError for none."""
    selected: dict[str, CellInfo] = {}
    for words in named:
        cells = [cell for cell in plan.cells if cell.id == words] or _match_words(plan, words)
        if not cells:
            ids = [cell.id for cell in plan.cells]
            raise GridError(f"{plan.name} has no cell {words!r}; {nearest(words, ids)}")
        selected |= {cell.id: cell for cell in cells}
    return list(selected.values())


def find_cell(plan: Plan, named: str) -> CellInfo:
    """The only cell with that id, or words of it, or parts of words. Raises GridError."""
    cells = select_cells(plan, [named])
    if len(cells) > 1:
        ids = "; ".join(cell.id for cell in cells[:5])
        raise GridError(f"cell {named!r} fits {len(cells)} cells: {ids}")
    return cells[0]


def _match_words(plan: Plan, words: str) -> list[CellInfo]:
    """Cells with all of these words in their ids: whole ones, or else parts of words."""
    parts = words.lower().split()
    whole = [cell for cell in plan.cells if set(parts) <= set(cell.id.lower().split())]
    return whole or [cell for cell in plan.cells if all(part in cell.id.lower() for part in parts)]


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """No search for garbage in circles meanwhile: a third of the time where much is read and kept.

    For what reads and keeps: a plan, a report.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def count_cells(plan: Plan) -> int:
    """The cells of a plan, those too that wait for their trials, which are not counted."""
    return len(plan.rows) + len(plan.awaiting)


def describe_trials(plan: Plan) -> str:
    """How many trials a plan has, and how many cells wait for them; empty where it has none."""
    trials = len(plan.cells) - len(plan.rows)
    waiting = f", for which {len(plan.awaiting)} cells wait" if plan.awaiting else ""
    return f" and {trials} trials{waiting}" if trials else ""


def describe_match(plan: Plan) -> Iterator[str]:
    """What a grid that matches budgets gives each method; nothing of another grid."""
    said: dict[str, None] = {}
    for cell in (*plan.rows, *plan.awaiting):
        match = cell.match
        if match is not None and match["spent"] is None:
            said[f"not matched: {cell.label}: {match['why']}"] = None
        elif match is not None:
            parts = f"{match['trained']:,} trained on, {match['written']:,} written"
            spent = f"{match['spent']:,.0f} of {match['budget']:,.0f} {match['unit']}"
            parts += " tokens" if match["unit"] != "tokens" else ""
            said[f"matched: {cell.label}: {match['steps']} steps, {spent} ({parts})"] = None
    yield from said


@without_collection()
def find_plan(arguments: argparse.Namespace, store: Store) -> Plan:
    """The plan of a grid: remembered where nothing changed, else built (which imports torch)."""
    plan = remembering.remembered(arguments.grid, store)
    if plan is None:
        plan = remembering.remember(plans.build(load_grid(arguments.grid, store=store)), store)
    return plan


def load_grid(path: Path, allow_code_execution: bool = True, *, store: Store) -> Grid:
    """The grid of a file; what a mirror has is not asked of the hub from here on.

    `store`: where trials are whose scores choose settings.
    """
    go_offline(path)
    from harness.grid import expand as grids
    from harness.run.trials import look_into

    grid = grids.load(path, allow_code_execution, look=look_into(store))
    if grid.style is not None:  # else it would be refused when all is computed
        from reports.plots.style import read_settings

        read_settings(grid.style)
    return grid


def go_offline(path: Path) -> None:
    """Ask the hub for nothing where a mirror is named: what is pinned there is what is meant.

    Compute nodes have no network, and libraries that try it wait. HF_HUB_OFFLINE=0 overrules this.
    It is read when those libraries are imported, so this comes first.
    """
    from harness.config.document import Document

    grid = Document(path).data
    if os.environ.get("BITGRID_MIRROR") or (isinstance(grid, dict) and grid.get("mirror")):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_DATASETS_OFFLINE", os.environ["HF_HUB_OFFLINE"])


def open_store(arguments: argparse.Namespace) -> Store:
    """The store that is meant; it need not exist yet. Raises StoreError if it cannot be read."""
    store = Store.at(str(arguments.store)) if arguments.store else Store.default()
    for folder in (store.root, store.root / "values"):  # else each value has a line of its own
        try:
            os.scandir(folder).close()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StoreError(f"the store {folder} cannot be read: {error.strerror}") from error
    return store
