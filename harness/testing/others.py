"""A method on other models than the plain one: of an odd width, with experts, in bfloat16.

What a method cannot do it refuses: in the plan (`check`, `build`, the rehearsal), or by a
FormatError as it runs. Not here: the models (`tiny`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from harness.config.settings import configure, list_settings
from harness.core.errors import BitgridError, FormatError
from harness.core.stage import closure
from harness.method import Method
from harness.models import Model, matrices
from harness.models.rehearsal import rehearse_all
from harness.testing.bench import Bench
from harness.testing.case import Case, Skip, Unsound, explain, find_lost
from harness.testing.packing import find_uncounted


def check_odd_width(case: Case) -> str | None:
    """Layers whose inputs groups do not divide: refused with their name, or rounded and counted;
    with `tail: true`, too, where there is such a setting. A layer with as many outputs may be
    refused instead, by its name too."""
    if not case.model.quantized:
        raise Skip("it rounds nothing")
    bench = case.bench.on("odd")
    plain = {size for shape in case.bench.shapes.values() for size in shape}
    odd = [name for name, shape in bench.shapes.items() if not plain.issuperset(shape)]
    name, (_, inputs) = next(
        (name, shape) for name, shape in bench.shapes.items() if shape[1] not in plain
    )
    where = f"layer {name}, of {inputs} inputs"
    for method in (case.method, *_with_tail(case)):
        made = _try(method, bench)
        if isinstance(made, FormatError) and not any(each in str(made) for each in odd):
            return f"it refuses a width of {inputs} without naming the layer, {name}: {made}"
        if isinstance(made, BitgridError):
            continue
        if isinstance(made, Exception):
            return (
                f"{where}: {explain(made, case.subject)}; refuse in `check` what does not fit, or "
                "round the shorter group"
            )
        if name in case.model.quantized and name not in made.quantized:
            return f"{where} is left as it was without a word; refuse it, or round it"
        if not find_uncounted(case.model) and (fault := find_uncounted(made)):
            return fault
    return None


def check_experts(case: Case) -> str | None:
    """Experts that lie in one parameter, (E, O, I): refused, or each rounded. What a model does as
    it runs it does to them too, and its files bring all of it back."""
    if case.model.quantized.keys() < matrices(case.model.network).keys():
        raise Skip("it does not round every layer")
    bench = case.bench.on("experts")
    made = _try(case.method, bench)
    if isinstance(made, BitgridError):
        return None
    stacked = {name: m for name, m in matrices(_base(bench).network).items() if m.experts}
    name, matrix = next(iter(stacked.items()))
    shape = " x ".join(map(str, matrix.weight.shape))
    where = f"layer {name} (E x O x I: {shape})"
    if isinstance(made, Exception):
        return (
            f"{where}: {explain(made, case.subject)}; work along the last dimension, or refuse "
            "such a layer in `check`"
        )
    for each in stacked:
        if each not in made.quantized:
            return f"layer {each}, of experts, is left as it was without a word; refuse or round it"
    if not find_uncounted(case.model) and (fault := find_uncounted(made)):
        return fault
    try:
        fault = find_lost(made, bench)
    except Exception as error:  # whatever an author's code raises as the model runs
        fault = explain(error, case.subject)
    return fault and f"of a model with experts: {fault}"


def check_dtype(case: Case) -> str | None:
    """A model in bfloat16 comes back in bfloat16, on its device."""
    bench = case.bench.on("bfloat16")
    made, base = _try(case.method, bench), _base(bench)
    if isinstance(made, BitgridError):
        return None
    if isinstance(made, Exception):
        return f"of a model in bfloat16: {explain(made, case.subject)}"
    given = dict(base.network.named_parameters())
    for name, new in made.network.named_parameters():
        old = given.get(name, next(base.network.parameters()))
        if (new.dtype, new.device) != (old.dtype, old.device):
            return (
                f"{name} comes back {new.dtype} on {new.device}; it was {old.dtype} on {old.device}"
            )
    return None


def _try(method: Method, bench: Bench) -> Model | Exception:
    """The model; or what was raised, a BitgridError where it was refused."""
    try:
        method = _shorten(method)
        method.check(bench.shapes)
        root = method.build(bench.base, 0)
        rehearse_all(closure([root]))
    except Exception as error:  # whatever an author's code raises
        return error
    try:
        model: Model = bench.compute(root)
    except BitgridError as error:
        return error if isinstance(error, FormatError) else Unsound(str(error))
    except Exception as error:  # whatever an author's code raises
        return error
    return model


def _base(bench: Bench) -> Model:
    model: Model = bench.compute(bench.base)
    return model


def _with_tail(case: Case) -> Iterator[Method]:
    """The method with a shorter last group, where it, or the part that is meant, can have one."""
    settings, part = dict(list_settings(case.method)), case.subject.part
    for path, held in settings.items():
        owner = settings.get(path.rpartition(".")[0], case.method)
        is_meant = part is None or isinstance(owner, part)
        if path.rpartition(".")[2] == "tail" and held is False and is_meant:
            yield configure(case.method, {path: True})


def _shorten(method: Method) -> Method:
    """The method with one step in place of several: shapes and types show in the first."""
    for path in [path for path, _ in list_settings(method) if path.rpartition(".")[2] == "steps"]:
        with contextlib.suppress(BitgridError):  # one of its own that only shares the name
            method = configure(method, {path: 1})
    return method
