"""lm-eval: its tasks by name, the data sets that they read, and a run of one on a model in memory.

The only file that imports lm_eval. A task is built by lm-eval from its own YAML and functions; what
it would download comes from the mirror where one is set (`hub`), and what it would execute goes to
the one sandbox (`sandbox`). Not here: the stage, its rows and perplexity (`evaluate`).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase

from harness.core.errors import GridError, ModelError, TextError, nearest
from harness.core.reads import Read
from harness.core.stage import canonical
from harness.data.hub import Access, Split
from harness.data.jsonl import read_dataset
from harness.evaluation import sandbox
from harness.models import Model
from harness.testbed import world

TESTBED = Path(__file__).parents[1] / "testbed" / "tasks"
OURS = {"wikitext-word": "wikitext"}  # names that say what lm-eval's leave open
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
FILES = ("data_files", "data_dir", "revision")  # options that name files, not a configuration


def check(task: str, others: Iterable[str], texts: Iterable[str]) -> None:
    """Raise GridError where lm-eval has no task `task`: the nearest name of its own or `others`.

    `texts`: names of what is no task, though a reader may take it for one.
    """
    if task in OURS.values():
        ours = next(name for name, theirs in OURS.items() if theirs == task)
        raise GridError(
            f"task {task!r} is ambiguous; {ours!r} is lm-eval's word perplexity, 'wikitext2' the "
            "token perplexity of the quantisation papers"
        )
    if task not in testbed() and task not in (known := names()):
        if task.partition(":")[0] in texts:
            raise GridError(f"{task!r} is a text, not a task; perplexities: {', '.join(others)}")
        raise GridError(f"task {task!r} is unknown; {nearest(task, {*known, *others})}")


@cache
def names() -> tuple[str, ...]:
    """Names of all tasks and groups that the installed lm-eval knows; takes seconds."""
    return tuple(sorted({*_manager(False).all_tasks, *OURS} - {*OURS.values()}))


def testbed() -> tuple[str, ...]:
    """Names of the embedded tasks, which need no download."""
    return tuple(_testbed())


def runs_code(task: str) -> bool:
    """Whether scoring a task means running what the model wrote."""
    return task == "testbed_code" or any(config.get("unsafe_code") for config in _configs(task))


def check_model(
    task: str, bos: bool, tokenizer: PreTrainedTokenizerBase, context: int | None
) -> None:
    """Raise ModelError where a model cannot do a task as asked, by its tokenizer and context."""
    first = tokenizer.encode("a", add_special_tokens=bos)[0]
    if bos and tokenizer.bos_token_id is None:
        raise ModelError(f"{task}: bos is true, but the tokenizer has no BOS token")
    if (first == tokenizer.bos_token_id) != bos:
        raise ModelError(
            f"{task}: bos is {str(bos).lower()}, but the tokenizer's first token is "
            f"{tokenizer.convert_ids_to_tokens(first)!r}"
        )
    for config in _configs(task):
        if config.get("output_type", "generate_until") != "generate_until":
            continue
        most = _generated(config.get("generation_kwargs") or {})
        if context is not None and most >= context:
            raise ModelError(
                f"{task}: answers may have {most} tokens, but the model's context is {context}"
            )
        if not (tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token):
            raise ModelError(
                f"{task}: answers are generated in batches, but the tokenizer has no PAD token, nor "
                "one (EOS, UNK) to take for it"
            )


def reads(task: str, shots: int | None) -> tuple[Split, ...]:
    """The splits that a task, or the tasks of a group, read, by their YAML; nothing is loaded.

    Empty for tasks that are Python classes, make their own data or name single files: what those
    read cannot be known before, or cannot be mirrored.
    """
    return tuple(_needs(task, shots))


@cache
def _needs(task: str, shots: int | None) -> dict[Split, frozenset[str]]:
    """The splits that a task reads, each with the columns that its templates name."""
    found: dict[Split, frozenset[str]] = {}
    for config in _configs(task):
        if "class" in config or "custom_dataset" in config or not config.get("dataset_path"):
            continue
        if _files(config.get("dataset_kwargs") or {}):
            continue
        for name in _splits(config, shots):
            split = Split(config["dataset_path"], config.get("dataset_name"), name)
            found[split] = found.get(split, frozenset()) | _columns(config)
    return found


def _columns(config: Mapping[str, Any]) -> frozenset[str]:
    """The columns that a task's templates name; none where a function makes them of others first.

    lm-eval takes a column that is not there for a word to be written as it is: answers without the
    column of the right one are all wrong.
    """
    from jinja2 import Environment, meta

    found: set[str] = set()
    choices = config.get("doc_to_choice")
    for part in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        said = config.get(part)
        if config.get("process_docs") or not isinstance(said, str) or "is defined" in said:
            continue
        if not said.isidentifier():
            found |= meta.find_undeclared_variables(Environment().parse(said))
        elif part != "doc_to_target" or (choices and said not in choices):  # else a word, at times
            found.add(said)
    return frozenset(found)


@dataclass(frozen=True)
class Unlisted(Read):
    """What a task reads whose YAML does not say it."""

    task: str

    @property
    def obstacle(self) -> str:
        return f"task {self.task!r}: only its code knows what it reads"


def digest(task: str, shots: int | None, access: Access) -> str:
    """What pins a task's items: lm-eval's version, and the content or commit of each split read.

    Raises TextError where a split is neither mirrored nor, by the hub's word, there.
    """
    if task in testbed():
        return f"world-{world.VERSION}"
    pinned = []
    for read, columns in _needs(task, shots).items():
        try:
            pinned.append([*read[:3], access.digest(read, columns=sorted(columns))])
        except TextError as error:
            raise TextError(f"task {task!r} reads {read}: {error}") from error
    content = hashlib.sha256(canonical(pinned).encode()).hexdigest()[:24]
    return f"lm-eval-{release()}-{content}"


def release() -> str:
    """The installed lm-eval's version."""
    return version("lm_eval")


