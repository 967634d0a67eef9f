"""lm-eval's tasks as evaluations: the stage that scores one, its rows, how tasks are registered.

A package registers a folder of its own task files with `register_folder`; lm-eval's own are a
catalogue. Not here: a run of lm-eval (`lm_eval_run`), what its task files say (`task_files`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from harness.core.errors import GridError
from harness.core.reads import LocalFiles, Read
from harness.core.records import NO_FILTER, Score
from harness.core.stage import Input, Resources, Stage, incidental, kinds, value
from harness.data.fill import DataSetRead
from harness.data.hub import Access, current, find_access
from harness.evaluation.evaluations import (
    Catalogue,
    Evaluation,
    find_evaluation,
    register_catalogue,
    register_evaluation,
)
from harness.evaluation.lm_eval_options import LmEvalCodeOptions, LmEvalOptions
from harness.evaluation.lm_eval_rows import (
    add_aggregation,
    add_chance,
    add_cuts,
    add_means,
    choose_primary,
    read_scores,
)
from harness.evaluation.lm_eval_run import check_task, run_task
from harness.evaluation.scores import (
    EVALUATION_TOKENS,
    Scores,
    check_evaluable,
    describe_precision,
    join_caveats,
    make_item_scores,
)
from harness.evaluation.task_files import (
    Task,
    Unlisted,
    check_model,
    check_unambiguous,
    digest,
    find_splits,
    function_names,
    names,
    read_folder,
    release,
)
from harness.models import Model, Pretrained, host_gib

FEWSHOT = {"mmlu": 5}  # where the field's habit is not the task's own default
USUAL_TOKENS = 1024  # what few task items exceed, however long a model's context is


@dataclass(frozen=True)
class LmEvalTask(Evaluation):
    """A task, group or tag of lm-eval, or a task in a package's folder of task files.

    `digest` pins the items, which such a task makes itself. `package` is the folder as a package,
    where the functions that the task's file names are imported from.
    """

    name: str
    folder: Path | None = None
    digest: str | None = None
    caveat: str | None = None
    package: str | None = None

    @property
    def options(self) -> type[LmEvalOptions]:
        return LmEvalCodeOptions if self.runs_code else LmEvalOptions

    @property
    def about(self) -> str:
        return "lm-eval" if self.folder is None else f"lm-eval task in {self.folder.parent.name}"

    @property
    def higher_is_better(self) -> bool:
        return not self.task.is_perplexity

    @property
    def tasks(self) -> tuple[str, ...]:
        members = self.task.members()
        return (self.name, *members) if len(members) > 1 else (self.name,)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.name,) if self.task.has_mean() else self.tasks[1:]

    @property
    def runs_code(self) -> bool:
        return self.task.runs_code

    @property
    def task(self) -> Task:
        """The task as lm-eval has it."""
        return Task(self.name, self.folder)

    def uses(self) -> tuple[Callable[..., Any] | type, ...]:
        if self.package is None:
            return ()
        return tuple(
            getattr(import_module(f"{self.package}.{module}"), function)
            for config in self.task.configs()
            for module, function in function_names(config)
        )

    def check(self, options: LmEvalOptions, base: Pretrained) -> None:
        check_model(self.task, bool(options.bos), base.tokenizer(), base.context())

    def stage(
        self, model: Stage[Model], options: LmEvalOptions, base: Pretrained | None
    ) -> Stage[Scores]:
        access, shots = current(), options.num_fewshot
        shots = FEWSHOT.get(self.name) if shots is None else shots
        is_weak_accepted = isinstance(options, LmEvalCodeOptions) and options.accept_weak_sandbox
        # By its declared name: code that runs programs is behind the tasks that do, and no others.
        kind = "lm-eval-code" if self.runs_code else LmEval.kind
        stage: type[Any] | None = kinds().get(kind)
        if stage is None:
            raise GridError(
                f"task {self.name!r} needs stages of the kind {kind!r}, which no entry point has: "
                "install Bitgrid again (pip install -e . --no-deps --no-build-isolation)"
            )
        scored: LmEval = stage(
            model,
            self.name,
            shots,
            bool(options.bos),
            self.digest or digest(self.task, shots, access),
            options.limit,
            mirror=None if access.folder is None else str(access.folder),
            caveat=join_caveats(self.caveat, base.caveat if base else None),
            **({"accept_weak_sandbox": True} if is_weak_accepted else {}),
        )
        if self.folder is None and scored.has_data(access):
            scored.check_items(access)
        return scored


@dataclass(frozen=True)
class LmEvalCatalogue(Catalogue):
    """The tasks, groups and tags of the installed lm-eval."""

    about = "lm-eval"

    def find(self, name: str) -> Evaluation | None:
        check_unambiguous(name)
        return LmEvalTask(name) if name in names() else None

    def names(self) -> Iterable[str]:
        return names()


def register_folder(
    folder: Path, digest: str, caveat: str | None = None, package: str | None = None
) -> None:
    """Make the tasks of a folder of lm-eval's task files known, each by its name.

    `digest` pins their items; `package` is the folder as a package, if it is one.
    """
    for name in read_folder(folder):
        register_evaluation(LmEvalTask(name, folder, digest, caveat, package))


@dataclass(frozen=True)
class LmEval(Stage[Scores]):
    """One lm-eval task, or group of tasks, on a model in memory."""

    kind: ClassVar[str] = "lm-eval"
    version: ClassVar[int] = 3
    model: Input[Model]
    task: str
    num_fewshot: int | None
    bos: bool
    digest: str  # of the items: see `task_files.digest`
    limit: int | None = None  # items
    mirror: str | None = incidental(None)  # data sets are read from it; BITGRID_MIRROR goes before
    caveat: str | None = incidental(None)

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1, memory_gib=host_gib(self.model), hours=2)

    def uses(self) -> tuple[Callable[..., Any] | type, ...]:
        return self._evaluation.uses()

    def reads(self) -> tuple[Read, ...]:
        if (folder := self._evaluation.folder) is not None:
            return (LocalFiles(tuple(sorted(folder.glob("*.yaml")))),)
        splits = find_splits(self._evaluation.task, self.num_fewshot)
        if not splits:
            return (Unlisted(self.task),)
        return tuple(DataSetRead(split, current(self.mirror)) for split in splits)

    @property
    def _evaluation(self) -> LmEvalTask:
        evaluation = find_evaluation(self.task)
        if not isinstance(evaluation, LmEvalTask):
            raise GridError(f"task {self.task!r} is not one of lm-eval any more")
        return evaluation

    @property
    def run_tests(self) -> Callable[..., Any] | None:
        """What runs the programs that a model wrote against their tests; None: nothing does."""
        return None

    def has_data(self, access: Access) -> bool:
        """Whether all that the task reads lies in a mirror."""
        splits = find_splits(self._evaluation.task, self.num_fewshot)
        return bool(splits) and all(access.files(split) for split in splits)

    def check_items(self, access: Access) -> None:
        """Raise TextError where an item cannot be scored, as where its label has another type."""
        task = self._evaluation.task
        check_task(task, self.num_fewshot, access, self.digest, self.run_tests)

    def preflight(self) -> None:
        # Data that cannot be had fail this stage alone, when it runs.
        with contextlib.suppress(OSError):
            self.check_items(find_access(self.mirror))

    def run(self, work: Path) -> Scores:
        model = check_evaluable(value(self.model))
        results = run_task(
            model,
            self._evaluation.task,
            self.num_fewshot,
            self.bos,
            self.limit,
            batch_size=task_batch(model.context),
            access=find_access(self.mirror),
            digest=self.digest,
            run_tests=self.run_tests,
        )
        full_names = {
            name: self.task if len(results["samples"]) == 1 else name for name in results["samples"]
        }
        rows = [row for name in full_names for row in self._rows(results, name, full_names[name])]
        rows = [add_chance(row, results, full_names) for row in rows]
        items = [
            make_item_scores(row, read_scores(results["samples"][name], row))
            for name in full_names
            for row in rows
            if row.task == full_names[name]
        ]
        rows = [add_aggregation(row, of_row) for row, of_row in zip(rows, items, strict=True)]
        if self.task not in full_names.values():
            rows = add_means(self.task, rows)
        cut = {full_names[name]: count for name, count in results["cut"].items()}
        rows = [add_cuts(row, cut) for row in rows]
        return Scores(rows, describe_precision(model), [each for each in items if each.scores])

    def _rows(self, results: Mapping[str, Any], name: str, shown: str) -> Iterator[Score]:
        """A row for each metric that lm-eval has of a task, the primary one first."""
        scores = {
            metric.removesuffix(",none"): score
            for metric, score in results["results"][name].items()
            if "," in metric and isinstance(score, int | float)
        }
        metrics = {metric for metric in scores if "_stderr" not in metric}
        primary = choose_primary(metrics)
        for metric in [primary, *sorted(metrics - {primary})]:
            base, _, chosen = metric.partition(",")
            yield Score(
                task=shown,
                metric=base,
                filter=chosen or NO_FILTER,
                group=None,
                primary=metric == primary,
                value=float(scores[metric]),
                stderr=scores.get(f"{base}_stderr" + (f",{chosen}" if chosen else "")),
                n=results["n-samples"][name]["effective"],
                higher_is_better=bool(results["higher_is_better"].get(name, {}).get(base, True)),
                aggregation=None,
                num_fewshot=results["n-shot"].get(name),
                bos=self.bos,
                chat_template=False,  # `run_task` asks for none, whatever the model
                limit=self.limit,
                protocol="lm-eval",
                window=None,
                tokenizer=None,
                task_version=str(results["versions"].get(name)),
                lm_eval=release(),
                caveat=self.caveat,
            )


def task_batch(context: int | None) -> int:
    """How many of a task's texts are run at once by a model of so long a context."""
    return max(1, EVALUATION_TOKENS // min(context or USUAL_TOKENS, USUAL_TOKENS))


register_catalogue("lm-eval", LmEvalCatalogue())
