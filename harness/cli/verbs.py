"""What each verb of the `bitgrid` command does: it reads its arguments and calls one module.

Heavy imports stay inside verbs, so that those which read rows only answer at once. Each returns an
exit status: 0 done, 1 something failed. Not here: the arguments, and what happens to errors (`cli`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

from harness.cluster import launches
from harness.cluster import status as watch
from harness.core.errors import ReportError, StoreError
from harness.core.store import Store, size_of
from harness.grid import published
from harness.run import export as rows
from harness.run import plan as plans
from harness.run.plan import Plan

RUNS = Path("runs")
"""Where runs and reports are written, in the current folder. results/ holds what is published."""

FORMATS = {"text": "txt", "markdown": "md", "latex": "tex", "csv": "csv", "html": "html"}


def run(given: argparse.Namespace) -> int:
    store = store_of(given)
    plan = plans.remembered(given.grid, store)
    failed = 0
    if plan is None or plans.needed(plan, store):
        from harness import models
        from harness.grid import expand as grids
        from harness.run.progress import Bar
        from harness.run.runner import run

        models.device()  # this and the folders: before anything is computed
        store.check()
        grid = grids.load(given.grid, given.allow_code_execution)
        plan = plans.build(grid)
        plans.remember(plan, store)
        rows.check(_out(given, plan))
        missing = [key for key in plans.needed(plan, store) if plan.nodes[key].stored]
        if missing:
            with Bar(plan, missing, store) as bar:
                outcome = run(grid, plan, store, bar, time.time() if given.retry else 0.0)
            failed = len(outcome.failed) + len(outcome.blocked)
            print(
                f"computed {len(outcome.computed)} stages of {len(plan.stored())}", file=sys.stderr
            )
    else:
        print(f"all {len(plan.stored())} stages were done already", file=sys.stderr)
    folder = _out(given, plan)
    rows.export(plan, store, folder)
    try:
        _show(folder)
    except ReportError as error:
        if not failed:
            raise
        print(f"bitgrid: {error}", file=sys.stderr)  # as where every cell failed
    if failed:
        print(f"bitgrid: {failed} stages failed or lack an input:", file=sys.stderr)
        print("\n".join(watch.failures(plan, store)), file=sys.stderr)
    return 1 if failed else 0


def prefetch(given: argparse.Namespace) -> int:
    if given.mirror:
        os.environ["BITGRID_MIRROR"] = str(given.mirror.absolute())
    from harness.data import hub
    from harness.grid import expand as grids
    from harness.run.prefetch import prefetch, unknown

    with hub.filling(store_of(given).root.parent / "mirror"):
        grid = grids.load(given.grid, allow_code_execution=True)
        for found in prefetch(grid):
            print(found, flush=True)
        folder = hub.mirror()
    for task in unknown(grid):
        print(f"bitgrid: task {task!r}: only its code knows what it reads", file=sys.stderr)
    print(f"mirror: {folder}")
    if not (os.environ.get("BITGRID_MIRROR") or grid.file.mirror):
        print("to read it: BITGRID_MIRROR, or 'mirror:' in the grid")
    return 0


def _show(folder: Path) -> None:
    import reports

    written = reports.render(folder)
    print(reports.text(folder))
    print("\nreport:", *(os.path.relpath(path) for path in written), sep="\n  ")


def report(given: argparse.Namespace) -> int:
    import reports

    if given.grid.suffix == ".csv":
        figures = published.figures(given.grid)
        _write(reports.as_printed(figures, given.format or "text"), given.out)
        return 0
    folder = _records(given, given.out if given.format is None else None)
    if given.html:
        reports.render(folder, html=True)
    if given.format is None:
        _show(folder)
    else:
        reports.render(folder)
        _write((folder / f"table.{FORMATS[given.format]}").read_text(), given.out)
    return 0


def publish(given: argparse.Namespace) -> int:
    """Put what of a grid, or of a folder of rows, is committed beneath another folder."""
    import reports

    folder = _records(given, None)
    name = json.loads((folder / "grid.json").read_text())["name"]
    for path in reports.publish(folder, given.to / name):
        print(os.path.relpath(path))
    return 0


def _records(given: argparse.Namespace, out: str | None) -> Path:
    """The folder, `out` or one beneath runs/, that holds the rows of what is named."""
    from reports.publishing import copy_records

    if given.grid.is_dir():
        folder = Path(out) if out else _beneath_runs(given.grid)
        return copy_records(given.grid, folder)
    store = store_of(given)
    plan = plan_of(given, store)
    folder = Path(out) if out else RUNS / plan.name
    rows.export(plan, store, folder)
    return folder


def _beneath_runs(folder: Path) -> Path:
    """Where a folder of rows is rendered: where it lies, if beneath runs/, else runs/<its path>.

    So nothing is written beside published rows, nor over the report of a run.
    """
    here, path = Path.cwd().resolve(), folder.resolve()
    if path.is_relative_to(here / RUNS):
        return folder
    inside = path != here and path.is_relative_to(here)
    return RUNS / path.relative_to(here if inside else path.anchor)


def _write(text: str, out: str | None) -> None:
    """To a file, where one is named."""
    if out is None:
        print(text, end="")
        return
    try:
        Path(out).write_text(text)
    except OSError as error:
        raise ReportError(f"{out}: cannot be written: {error.strerror}") from None
    print(out)


def plan(given: argparse.Namespace) -> int:
    store = store_of(given)
    plan = plan_of(given, store)
    missing = set(plans.needed(plan, store))
    users: Counter[str] = Counter()
    for cell in plan.cells:
        users.update({key for root in cell.roots for key in plan.upstream(root)})
    stored = plan.stored()
    print(f"{plan.name}: {plan.question}")
    print(f"  cells               {len(plan.cells)}")
    print(f"  distinct models     {len({cell.model for cell in plan.cells})}")
    print(
        f"  stages kept         {len(stored)}, shared by several cells: "
        f"{sum(users[key] > 1 for key in stored)}"
    )
    print(f"  stages to compute   {sum(key in missing for key in stored)}")
    for kind, number in Counter(plan.nodes[k].kind for k in stored if k in missing).items():
        print(f"    {kind:18}{number}")
    if given.memory:
        print(_memory(given))
    if given.cells:
        for cell in plan.cells:
            print(f"  {cell.model[:8]}  {cell.id}")
    return 0


def _memory(given: argparse.Namespace) -> str:
    from harness.core.stage import closure
    from harness.grid import expand as grids
    from harness.run import memory

    grid = grids.load(given.grid, allow_code_execution=True)
    stages = closure([stage for cell in grid.cells for stage in cell.roots])
    return memory.table((stage for stage in stages if stage.stored), given.gpu_gib)


def methods(given: argparse.Namespace) -> int:
    from harness.config.settings import list_settings
    from harness.core.component import Component
    from harness.method import METHODS

    if given.name is None:
        for name, entry in METHODS.load().items():
            print(f"{name:16}{entry.about}")
        for name, missing in METHODS.unavailable().items():
            print(f"{name:16}unavailable: {missing.reason} ({os.path.relpath(missing.file)})")
        return 0
    entry = METHODS.find(given.name)
    print(f"{entry.name} ({entry.title}): {entry.about}")
    print(f"source: {os.path.relpath(entry.source)}")
    for path, held in list_settings(entry.method):
        notes = []
        if isinstance(held, Component):
            notes.append(f"of {', '.join(sorted(held.siblings()))}")
        if path in entry.fixed:
            notes.append("fixed where only compared against")
        parts = "" if hasattr(held, "__dataclass_fields__") else held
        shown = getattr(held, "name", parts)
        print(f"  {path:28}{shown!s:18}{'; '.join(notes)}".rstrip())
    return 0


def tasks(given: argparse.Namespace) -> int:
    from harness.evaluation import evaluate, tasks

    for name, protocol in evaluate.PERPLEXITY.items():
        print(f"{name:24}perplexity: {protocol.words}; window {protocol.window}")
    for name in tasks.testbed():
        print(f"{name:24}lm-eval task on the embedded testbed")
    if given.all:
        for name in tasks.names():
            print(f"{name:24}lm-eval")
    else:
        print("and every lm-eval task by name (--all lists them)")
    return 0


def gc(given: argparse.Namespace) -> int:
    import shutil

    store = store_of(given)
    known = plans.kept(store)
    with launches.alone(store) if given.yes else contextlib.nullcontext():
        waste = store.waste({key for plan in known for key in plan.nodes})
        waste |= {path: size_of(path) for path in launches.waste(store)}
        total = sum(waste.values())
        names = ", ".join(sorted(plan.name for plan in known)) or "none"
        print(f"grids that are kept: {names}")
        for path, size in waste.items():
            print(f"{size / 2**20:10.2f} MiB  {path.relative_to(store.root)}")
            if given.yes:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    done = "removed" if given.yes else "to remove; --yes removes"
    print(f"{total / 2**20:10.2f} MiB in {len(waste)} entries {done}")
    return 0


def plan_of(given: argparse.Namespace, store: Store) -> Plan:
    """The plan of a grid: remembered where nothing changed, else built (which imports torch)."""
    plan = plans.remembered(given.grid, store)
    if plan is None:
        from harness.grid import expand as grids

        plan = plans.build(grids.load(given.grid, allow_code_execution=True))
        plans.remember(plan, store)
    return plan


def store_of(given: argparse.Namespace) -> Store:
    """The store that is meant; it need not be there yet. Raises StoreError where it cannot be read."""
    store = Store(given.store.absolute()) if given.store else Store.default()
    try:
        os.scandir(store.root).close()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StoreError(f"the store {store.root} cannot be read: {error.strerror}") from error
    return store


def _out(given: argparse.Namespace, plan: Plan) -> Path:
    return Path(given.out) if given.out else RUNS / plan.name
