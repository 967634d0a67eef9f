"""Runs one task of lm-eval on a model in memory.

What the task would download comes from the mirror where one is set, and what it would execute goes
to what the caller hands in. Not here: what a task needs (`task_files`), the stage and its rows
(`lm_eval`), the model as lm-eval uses it (`lm_eval_model`).
"""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

from harness import compat
from harness.core.errors import GridError, TextError
from harness.data.hub import Access
from harness.data.jsonl import read_dataset
from harness.evaluation.task_files import (
    Task,
    check_model,
    count_room,
    find_file_option,
    find_splits,
    longest_answer,
)
from harness.evaluation.task_items import check_items, describe_columns
from harness.models import Model


def run_task(
    model: Model,
    task: Task,
    shots: int | None,
    bos: bool,
    limit: int | None,
    batch_size: int,
    access: Access,
    digest: str,
    run_tests: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """What lm-eval's `simple_evaluate` says of one task, or group of tasks, on a model in memory.

    `run_tests` takes the place of the hub's `code_eval`; without it a task that needs that fails.
    Beside what it says, `cut`: for each task the number of items whose prompt was shortened.
    """
    import lm_eval

    from harness.evaluation.lm_eval_model import CheckedLM

    check_model(task, bos, model.tokenizer, model.context)
    check_task(task, shots, access, digest, run_tests)
    with (
        _quiet(),
        _served(access, run_tests),
        compat.undescribed_machine(),
        compat.kept_templates(),
    ):
        language_model = CheckedLM(model, batch_size, bos)
        with _blaming_rows(task, shots, access):
            results = lm_eval.simple_evaluate(
                model=language_model,
                tasks=[task.lm_eval_name],
                num_fewshot=shots,
                limit=limit,
                task_manager=task.manager,
                confirm_run_unsafe_code=True,  # the grid has allowed it, before anything ran
            )
        assert results is not None  # None is for processes that are not the first of several
        cut = {name: _count_cut(items, model, bos) for name, items in results["samples"].items()}
    return {**results, "cut": cut}


@cache
def check_task(
    task: Task,
    shots: int | None,
    access: Access,
    digest: str,
    run_tests: Callable[..., Any] | None,
) -> None:
    """Raise TextError where an item of a task cannot be scored: see `task_items`.

    `digest` pins the items, so that they are looked at once.
    """
    with (
        _quiet(),
        _served(access, run_tests),
        compat.kept_templates(),
        _blaming_rows(task, shots, access),
    ):
        for each in task.manager.load([task.lm_eval_name])["tasks"].values():
            check_items(each, shots)


@contextlib.contextmanager
def _blaming_rows(task: Task, shots: int | None, access: Access) -> Iterator[None]:
    """An error of a task's own templates and functions, said with the columns they were given.

    Each task stumbles in its own way over a column that is missing or holds something else.
    """
    from jinja2 import UndefinedError

    try:
        yield
    except (UndefinedError, LookupError, TypeError, ValueError, AttributeError) as error:
        files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
        if not any("lm_eval/tasks/" in file or "lm_eval/api/task" in file for file in files):
            raise
        rows = {split.path: access.rows(split) for split in find_splits(task, shots)}
        columns = "; ".join(
            f"{path} has the columns {describe_columns(held[0]) if len(held) else 'of no row'}"
            for path, held in rows.items()
        )
        why = f"{type(error).__name__} {error}".splitlines()[0]
        raise TextError(
            f"task {task.name!r} does not fit the rows it reads: {why}; {columns}"
        ) from error


def _count_cut(samples: list[dict[str, Any]], model: Model, bos: bool) -> int:
    """How many items had a request beyond the context, which lm-eval shortens from the left."""
    too_long = set()
    for sample in samples:
        # Of requests that share a prompt the longest decides; texts scored in windows lose nothing.
        texts = [r for r in sample["arguments"] if len(r) > 1]
        for prompt, rest in sorted(texts, key=_length)[-1:]:
            full_prompt, room = prompt, count_room(model.context)
            if isinstance(rest, str):
                full_prompt, room = prompt + rest, room + 1  # the last token is only predicted
            else:
                room -= longest_answer(rest)
            # A token is a byte at least, so most texts need not be encoded to be known to fit.
            fits = len(full_prompt.encode()) < room
            if not fits and len(model.tokenizer.encode(full_prompt, add_special_tokens=bos)) > room:
                too_long.add(sample["doc_id"])
    return len(too_long)


def _length(request: tuple[str, Any]) -> int:
    return sum(len(part) for part in request if isinstance(part, str))


@contextlib.contextmanager
def _served(access: Access, run_tests: Callable[..., Any] | None = None) -> Iterator[None]:
    """Inside, what tasks load comes from the mirror, and what they execute goes to `run_tests`."""
    load_dataset, load_metric = compat.loaders()

    def dataset(path: str, name: str | None = None, **options: Any) -> Any:
        if access.folder is None:
            pinned = access.revision(path) if "/" in path else None  # else a format: json, csv
            return load_dataset(path, name, **{"revision": pinned, **options})
        if file_option := find_file_option(options):
            raise TextError(
                f"data set {path}: a mirror has no {file_option}, which the task asks for"
            )
        splits = _Mirrored(access, path, name)
        return splits[options["split"]] if options.get("split") else splits

    def metric(path: str, *arguments: Any, **options: Any) -> Any:
        if path == "code_eval":
            if run_tests is None:
                raise GridError(
                    "this task runs what a model wrote, but does not say so: unsafe_code"
                )
            return SimpleNamespace(compute=run_tests)
        return load_metric(path, *arguments, **options)

    with compat.replaced_loaders(dataset, metric):
        yield


class _Mirrored(dict[str, Any]):
    """The splits of a mirrored data set by name.

    lm-eval reads the split of examples of every task, also where it asks for no example: what the
    mirror lacks is there, but empty. `digest` has seen to it that what is needed is not.
    """

    def __init__(self, access: Access, path: str, config: str | None) -> None:
        super().__init__(
            {split: read_dataset(file) for split, file in access.mirrored(path, config).items()}
        )
        if not self:
            raise TextError(f"the mirror has nothing of data set {path} ({config or 'default'})")

    def __missing__(self, split: str) -> Any:
        return next(iter(self.values())).select([])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's bars and warnings would break the one progress line; its errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
