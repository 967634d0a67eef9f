"""The items of a task, before a model sees one: can any answer to each of them be scored right?

lm-eval takes a label of another type than its task expects for a wrong answer to everything: PIQA
with the label "1" for 1 scores 0. So each item, and each example of a prompt, is read by the task's
own functions, and what they make of it is compared with what lm-eval can score. Tasks that score by
a function of their own, or are Python classes, say less: of them only what templates read is looked
at. Not here: which columns there must be (`task_files`), loading a task (`lm_eval_run`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from harness.core.errors import TextError
from harness.evaluation.task_files import find_columns, find_lists

STUMBLES = (LookupError, TypeError, ValueError, AttributeError, SyntaxError)
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number with a point",
    str: "text",
    list: "a list",
    dict: "a mapping",
    type(None): "null",
}


def check_items(task: Any, shots: int | None) -> None:
    """Raise TextError for the first item, or example, of a task that no answer is right for.

    `task`: lm-eval's object; `shots`: as a grid has it, None for the task's own.
    """
    config = task.config
    parts = {config.test_split or config.validation_split or "items": task.eval_docs}
    own = config.num_fewshot
    if own != 0 and (own if shots is None else shots):
        parts["examples"] = task.fewshot_docs() or []
    filled, lists = _find_filled(vars(config)), find_lists(vars(config))
    count = 0
    for part, docs in parts.items():
        for number, doc in enumerate(docs):
            count += 1
            fault = next(_list_column_faults(doc, filled, lists), None) or _find_fault(task, doc)
            if fault is not None:
                source = " ".join(filter(None, (config.dataset_path, config.dataset_name, part)))
                raise TextError(f"task {config.task!r}: {source}, item {number}: {fault}")
    if count == 0:
        raise TextError(f"task {config.task!r} has no items")


def describe_columns(row: Mapping[str, Any]) -> str:
    """A row's columns with what they hold: `label (text), choices (a list)`."""
    return ", ".join(f"{name} ({_name_kind(held)})" for name, held in row.items())


def _find_filled(config: Mapping[str, Any]) -> frozenset[str]:
    """The columns that must hold something: all but those that a prompt may use or not."""
    prompt = config.get("doc_to_text")
    optional = isinstance(prompt, str) and "{%" in prompt
    return find_columns({**config, "doc_to_text": None} if optional else config)


def _list_column_faults(
    doc: Mapping[str, Any], filled: Iterable[str], lists: Iterable[str]
) -> Iterator[str]:
    for column in filled:
        if column in doc and doc[column] is None:
            yield f"column {column!r} is null"
    for column in lists:
        if isinstance(doc.get(column), str):
            yield f"column {column!r} is {_show(doc[column])}; the task wants a list"


def _find_fault(task: Any, doc: Mapping[str, Any]) -> str | None:
    """What keeps an item from being scored, in words."""
    config = task.config
    if callable(config.process_results) or config.doc_to_target in (None, ""):
        return None
    try:
        return next(_list_faults(task, doc), None)
    except STUMBLES as error:
        why = f"{type(error).__name__} {error}".splitlines()[0]
        return f"the task stumbles over it: {why}; columns: {describe_columns(doc)}"


def _list_faults(task: Any, doc: Mapping[str, Any]) -> Iterator[str]:
    target = task.config.doc_to_target
    place = "the right answer"
    if isinstance(target, str) and target in doc:
        place = f"column {target!r}"
    elif isinstance(target, str):
        place = f"the right answer {target!r}"
    if task.OUTPUT_TYPE != "multiple_choice":
        right = task.doc_to_target(doc)
        if not all(_is_answer(each) for each in (right if isinstance(right, list) else [right])):
            yield f"{place} is {_show(right)}; the task wants text"
        if isinstance(right, list) is not bool(task.multiple_target):
            yield f"{place} is {_show(right)}, and of the first item it is of another kind"
        return
    choices = task.doc_to_choice(doc)
    if not isinstance(choices, list) or not choices:
        yield f"the choices are {_show(choices)}; the task wants a list of texts"
    for choice in choices:
        if not isinstance(choice, str) or choice == "":
            yield f"a choice is {_show(choice)}; the task wants text"
    # As lm-eval: where prompts differ and not answers, the right one is told by the prompt.
    right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(right, list) is not bool(task.multiple_target and not task.multiple_input):
        yield f"{place} is {_show(right)}, and of the first item it is of another kind"
    rights: Iterable[Any] = right if isinstance(right, list) else [right]
    wanted = f"the task wants a whole number from 0 to {len(choices) - 1}"
    for each in rights:
        if isinstance(each, int):
            if not 0 <= each < len(choices):
                yield f"{place} is {_show(each)}; {wanted}"
        elif isinstance(right, list) or each not in choices:
            yield f"{place} is {_show(each)}; {wanted}, or the text of a choice"
    if right == []:
        yield f"{place} is an empty list; no choice is right"


def _is_answer(right: object) -> bool:
    """Whether text that a model writes can be compared with it."""
    return isinstance(right, int | float) or (isinstance(right, str) and right.strip() != "")


def _show(held: Any) -> str:
    kind = _name_kind(held)
    if held is None:
        return kind
    text = repr(held)
    return f"{kind}, {text if len(text) <= 40 else text[:40] + '…'}"


def _name_kind(held: Any) -> str:
    return _KINDS.get(type(held), type(held).__name__)
