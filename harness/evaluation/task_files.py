"""The files of lm-eval's tasks: what they read, ask of a model and execute, before one is run.

A task is one of lm-eval's own by name, or lies in a package's folder of task files, which is read
without importing lm-eval. Not here: running a task (`lm_eval_run`), its stage and rows (`lm_eval`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase

from harness import compat
from harness.core.errors import GridError, ModelError, TextError
from harness.core.reads import Read
from harness.core.stage import to_canonical_json
from harness.data.hub import Access, Split

OURS = {"wikitext-word": "wikitext"}  # names that say what lm-eval's leave open
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice")
NO_FIRST_TOKEN = (
    "texts are scored from their first token on, after a BOS or EOS token, and the tokenizer has "
    "neither: set bos_token in its tokenizer_config.json"
)
FILES = ("data_files", "data_dir", "revision")  # options that name files, not a configuration


@dataclass(frozen=True)
class Task:
    """A task, group or tag: one of lm-eval's own, or of the task files in `folder`."""

    name: str
    folder: Path | None = None

    @property
    def lm_eval_name(self) -> str:
        return OURS.get(self.name, self.name)

    @property
    def manager(self) -> Any:
        """lm-eval's `TaskManager` that knows the task."""
        return compat.make_task_manager(self.folder)

    def configs(self) -> Iterator[dict[str, Any]]:
        """What the task's file says; of a group or tag, of each of its tasks."""
        if self.folder is not None:
            return iter([read_folder(self.folder)[self.name]])
        return _leaves({"task": [self.lm_eval_name]}, {}, self.manager.task_index)

    def members(self) -> tuple[str, ...]:
        """The names of a group's or tag's tasks, or of the task alone."""
        return tuple(str(config["task"]) for config in self.configs())

    def has_mean(self) -> bool:
        """Whether all its tasks share a metric, so that they have a mean; where files do not say
        their metrics, they do."""
        metrics = [
            {(m["metric"], f.get("name")) for m in listed for f in c.get("filter_list") or [{}]}
            for c in self.configs()
            if (listed := c.get("metric_list"))
        ]
        return not metrics or bool(set.intersection(*metrics))

    @property
    def runs_code(self) -> bool:
        """Whether scoring it means running what the model wrote."""
        return any(config.get("unsafe_code") for config in self.configs())

    @property
    def is_perplexity(self) -> bool:
        """Whether whole texts are scored, so that less is better."""
        return any(c.get("output_type") == "loglikelihood_rolling" for c in self.configs())


@cache
def names() -> tuple[str, ...]:
    """Names of all tasks and groups that the installed lm-eval knows; takes seconds at first."""
    return tuple(sorted({*compat.make_task_manager(None).all_tasks, *OURS} - {*OURS.values()}))


def check_unambiguous(name: str) -> None:
    """Raise GridError for a name of lm-eval's that a reader takes for something else."""
    if name in OURS.values():
        ours = next(ours for ours, theirs in OURS.items() if theirs == name)
        raise GridError(
            f"task {name!r} is ambiguous; {ours!r} is lm-eval's word perplexity, 'wikitext2' the "
            "token perplexity of the quantisation papers"
        )


@cache
def read_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """The task files of a folder by task name, read without lm-eval, whose import takes seconds."""
    configs = [yaml.load(path.read_text(), _Loader) for path in sorted(folder.glob("*.yaml"))]
    return {config["task"]: config for config in configs}


class FunctionName(str):
    """`module.function`, beside the task's file."""


class _Loader(yaml.SafeLoader):
    """The functions that a task's YAML names stay names."""


_Loader.add_constructor("!function", lambda loader, node: FunctionName(node.value))


