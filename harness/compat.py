"""Private doors of libraries: names that they do not promise to keep, each with the version read.

Whoever updates a library looks here first. Imports stay inside functions, since some take seconds.
Not here: what libraries document.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from harness.core.kept import keep, recall


@cache
def make_task_manager(folder: Path | None) -> Any:
    """lm-eval's `TaskManager`: of its own tasks, or of those in a folder alone.

    lm_eval 0.4.13: `include_defaults=False` leaves out its own index; `task_index` has an `Entry`
    (`tags`, `cfg`) a name.
    """
    from lm_eval.tasks import TaskManager

    if folder is not None:
        return TaskManager(include_path=str(folder), include_defaults=False)
    with kept_index():
        return TaskManager()


@contextlib.contextmanager
def kept_index() -> Iterator[None]:
    """Inside, a `TaskManager` reads its index from the user's cache, where none of the files behind
    it has changed since: lm-eval parses 14,000 files for it (lm_eval 0.4.13: `TaskIndex.build`)."""
    from lm_eval.tasks._index import Entry, Kind, TaskIndex

    def build(paths: Iterable[Path]) -> dict[str, Any]:
        folders = list(paths)
        marks = [mark for folder in folders for mark in _mark_files(folder)]
        basis = (importlib.metadata.version("lm_eval"), *map(str, folders), *marks)
        if (kept := recall("lm-eval-index", *basis)) is not None:
            return {name: unpack(name, *fields) for name, fields in kept.items()}
        index = before(folders)
        packed = {
            name: [each.kind.name, each.yaml_path and str(each.yaml_path), each.cfg, [*each.tags]]
            for name, each in index.items()
        }
        with contextlib.suppress(TypeError):  # of what JSON has no words for
            if json.loads(json.dumps(packed)) == packed:
                keep("lm-eval-index", packed, *basis)
        return index

    def unpack(name: str, kind: str, path: str | None, cfg: Any, tags: list[str]) -> Entry:
        return Entry(name, Kind[kind], path and Path(path), cfg, set(tags))

    before = TaskIndex.build
    TaskIndex.build = staticmethod(build)
    try:
        yield
    finally:
        TaskIndex.build = staticmethod(before)


def _mark_files(folder: Path) -> Iterator[str]:
    """Path, size and time of change of each file that tasks may be read from: of all but code,
    since what a task's file includes has any name."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        for name in sorted(names):
            if name.endswith(".py"):
                continue
            path = os.path.join(place, name)
            with contextlib.suppress(OSError):  # a link to nothing, as editors leave: not read
                file = os.stat(path)
                yield f"{path} {file.st_size} {file.st_mtime_ns}"


def group_field_names() -> Collection[str]:
    """The fields of a group's file that are not passed on to its tasks (lm_eval 0.4.13)."""
    from lm_eval.tasks._factory import GROUP_FIELD_NAMES

    names: Collection[str] = GROUP_FIELD_NAMES
    return names


def loaders() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`datasets.load_dataset` and `evaluate.load`, as lm-eval's tasks call them."""
    import datasets
    import evaluate  # type: ignore[import-untyped]

    return datasets.load_dataset, evaluate.load


@contextlib.contextmanager
def replaced_loaders(dataset: Callable[..., Any], metric: Callable[..., Any]) -> Iterator[None]:
    """Inside, lm-eval's tasks load data sets and metrics through these two functions.

    lm_eval 0.4.13 calls both as attributes of their modules (datasets 4.x, evaluate 0.4.x).
    """
    import datasets
    import evaluate

    before = loaders()
    datasets.load_dataset, evaluate.load = dataset, metric
    try:
        yield
    finally:
        datasets.load_dataset, evaluate.load = before


@contextlib.contextmanager
def kept_templates() -> Iterator[None]:
    """Inside, lm-eval compiles each of its tasks' templates once, not for every item and every
    example before it, which is half of what MMLU takes beside the model (lm_eval 0.4.13: an
    environment of jinja2 in its utils)."""
    from lm_eval.utils import env

    env.from_string = lru_cache(maxsize=256)(env.from_string)
    try:
        yield
    finally:
        del env.from_string  # the class has its own


@contextlib.contextmanager
def undescribed_machine() -> Iterator[None]:
    """Inside, lm-eval does not describe the machine, for which it lists all packages in a process
    of its own: a second or two a task, and nothing here reads it (lm_eval 0.4.13, torch 2.13)."""
    from torch.utils import collect_env

    before = collect_env.get_pretty_env_info
    collect_env.get_pretty_env_info = lambda: ""
    try:
        yield
    finally:
        collect_env.get_pretty_env_info = before
