"""What a check looks at: a subject on a bench, with what several checks ask for computed once.

Not here: the checks (`checks`, `others`, `packing`, `stopping`), what is checked (`subjects`).
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from harness.config.settings import configure, list_settings
from harness.core.component import Component
from harness.core.errors import BitgridError, first_line
from harness.core.stage import Stage
from harness.method import Method
from harness.models import Model
from harness.testing.bench import Bench
from harness.testing.subjects import Subject

_BITS = ("bits", "format.bits")  # where a method says how many it rounds to
_TRIED = (2, 3, 4)


class Skip(Exception):
    """A check that does not apply; its text says why."""


class Passed(Exception):
    """A check that finds no fault and cannot see all; its text says what it saw."""


class Unsound(Exception):
    """What is said of a result, or of what was done to what it was given: no refusal."""


@dataclass
class Case:
    """A subject on a bench, with what several checks look at."""

    subject: Subject
    bench: Bench

    @property
    def method(self) -> Method:
        return self.subject.method

    @cached_property
    def root(self) -> Stage[Model]:
        self.method.check(self.bench.shapes)
        return self.method.build(self.bench.base, 0)

    @cached_property
    def model(self) -> Model:
        model: Model = self.bench.compute(self.root)
        return model

    @cached_property
    def error(self) -> Exception | None:
        """What stands in the way of a model."""
        try:
            self.model  # noqa: B018
        except Exception as error:  # whatever an author's code raises
            return error
        return None

    @cached_property
    def unrepeated(self) -> str | None:
        """A parameter that differs when all is computed once more; None where none does."""
        return find_difference(self.model, self.bench.compute_anew(self.root))

    def need_repeatable(self) -> None:
        """Raises Skip where the method gives another model each time."""
        if self.unrepeated:
            raise Skip("it is not even the same when nothing differs")

    @cached_property
    def unresumed(self) -> str | None:
        """A parameter that differs when it runs on what it left in `work`; None where none does."""
        return find_difference(self.model, self.bench.compute_anew(self.root, resumed=True))

    @cached_property
    def by_bits(self) -> dict[int, Model]:
        """The model at every number of bits that the method takes, of those that are tried."""
        found = {}
        for bits, method in _vary_bits(self.method, self.subject.part):
            method.check(self.bench.shapes)
            found[bits] = self.bench.compute(method.build(self.bench.base, 0))
        return found


def explain(error: Exception, subject: Subject) -> str:
    """An error as one line, with the last place in the author's file where it passed."""
    if isinstance(error, BitgridError | Unsound):
        return str(error)
    files = {_find_file(each) for each in (type(subject.method), subject.part) if each is not None}
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename in files] or frames
    place = f"{own[-1].filename}:{own[-1].lineno}" if own else "?"
    return f"{place}: {type(error).__name__}: {first_line(error)}"


def _find_file(cls: type) -> str:
    return str(getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__)


def find_difference(one: Model, other: Model) -> str | None:
    """The first parameter that differs, by name; None where all are equal."""
    theirs = dict(other.network.named_parameters())
    for name, ours in one.network.named_parameters():
        if not torch.equal(ours, theirs[name]):
            return name
    for layer, own in (one.format_parameters | other.format_parameters).items():
        for name in own:
            pair = [each.format_parameters.get(layer, {}).get(name) for each in (one, other)]
            if pair[0] is None or pair[1] is None or not torch.equal(pair[0], pair[1]):
                return f"parameter {name} of layer {layer}"
    return None


def find_lost(model: Model, bench: Bench) -> str | None:
    """What of a model does not come back from its files; None where all does."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = Model.load(Path(folder), model.save(Path(folder)))
        if loaded.quantized != model.quantized:
            return "what it says was quantised does not come back from its files"
        if loaded.attachments != model.attachments:
            return "its attachments do not come back from its files"
        if name := find_difference(loaded, model):
            return f"saved and loaded, {name} differs"
        if loaded.bits_per_weight() != model.bits_per_weight():
            return "its bits do not come back from its files"
        one, other = map(bench.measure_logits, (model, loaded))
    if not torch.equal(one, other):
        far = float((one - other).abs().max())
        return f"saved and loaded, its logits differ by {far:.2g}"
    return None


def _vary_bits(method: Method, part: type[Component] | None) -> Iterator[tuple[int, Method]]:
    """The method at each number of bits that it takes; none where only a part without bits is
    meant."""
    settings = dict(list_settings(method))
    for path in (each for each in _BITS if isinstance(settings.get(each), int | float)):
        owner = settings.get(path.rpartition(".")[0], method)
        for bits in _TRIED if part is None or isinstance(owner, part) else ():
            try:
                yield bits, configure(method, {path: bits})
            except BitgridError:  # a format without such a form
                continue
