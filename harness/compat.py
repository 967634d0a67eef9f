"""Private doors of libraries: names that they do not promise to keep, each with the version read.

Whoever updates a library looks here first. Imports stay inside functions, since some take seconds.
Not here: what libraries document.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any


@cache
def make_task_manager(folder: Path | None) -> Any:
    """lm-eval's `TaskManager`: of its own tasks, or of those in a folder alone.

    lm_eval 0.4.13: `include_defaults=False` leaves out its own index, which takes seconds to read;
    `task_index` has an `Entry` (`tags`, `cfg`) a name.
    """
    from lm_eval.tasks import TaskManager

    if folder is None:
        return TaskManager()
    return TaskManager(include_path=str(folder), include_defaults=False)


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
