"""The verbs that look and change nothing: plan, status, methods, tasks, schema.

Not here: states of stages (`harness.cluster.status`), memory of stages (`harness.run.memory`).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections import Counter

from harness.cli.verb import Verb, add_grid_argument, find_plan, open_store
from harness.cluster import status as watch
from harness.run import plan as plans


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
    sizes = [float(word) for word in text.split(",")]
    if not all(0 < size < math.inf for size in sizes):
        raise ValueError(text)
    return sizes


def _plan(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    plan = find_plan(arguments, store)
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
    if arguments.memory:
        print(_memory(arguments))
    if arguments.cells:
        for cell in plan.cells:
            print(f"  {cell.model[:8]}  {cell.id}")
    return 0


def _memory(arguments: argparse.Namespace) -> str:
    import harness.evaluation.memory  # noqa: F401  it registers estimates
    from harness.core.stage import closure
    from harness.grid import expand as grids
    from harness.run import memory

    grid = grids.load(arguments.grid, allow_code_execution=True)
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
        plan = find_plan(arguments, store)
        view = watch.look(plan, store)
        if arguments.watch and sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        models = len({cell.model for cell in plan.cells})
        print(f"{plan.name}: {len(plan.cells)} cells, {models} models")
        print("\n".join([*watch.table(view), *watch.details(view, store)]))
        if view.trouble:
            print(f"bitgrid: the queue is not known: {view.trouble}", file=sys.stderr)
        if not arguments.watch or not view.count("running", "queued"):
            return 0
        sys.stdout.flush()
        time.sleep(watch.WATCH_S)


STATUS = Verb(
    "status",
    "what is done, running, failed, stale or to come",
    "bitgrid status experiments/quickstart.yaml",
    _status,
    _add_status_arguments,
)


def _add_methods_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="the method whose fields are shown")


def _methods(arguments: argparse.Namespace) -> int:
    from harness.config.settings import list_settings
    from harness.core.component import Component
    from harness.method import METHODS

    if arguments.name is None:
        for name, entry in METHODS.load().items():
            print(f"{name:16}{entry.about}")
        for name, missing in METHODS.unavailable().items():
            print(f"{name:16}unavailable: {missing.reason} ({os.path.relpath(missing.file)})")
        return 0
    entry = METHODS.find(arguments.name)
    print(f"{entry.name} ({entry.title}): {entry.about}")
    print(f"source: {os.path.relpath(entry.source)}")
    for path, value in list_settings(entry.method):
        remarks = []
        if isinstance(value, Component):
            remarks.append(f"of {', '.join(sorted(value.siblings()))}")
        if path in entry.fixed:
            remarks.append("fixed where only compared against")
        plain = "" if hasattr(value, "__dataclass_fields__") else value
        shown = getattr(value, "name", plain)
        print(f"  {path:28}{shown!s:18}{'; '.join(remarks)}".rstrip())
    return 0


METHODS = Verb(
    "methods",
    "the methods, or the fields of one",
    "bitgrid methods bitdistiller",
    _methods,
    _add_methods_arguments,
)


def _add_tasks_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--all", action="store_true", help="lm-eval's own tasks too (takes seconds)"
    )


def _tasks(arguments: argparse.Namespace) -> int:
    from harness.evaluation import evaluate, tasks

    for name, protocol in evaluate.PERPLEXITY.items():
        print(f"{name:24}perplexity: {protocol.words}; window {protocol.window}")
    for name in tasks.testbed():
        print(f"{name:24}lm-eval task on the embedded testbed")
    if arguments.all:
        for name in tasks.names():
            print(f"{name:24}lm-eval")
    else:
        print("and every lm-eval task by name (--all lists them)")
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
    "bitgrid schema > docs/grid.schema.json",
    _schema,
)
