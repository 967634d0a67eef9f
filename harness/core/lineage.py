"""Which texts stand behind a value, by the graph of its stages: what it learnt from, what it was
fitted to, what it reads.

The graph is that of described stages (`Stage.description`): of a plan that runs, or of the lines of
provenance.jsonl, whichever version of this project wrote them. Not here: what a text is
(`harness.data`), where a report says it (`reports.numbers.domains`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.core.errors import ReportError


@dataclass(frozen=True)
class Behind:
    """The texts behind a stage, as grids name them."""

    texts: frozenset[str]
    trained: frozenset[str]  # of `texts`, those that a training learnt from


@dataclass(frozen=True)
class Lineage:
    """The texts behind each of `stages`: key -> kind, version and fields, inputs by key.

    Every question raises ReportError where a stage that decides it is not among them.
    """

    stages: Mapping[str, Mapping[str, Any]]
    _known: dict[str, Behind] = field(default_factory=dict)

    def find_text(self, key: str) -> str | None:
        """The text that a score reads, where it is an input of its own."""
        inputs = list(list_inputs(self._find(key)))
        for each in sorted(inputs, key=lambda each: each not in self.stages):  # what is known first
            if _is(stage := self._find(each), "documents"):
                return _name_text(stage)
        return None

    def list_trained(self, key: str) -> list[str]:
        """The texts that a model learnt from, or continuations of which."""
        return sorted(self._look(key).trained)

    def list_calibrated(self, key: str) -> list[str]:
        """The further texts behind a model: what its weights were fitted to without a training."""
        behind = self._look(key)
        return sorted(behind.texts - behind.trained)

    def _look(self, key: str) -> Behind:
        if key not in self._known:
            stage = self._find(key)
            above = [self._look(each) for each in list_inputs(stage)]
            texts, trained = set[str](), set[str]()
            if _is(stage, "documents"):
                texts.add(_name_text(stage))
            elif _is(stage, "train"):
                learnt = (self._look(each).texts for each in list_inputs(stage["tokens"]))
                trained.update(*learnt)
            self._known[key] = Behind(
                frozenset(texts).union(*(each.texts for each in above)),
                frozenset(trained).union(*(each.trained for each in above)),
            )
        return self._known[key]

    def _find(self, key: str) -> Mapping[str, Any]:
        if key not in self.stages:
            raise ReportError(f"stage {key} is not among those that are known")
        return self.stages[key]


def is_alike(one: str, other: str) -> bool:
    """Whether what is fitted to one text, as grids name them, is in-domain on the other.

    Splits of a data set are alike, and so are a text and a part of it; two of its domains are not,
    nor are two files.
    """
    (name, _, part), (other_name, _, other_part) = (each.partition(":") for each in (one, other))
    if _TWICE.get(name, name) != _TWICE.get(other_name, other_name):
        return False
    whole = not part or not other_part
    return whole or part == other_part or {part, other_part} <= _SPLITS


_SPLITS = {"train", "validation", "test"}  # parts of a data set that do not differ in domain
_TWICE = {"c4-new": "c4"}  # one data set, known by the names of two protocols


def name_kind(stage: Mapping[str, Any]) -> str:
    """The kind of a described stage; of one that has none, its class without the module."""
    return str(stage.get("kind") or stage.get("class", "?")).rpartition(".")[2]


def list_inputs(stage: object) -> Iterator[str]:
    """Keys of the stages that a described stage names among its fields, in their order."""
    if isinstance(stage, Mapping):
        if set(stage) == {"stage"} and isinstance(stage["stage"], str):
            yield stage["stage"]
            return
        for part in stage.values():
            yield from list_inputs(part)
    elif isinstance(stage, list | tuple):
        for part in stage:
            yield from list_inputs(part)


def _is(stage: Mapping[str, Any], kind: str) -> bool:
    return name_kind(stage).lower() == kind  # the class of that time was named as the kind is now


def _name_text(documents: Mapping[str, Any]) -> str:
    """As a grid names it; a part of it once was a field of its own."""
    part = documents.get("domain")
    return f"{documents['source']}:{part}" if part else str(documents["source"])