def evaluate(
    model: Model,
    task: str,
    shots: int | None,
    bos: bool,
    limit: int | None,
    batch_size: int,
    access: Access,
) -> dict[str, Any]:
    """What lm-eval's `simple_evaluate` says of one task, or group of tasks, on a model in memory.

    Beside what it says, `cut`: for each task the number of items whose prompt was shortened.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    check_model(task, bos, model.tokenizer, model.context)
    with _quiet(), _served(access):
        language_model = HFLM(
            pretrained=model.network,
            tokenizer=copy.deepcopy(model.tokenizer),  # where it has no PAD, one is put in
            batch_size=batch_size,
            max_length=model.context,
            add_bos_token=bos,
        )
        with _blaming_rows(task, shots, access):
            found = lm_eval.simple_evaluate(
                model=language_model,
                tasks=[OURS.get(task, task)],
                num_fewshot=shots,
                limit=limit,
                task_manager=_manager(task in testbed()),
                confirm_run_unsafe_code=True,  # the grid has asked for leave before anything ran
            )
        assert found is not None  # None is for processes that are not the first of several
        cut = {name: _cut(items, model, bos) for name, items in found["samples"].items()}
    return {**found, "cut": cut}


@contextlib.contextmanager
def _blaming_rows(task: str, shots: int | None, access: Access) -> Iterator[None]:
    """What a task's own templates and functions stumble over is said with the columns they were given.

    Each task stumbles in its own way over a column that is missing or holds something else.
    """
    from jinja2 import UndefinedError

    try:
        yield
    except (UndefinedError, LookupError, TypeError, ValueError, AttributeError) as error:
        files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
        if not any("lm_eval/tasks/" in file or "lm_eval/api/task" in file for file in files):
            raise
        names = {split.path: access.rows(split).column_names for split in reads(task, shots)}
        columns = "; ".join(f"{p} has the columns {', '.join(each)}" for p, each in names.items())
        why = f"{type(error).__name__} {error}".splitlines()[0]
        raise TextError(
            f"task {task!r} does not fit the rows it reads: {why}; {columns}"
        ) from error


def _cut(samples: list[dict[str, Any]], model: Model, bos: bool) -> int:
    """How many items had a request longer than the context, which lm-eval shortens from the left."""
    too_long = set()
    for sample in samples:
        # Of requests that share a prompt the longest decides; texts scored in windows lose nothing.
        texts = [r for r in sample["arguments"] if len(r) > 1]
        for prompt, rest in sorted(texts, key=_length)[-1:]:
            whole, room = prompt, model.context
            if isinstance(rest, str):
                whole, room = prompt + rest, room + 1  # the last token is only predicted
            else:
                room -= _generated(rest)
            # A token is a byte at least, so most texts need not be encoded to be known to fit.
            fits = len(whole.encode()) < room
            if not fits and len(model.tokenizer.encode(whole, add_special_tokens=bos)) > room:
                too_long.add(sample["doc_id"])
    return len(too_long)


def _length(request: tuple[str, Any]) -> int:
    return sum(len(part) for part in request if isinstance(part, str))


@cache
def _manager(testbed_only: bool) -> Any:
    from lm_eval.tasks import TaskManager

    # lm-eval's own index takes seconds to read, which the testbed does not need.
    return TaskManager(include_path=str(TESTBED), include_defaults=not testbed_only)


def _configs(task: str) -> Iterator[dict[str, Any]]:
    """The YAML of a task, or of each task of a group or tag."""
    if task in testbed():
        return iter([_testbed()[task]])
    return _leaves({"task": [OURS.get(task, task)]}, {}, _manager(False).task_index)


def _files(options: Mapping[str, Any]) -> str | None:
    """The option by which a task asks for files in place of a configuration, if it does."""
    return next((option for option in FILES if options.get(option)), None)


class _Loader(yaml.SafeLoader):
    """The functions that a task's YAML names stay names."""


