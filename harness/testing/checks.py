"""The checks: one function each, which says in a line what is wrong, or nothing.

They come in order, and one that needs a model of the method is not tried where there is none. Not
here: what is checked (`subjects`), the model that it is tried on (`tiny`), other models (`others`),
bits (`packing`), where trained parameters start (`starts`), what happens while it runs
(`stopping`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from harness.config.settings import configure, list_settings
from harness.core.component import Component
from harness.core.errors import BitgridError, ModelError, ValueChanged, make_line
from harness.core.stage import Stage, closure
from harness.method import Apply
from harness.models import Matrix, Model, matrices
from harness.testing.bench import Bench
from harness.testing.case import Case, Passed, Skip, explain, find_difference, find_lost
from harness.testing.killing import on_one_thread
from harness.testing.others import check_dtype, check_experts, check_odd_width
from harness.testing.packing import find_inexact, find_uncounted
from harness.testing.starts import check_start
from harness.testing.stopping import check_copies, check_stopped
from harness.testing.subjects import Subject


@dataclass(frozen=True)
class Finding:
    """What one check found. `fault`: one line, None where it passed; `skipped`: why not tried;
    `remark`: what it did not see, where it passed."""

    check: str
    fault: str | None = None
    skipped: str | None = None
    remark: str | None = None

    @property
    def state(self) -> str:
        """`passed`, `FAILED` or `skipped`."""
        return "FAILED" if self.fault else "skipped" if self.skipped else "passed"


def run_checks(subject: Subject, bench: Bench) -> list[Finding]:
    """Every check of a subject, in order."""
    return [*iterate_checks(subject, bench)]


def iterate_checks(subject: Subject, bench: Bench) -> Iterator[Finding]:
    """The same one by one: who stops at one spares the rest."""
    case, is_broken = Case(subject, bench), False
    with on_one_thread():  # as forks compute, which some of them kill
        for title, find_fault in _CHECKS.items():
            finding = _run_check(title, find_fault, case, is_broken)
            is_broken |= finding.fault is not None and find_fault in _NEEDED
            yield finding


def _run_check(
    title: str, find_fault: Callable[[Case], str | None], case: Case, is_broken: bool
) -> Finding:
    if is_broken:
        return Finding(title, skipped="there is no model to look at")
    try:
        fault = find_fault(case)
    except Skip as skip:
        return Finding(title, skipped=str(skip))
    except Passed as passed:
        return Finding(title, remark=str(passed))
    except Exception as error:  # whatever an author's code raises
        fault = explain(error, case.subject)
    return Finding(title, make_line(fault) if fault else None)


# --- what it says, and how it is planned ----------------------------------------------------------


def _check_words(case: Case) -> str | None:
    entry, part = case.subject.entry, case.subject.part
    if entry is None:
        described = part or type(case.method)
        first = (described.__doc__ or "").strip()
        generated = first.startswith(f"{described.__name__}(")  # by `dataclass`
        return None if first and not generated else f"{described.__name__} has no docstring"
    if not entry.title.strip():
        return f"{entry.name} has an empty title, which tables show"
    if len(entry.about) <= 10:
        return f"`about` of {entry.name} is {entry.about!r}; say what it does and whose paper it is"
    return None if Path(entry.source).is_file() else f"its source {entry.source} is no file"


def _check_plan(case: Case) -> str | None:
    if not isinstance(case.root, Stage):
        return f"`build` should give a stage, and gave {type(case.root).__name__}"
    if case.bench.base.key not in {stage.key for stage in closure([case.root])}:
        return "its graph does not begin at the base model, which `build` was given"
    return None


def _check_key(case: Case) -> str | None:
    """Equal fields, equal key; a field that differs is in the key unless it is declared not to."""
    copy = configure(case.method, {})
    if copy.build(case.bench.base, 0).key != case.root.key:
        return "built twice of equal fields it has two keys, so that nothing would be found again"
    if case.subject.part is not None:
        return None  # of a part, a field may mean nothing beside the others of the method
    cls: Any = type(case.method)
    for field in dataclasses.fields(cls):
        keys = set()
        for other in _vary(getattr(case.method, field.name)):
            try:
                keys.add(configure(case.method, {field.name: other}).build(case.bench.base, 0).key)
            except BitgridError:  # no value for the field, or for the others beside it
                continue
        if keys == {case.root.key} and "keyed" not in field.metadata:
            return f"with another {field.name} the key is the same: two would be one"
    return None


def _vary(held: object) -> Iterator[object]:
    """Other values that a field might take."""
    if isinstance(held, bool):
        yield not held
    elif isinstance(held, int | float):
        yield from (held + 1, held * 2, held / 2)
    elif isinstance(held, Component):
        yield from (name for name in held.siblings() if name != held.name)


# --- what comes of it -----------------------------------------------------------------------------


def _check_run(case: Case) -> str | None:
    if case.error is not None and not isinstance(case.error, ValueChanged | ModelError):
        return explain(case.error, case.subject)
    return None


def _check_input(case: Case) -> str | None:
    return str(case.error) if isinstance(case.error, ValueChanged) else None


def _check_result(case: Case) -> str | None:
    if isinstance(case.error, ModelError):
        return str(case.error)
    if not isinstance(case.model, Model):
        return f"its graph should give a Model, and gave a {type(case.model).__name__}"
    if case.model.latent:
        return "its weights are latent: those that training moves, not those of a format"
    return None


def _check_levels(case: Case) -> str | None:
    """At most 2^bits values a group, counted anew; the bits that were asked for."""
    if not case.model.quantized:
        raise Skip("it rounds nothing")
    models: list[tuple[int | None, Model]] = [(None, case.model), *case.by_bits.items()]
    for bits, model in models:
        layers = matrices(model.network)
        for name, record in model.quantized.items():
            if bits is not None and record.bits != bits:
                return f"layer {name} says {record.bits} bits where {bits} were asked for"
            most, holds = max(_count_levels(layers[name], record.group_size)), record.levels
            if most > holds:
                return f"layer {name}: {most} values in a group; {record.bits} bits hold {holds}"
    return None


def _check_bits(case: Case) -> str | None:
    """What tells the groups' levels apart takes bits too, as far as packing them shows."""
    fault = find_uncounted(case.model)
    if fault is None and (remark := find_inexact(case.model)):
        raise Passed(remark)
    return fault