def function_names(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(module, function) of each function that a task's own file names."""
    for value in config.values():
        if isinstance(value, FunctionName):
            module, _, function = value.rpartition(".")
            yield module, function


def count_room(context: int | None) -> int:
    """The tokens of a text that a model reads; one without a limit, as state-space models are,
    reads lm-eval's default."""
    return context or 2048


def check_model(
    task: Task, bos: bool, tokenizer: PreTrainedTokenizerBase, context: int | None
) -> None:
    """Raise ModelError where a model cannot do a task as asked, by its tokenizer and context."""
    first = tokenizer.encode("a", add_special_tokens=bos)[0]
    if bos and tokenizer.bos_token_id is None:
        raise ModelError(
            f"{task.name}: bos is true, but the tokenizer has no BOS token; set it to false"
        )
    if (first == tokenizer.bos_token_id) != bos:
        raise ModelError(
            f"{task.name}: bos is {str(bos).lower()}, but the tokenizer's first token is "
            f"{tokenizer.convert_ids_to_tokens(first)!r}"
        )
    no_first = tokenizer.bos_token_id is None and tokenizer.eos_token_id is None
    for config in task.configs():
        kind = config.get("output_type", "generate_until")
        if no_first and (kind == "loglikelihood_rolling" or config.get("doc_to_text") == ""):
            raise ModelError(f"{task.name}: {NO_FIRST_TOKEN}")
        if kind != "generate_until":
            continue
        most = longest_answer(config.get("generation_kwargs") or {})
        if context is not None and most >= context:
            raise ModelError(
                f"{task.name}: answers may have {most} tokens, but the model's context is {context}"
            )


def find_splits(task: Task, shots: int | None) -> tuple[Split, ...]:
    """The splits that a task, or the tasks of a group, read, by their YAML; nothing is loaded.

    Empty for tasks that are Python classes, make their own data or name single files: what those
    read cannot be known before, or cannot be mirrored.
    """
    return tuple(_needs(task, shots))


@cache
def _needs(task: Task, shots: int | None) -> dict[Split, frozenset[str]]:
    """The splits that a task reads, each with the columns that its templates name."""
    needs: dict[Split, frozenset[str]] = {}
    for config in task.configs():
        if "class" in config or "custom_dataset" in config or not config.get("dataset_path"):
            continue
        if find_file_option(config.get("dataset_kwargs") or {}):
            continue
        for name in _splits(config, shots):
            split = Split(config["dataset_path"], config.get("dataset_name"), name)
            needs[split] = needs.get(split, frozenset()) | find_columns(config)
    return needs


def find_columns(config: Mapping[str, Any]) -> frozenset[str]:
    """The columns that a task's templates name; none where a function makes them of others first.

    lm-eval takes a column that is not there for a word to be written as it is: answers without the
    column of the right one are all wrong.
    """
    from jinja2 import Environment, meta

    columns: set[str] = set()
    choices = config.get("doc_to_choice")
    for part in _TEMPLATES:
        template = config.get(part)
        if config.get("process_docs") or not isinstance(template, str) or "is defined" in template:
            continue
        if not template.isidentifier():
            columns |= meta.find_undeclared_variables(Environment().parse(template))
        elif part != "doc_to_target" or (
            choices and template not in choices
        ):  # else a word, at times
            columns.add(template)
    return frozenset(columns)


def find_lists(config: Mapping[str, Any]) -> frozenset[str]:
    """The columns that a task's templates take an item out of, by its place: `choices[0]`.

    Of a text that is a letter, which no template complains of.
    """
    from jinja2 import Environment, nodes

    columns: set[str] = set()
    for part in _TEMPLATES:
        template = config.get(part)
        if config.get("process_docs") or not isinstance(template, str):
            continue
        for item in Environment().parse(template).find_all(nodes.Getitem):
            of, place = item.node, item.arg
            is_number = isinstance(place, nodes.Const) and isinstance(place.value, int)
            if isinstance(of, nodes.Name) and is_number:
                columns.add(of.name)
    return frozenset(columns)


@dataclass(frozen=True)
class Unlisted(Read):
    """What a task reads whose YAML does not say it."""

    task: str

    @property
    def obstacle(self) -> str:
        return f"task {self.task!r}: only its code knows what it reads"


def digest(task: Task, shots: int | None, access: Access) -> str:
    """What pins a task's items: lm-eval's version, and the content or commit of each split read.

    Raises TextError where a split is neither mirrored nor, by the hub's word, there.
    """
    pinned = []
    for split, columns in _needs(task, shots).items():
        try:
            pinned.append([*split[:3], access.digest(split, columns=sorted(columns))])
        except TextError as error:
            raise TextError(f"task {task.name!r} reads {split}: {error}") from error
    content = hashlib.sha256(to_canonical_json(pinned).encode()).hexdigest()[:24]
    return f"lm-eval-{release()}-{content}"


def release() -> str:
    """The installed lm-eval's version."""
    return version("lm_eval")


def longest_answer(options: Mapping[str, Any]) -> int:
    """The most tokens that a task lets a model write, by any of the names that lm-eval takes."""
    lengths = (options.get(name) for name in LENGTHS)
    return next((int(length) for length in lengths if length is not None), 256)


def find_file_option(options: Mapping[str, Any]) -> str | None:
    """The option by which a task asks for files in place of a configuration, if it does."""
    return next((option for option in FILES if options.get(option)), None)


def _leaves(
    group: Mapping[str, Any], overrides: Mapping[str, Any], index: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The tasks of a group as lm-eval's factory resolves them: the group's settings win."""
    above = {**{k: v for k, v in group.items() if k not in compat.group_field_names()}, **overrides}
    for item in group["task"]:
        own = {"task": item} if isinstance(item, str) else dict(item)
        inner = own.pop("group", None)
        entry = index.get(inner or own["task"])
        own = {**above, **own}
        if inner and entry is None:
            yield from _leaves(item, above, index)
        elif entry is None:
            yield own
        elif entry.tags and entry.cfg is None:  # a tag: only the names of its tasks
            yield from _leaves({"task": sorted(entry.tags)}, own, index)
        elif "group" in entry.cfg:
            yield from _leaves(entry.cfg, own, index)
        else:
            yield {**entry.cfg, **own}


def _splits(config: Mapping[str, Any], shots: int | None) -> list[str]:
    """The splits that a task reads: of its items, and of the examples where any are asked for."""
    validation, test = config.get("validation_split"), config.get("test_split")
    names = [test or validation]
    own = config.get("num_fewshot")
    # As lm-eval: a task that says 0 keeps it.
    if own != 0 and (own if shots is None else shots):
        examples = config.get("fewshot_config") or {}
        chosen = examples.get("split") or config.get("fewshot_split")
        if chosen or not examples.get("samples"):
            names.append(chosen or config.get("training_split") or validation or test)
    return [split for split in names if split]