_Loader.add_constructor("!function", lambda loader, node: node.value)


@cache
def _testbed() -> dict[str, dict[str, Any]]:
    """The YAML of the embedded tasks by name, read without lm-eval, whose import takes seconds."""
    read = [yaml.load(path.read_text(), _Loader) for path in sorted(TESTBED.glob("*.yaml"))]
    return {config["task"]: config for config in read}


def _generated(options: Mapping[str, Any]) -> int:
    """The most tokens that a task lets a model write, by any of the names that lm-eval takes."""
    given = (options.get(name) for name in LENGTHS)
    return next((int(length) for length in given if length is not None), 256)


def _leaves(
    group: Mapping[str, Any], overrides: Mapping[str, Any], index: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The tasks of a group as lm-eval's factory resolves them: the group's settings win."""
    from lm_eval.tasks._factory import GROUP_FIELD_NAMES

    above = {**{k: v for k, v in group.items() if k not in GROUP_FIELD_NAMES}, **overrides}
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
    found = [test or validation]
    own = config.get("num_fewshot")
    # As lm-eval: a task that says 0 keeps it.
    if own != 0 and (own if shots is None else shots):
        examples = config.get("fewshot_config") or {}
        chosen = examples.get("split") or config.get("fewshot_split")
        if chosen or not examples.get("samples"):
            found.append(chosen or config.get("training_split") or validation or test)
    return [split for split in found if split]


@contextlib.contextmanager
def _served(access: Access) -> Iterator[None]:
    """Inside, what tasks load comes from the mirror, and what they execute runs in the sandbox."""
    import datasets
    import evaluate as metrics  # type: ignore[import-untyped]

    load_dataset, load_metric = datasets.load_dataset, metrics.load

    def dataset(path: str, name: str | None = None, **options: Any) -> Any:
        if access.folder is None:
            pinned = access.revision(path) if "/" in path else None  # else a format: json, csv
            return load_dataset(path, name, **{"revision": pinned, **options})
        if named := _files(options):
            raise TextError(f"data set {path}: a mirror has no {named}, which the task asks for")
        found = _Mirrored(access, path, name)
        return found[options["split"]] if options.get("split") else found

    def metric(path: str, *arguments: Any, **options: Any) -> Any:
        if path == "code_eval":
            return SimpleNamespace(compute=sandbox.pass_at_k)
        return load_metric(path, *arguments, **options)

    datasets.load_dataset, metrics.load = dataset, metric
    try:
        yield
    finally:
        datasets.load_dataset, metrics.load = load_dataset, load_metric


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