def _check_others(case: Case) -> str | None:
    """What is not rounded is that of the model whose weights the result's stand for: embeddings and
    head always, the rest unless the method trains it or its class declares it in `changes`."""
    steps = case.method.steps(case.bench.base, 0)
    origin = case.bench.compute(steps[-1].origin if steps else case.bench.base)
    for part in ("get_input_embeddings", "get_output_embeddings"):
        ours, theirs = getattr(case.model.network, part)(), getattr(origin.network, part)()
        if theirs is not None and not torch.equal(ours.weight, theirs.weight):
            return f"it changes the {part.split('_')[1]} embeddings; only blocks are quantised"
    trained = {held for path, held in list_settings(case.method) if path.endswith(".trained")}
    layers = {each.parameter_name: name for name, each in matrices(origin.network).items()}
    after = dict(case.model.network.named_parameters())
    for name, old in origin.network.named_parameters():
        if name in after and torch.equal(after[name], old):
            continue
        if name in layers:
            if layers[name] not in case.model.quantized and not trained:
                return f"it changes layer {layers[name]}, which `quantized` lacks"
        elif not trained & {"body", "all"} and not any(
            fnmatch(name, pattern) for pattern in case.method.changes
        ):
            return (
                f"it changes {name}, which is no matrix of the blocks; a method that does so "
                f"declares it on its class: changes = ({name!r},)"
            )
    return None


def _check_files(case: Case) -> str | None:
    return find_lost(case.model, case.bench)


# --- what it depends on ---------------------------------------------------------------------------


def _check_again(case: Case) -> str | None:
    if name := case.unrepeated:
        return f"run twice with one seed, it gives two models: {name} differs"
    return None


def _check_resumed(case: Case) -> str | None:
    case.need_repeatable()
    if name := case.unresumed:
        return f"run again on what it left in `work`, it gives another model: {name} differs"
    return None


def _check_seed(case: Case) -> str | None:
    case.need_repeatable()
    other = case.method.build(case.bench.base, 1)
    if isinstance(case.root, Apply) and not case.method.seeded:
        drawn = case.bench.compute(dataclasses.replace(case.root, seed=1))
        if name := find_difference(case.model, drawn):
            return (
                f"it draws random numbers ({name} differs with the seed) and does not say so: "
                "seeded: ClassVar[bool] = True"
            )
    if other.key == case.root.key:
        return None
    if not find_difference(case.model, case.bench.compute(other)):
        return "its key has a seed, and another seed gives the same model: every run is done twice"
    return None


def _check_error(case: Case) -> str | None:
    if len(case.by_bits) < 2:
        raise Skip("it has no bits to vary")
    origin = case.bench.measure_logits(case.bench.compute(case.bench.base))
    errors = {
        bits: (case.bench.measure_logits(model) - origin).square().mean().item()
        for bits, model in case.by_bits.items()
    }
    if list(errors.values()) != sorted(errors.values(), reverse=True):
        told = ", ".join(f"{bits} bits {error:.3g}" for bits, error in errors.items())
        return f"the error of its logits does not fall as bits grow: {told}"
    return None


_CHECKS: Mapping[str, Callable[[Case], str | None]] = {
    "says what it is": _check_words,
    "is planned": _check_plan,
    "runs": _check_run,
    "leaves its input as it was": _check_input,
    "gives what it declares": _check_result,
    "has at most 2^bits values a group": _check_levels,
    "counts its bits": _check_bits,
    "starts each group from its own weights": check_start,
    "rounds any width, or refuses it": check_odd_width,
    "rounds experts, or refuses them": check_experts,
    "keeps the type of the model": check_dtype,
    "leaves what it does not round": _check_others,
    "saves and loads": _check_files,
    "has the key of its fields": _check_key,
    "gives the same again": _check_again,
    "goes on after a kill": _check_resumed,
    "goes on where it was stopped": check_stopped,
    "holds few copies of the model": check_copies,
    "depends on its seed as it says": _check_seed,
    "errs less with more bits": _check_error,
}
_NEEDED = (_check_plan, _check_run, _check_input, _check_result)  # the others look at a model


# --- helpers --------------------------------------------------------------------------------------


def _count_levels(matrix: Matrix, group_size: int) -> Iterator[int]:
    """The values in each group of a row."""
    rows = matrix.weight.flatten(0, -2)
    for part in rows.split(group_size or rows.shape[1], dim=1):
        ordered = part.sort(-1).values
        yield int((ordered.diff(dim=-1) != 0).sum(-1).max()) + 1
