"""The verbs that look and change nothing: plan, status, methods, tasks, schema.

Not here: states of stages (`harness.cluster.status`), memory of stages (`harness.run.memory`).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Collection

from harness.cli.terminal import print_line, print_table
from harness.cli.verb import (
    Verb,
    add_grid_argument,
    count_cells,
    describe_match,
    describe_trials,
    find_plan,
    load_grid,
    open_store,
    parse_amount,
    without_collection,
)
from harness.cluster import status as watch
from harness.core.component import find_named
from harness.core.errors import GridError, nearest
from harness.core.store import Store
from harness.run import states
from harness.run.listing import Listed, list_methods
from harness.run.plan import Plan


def _add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    add_grid_argument(parser)
    parser.add_argument("--cells", action="store_true", help="list every cell")
    parser.add_argument("--memory", action="store_true", help="what each stage needs of a GPU")
    parser.add_argument(
        "--gpu-gib",
        type=_parse_sizes,
        default=_parse_sizes("24,40,80,141"),
        metavar="SIZES",
        help="with --memory: sizes of GPUs in GiB (default: 24,40,80,141)",
    )


def _parse_sizes(text: str) -> list[float]:
    sizes = [parse_amount(word) for word in text.split(",")]
    if 0 in sizes:
        raise argparse.ArgumentTypeError(f"{text!r} should be sizes above 0, as 24,80")
    return sizes


def _plan(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    plan = find_plan(arguments, store)
    _show_plan(plan, store)
    if arguments.memory:
        print(_memory(arguments, store))
    if arguments.cells:
        print_table(((cell.model[:8], cell.id) for cell in plan.cells), words=2, indent=2)
    return 0


@without_collection()
def _show_plan(plan: Plan, store: Store) -> None:
    """What it would compute, and why."""
    missing = set(states.needed(plan, store))
    users: Counter[str] = Counter()
    for cell in plan.cells:
        users.update({key for root in cell.roots for key in plan.upstream(root)})
    stored = plan.stored()
    print_line(f"{plan.name}: {plan.question}")
    shared = sum(users[key] > 1 for key in stored)
    kinds = Counter(plan.nodes[key].kind for key in stored if key in missing)
    facts = [
        ("cells", f"{count_cells(plan)}{describe_trials(plan)}"),
        ("distinct models", str(len({cell.model for cell in plan.cells}))),
        ("stages kept", f"{len(stored)}, shared by several cells: {shared}"),
        ("stages to compute", str(sum(kinds.values()))),
        *(
            (f"  {kind}", f"{number}{_describe_disk(plan, missing, kind)}")
            for kind, number in kinds.items()
        ),
    ]
    print_table(facts, words=2, indent=2)
    for line in plan.advice if kinds else ():  # where all is done, nothing can be saved
        print_line(f"  {line}")
    for line in describe_match(plan):
        print_line(f"  {line}")
    for line in states.list_damaged(plan, store):
        print_line(f"  damaged, to be computed again: {line}")
    for line in states.list_new(plan, store):
        print_line(f"  new: {line}")
    for line in states.list_stale(plan, store):
        print_line(f"  stale: {line}")


def _describe_disk(plan: Plan, keys: Collection[str], kind: str) -> str:
    """What the values of a kind, among those of `keys`, take of the store, where that is large."""
    sizes = (node.disk_gib for key, node in plan.nodes.items() if key in keys and node.kind == kind)
    gib = sum(sizes)
    return f", {gib:,.2f} GiB of the disk at most" if gib else ""


def _memory(arguments: argparse.Namespace, store: Store) -> str:
    import harness.evaluation.memory  # noqa: F401  it registers estimates

    grid = load_grid(arguments.grid, store=store)
    from harness.core.stage import closure
    from harness.run import memory

    stages = closure([stage for cell in grid.cells for stage in cell.roots])
    return memory.table((stage for stage in stages if stage.stored), arguments.gpu_gib)


PLAN = Verb(
    "plan",
    "what a grid would compute, without computing",
    "bitgrid plan experiments/quickstart.yaml --cells",
    _plan,
    _add_plan_arguments,
)


def _add_status_arguments(parser: argparse.ArgumentParser) -> None:
    add_grid_argument(parser)
    parser.add_argument("--watch", action="store_true", help="again every 15 s while jobs are left")


def _status(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    while True:
        view = _show_status(arguments, store)
        if not arguments.watch or not view.count("running", "queued"):
            return 0
        sys.stdout.flush()
        time.sleep(watch.WATCH_S)


@without_collection()
def _show_status(arguments: argparse.Namespace, store: Store) -> watch.View:
    plan = find_plan(arguments, store)
    view = watch.look(plan, store)
    if arguments.watch and sys.stdout.isatty():
        print("\033[2J\033[H", end="")
    models = len({cell.model for cell in plan.cells})
    print(f"{plan.name}: {count_cells(plan)} cells{describe_trials(plan)}, {models} models")
    head, rows = watch.count_states(view)
    print_table(rows, head, words=head.index("") + 1)
    for line in watch.details(view, store):
        print_line(line)
    for line in view.trouble:
        print_line(f"bitgrid: {line}", file=sys.stderr)
    return view


STATUS = Verb(
    "status",
    "what is done, running, failed, stale or to come",
    "bitgrid status experiments/quickstart.yaml",
    _status,
    _add_status_arguments,
)


def _add_methods_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="what fields are shown of: a method, a part of one (nf, init/clip)",
    )


def _methods(arguments: argparse.Namespace) -> int:
    listing = list_methods()
    if arguments.name is None:
        methods = [(name, each.about) for name, each in listing.methods.items()]
        print_table([*methods, *listing.unavailable.items()], words=2)
        return 0
    if arguments.name in listing.methods:
        _print_fields(listing.methods[arguments.name])
        return 0
    called = find_named(arguments.name, listing.parts)
    if not called:
        if why := listing.unavailable.get(arguments.name):
            raise GridError(f"method {arguments.name!r} is {why}")
        known = [*listing.methods, *(part.title for part in listing.parts.values())]
        raise GridError(
            f"no method or part of one is called {arguments.name!r}; "
            f"{nearest(arguments.name, known)}"
        )
    for name in called:
        _print_fields(listing.parts[name])
    return 0


def _print_fields(listed: Listed) -> None:
    title = f" ({listed.title})" if "/" not in listed.name else ""  # a part's is its name
    print(f"{listed.name}{title}: {listed.about}")
    print(f"source: {os.path.relpath(listed.source)}")
    print_table(((each.path, each.value, each.text) for each in listed.settings), words=3, indent=2)


METHODS = Verb(
    "methods",
    "the methods, or the fields of one and what they mean",
    "bitgrid methods bitdistiller",
    _methods,
    _add_methods_arguments,
)


def _add_tasks_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--all", action="store_true", help="lm-eval's own tasks too (takes seconds)"
    )


def _tasks(arguments: argparse.Namespace) -> int:
    from harness.evaluation.evaluations import CATALOGUES, EVALUATIONS

    missing = EVALUATIONS.unavailable()
    listed = [(name, each.about) for name, each in EVALUATIONS.load().items()]
    listed += [(name, f"unavailable: {each.reason}") for name, each in missing.items()]
    print_table(listed, words=2)
    for catalogue in CATALOGUES.load().values():
        if arguments.all:
            for name in catalogue.names():  # thousands: not worth a table's time
                print(f"{name:24}  {catalogue.about}")
        else:
            print(f"and those of {catalogue.about}, by name (--all lists them)")
    return 0


TASKS = Verb(
    "tasks",
    "the tasks and perplexity protocols",
    "bitgrid tasks --all",
    _tasks,
    _add_tasks_arguments,
)


def _schema(arguments: argparse.Namespace) -> int:
    import json

    from harness.grid.editor import make_schema

    print(json.dumps(make_schema(), indent=2, ensure_ascii=False))
    return 0


SCHEMA = Verb(
    "schema",
    "the JSON schema of a grid, for editors",
    "bitgrid schema",
    _schema,
)
