"""What axes and settings are called: as the grid says in `report.names`, else in words from here.

A setting is written as the grid has it, `train.lr` and `0.0004` or `objective` and
`cakld gamma=0.5`, and shown as `learning rate 0.0004` and `CAKLD (gamma 0.5)`. A name may say where
the value stands: `{} sequences`. What nobody named shows its last step with spaces.

Not here: the names of rows (`naming`), of columns (`columns`), of methods, which are their labels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

_AXES = {
    "attach": "attachments {}",
    "bits": "{} bits",
    "clip_lr": "clipping rate {}",
    "data.text": "trained on {}",
    "epochs": "{} epochs",
    "lr": "learning rate {}",
    "sequences": "{} sequences",
    "shrink": "clipped by up to {}",
    "steps": "{} steps",
    "trained": "{} of the steps",
}
"""By the whole path or its last step."""

_SETTINGS = {
    "asymmetric=False": "symmetric",
    "asymmetric=false": "symmetric",
    "attach=[]": "nothing attached",
    "attach=activations": "activations",
    "attach=kv-cache": "KV cache",
    "data=generated": "generated text",
    "data=ground-truth": "ground truth",
    "data=self-generated": "self-generated text",
    "format=int-asym": "asymmetric",
    "format=int-lsq": "learned steps",
    "format=int-sym": "symmetric",
    "format=nf": "NF",
    "gradient=identity": "straight-through gradient",
    "gradient=through-range": "gradient through the range",
    "group_size=0": "a group a channel",
    "init=awq": "AWQ scales",
    "init=clip": "clipped",
    "init=hadamard": "Hadamard",
    "init=none": "no initialisation",
    "objective=cakld": "CAKLD",
    "objective=ce": "CE",
    "objective=jsd": "JSD",
    "objective=kl": "KL",
    "objective=mse": "MSE",
    "objective=reverse-kl": "reverse KL",
    "objective=tsld": "TSLD",
    "range=head": "a range a head",
    "range=token": "a range a token",
    "rounding=gptq": "GPTQ rounding",
    "rounding=nearest": "nearest rounding",
    "symmetric=False": "asymmetric",
    "symmetric=false": "asymmetric",
    "teacher=null": "its own teacher",
    "text=c4": "C4",
    "text=gsm8k": "GSM8K",
    "text=wikitext2": "WikiText-2",
}
"""By the last step of the path and the value; what stands here says what it is without the axis."""

_ON, _OFF, _NOTHING = ("true", "True"), ("false", "False"), ("null", "None", "[]")
_COMPONENT = re.compile(r"[\w./:-]+(?: [\w.-]+=[^\s=]+)*")

K = TypeVar("K", bound=Hashable)
Told = tuple[tuple[str, str], ...]
"""Settings in their order: path, value as text."""


@dataclass(frozen=True)
class Wording:
    """The words of one grid; `given` is its `report.names`."""

    given: Mapping[str, str] = field(default_factory=dict)

    def name_axis(self, path: str) -> str:
        """`train.lr`: learning rate."""
        return " ".join(self._find_pattern(path).replace("{}", "").split())

    def name_setting(self, path: str, value: str) -> str:
        """With its axis where the value alone does not say what it is: `learning rate 0.0004`."""
        named = self._find(path, value)
        if named is not None:
            return named
        if _is_component(value):
            first = value.split(" + ")[0].split(" ")[0]
            if self._find(path, first) is not None:
                return self._name_components(path, value)
        if value in _ON:
            return self.name_axis(path)
        if value in _OFF or value in _NOTHING:
            return f"no {self.name_axis(path)}"
        return self._find_pattern(path).replace("{}", self.name_value(path, value))

    def name_value(self, path: str, value: str) -> str:
        """As it stands beside its axis: 0.0004."""
        named = self._find(path, value)
        if named is not None:
            return named
        if value in (*_ON, *_OFF, *_NOTHING):
            return "yes" if value in _ON else "no" if value in _OFF else "none"
        return self._name_components(path, value) if _is_component(value) else value

    def name_settings(self, told: Told) -> str:
        """All of them: `CAKLD, 2 bits`."""
        return ", ".join(self.name_setting(path, value) for path, value in told)

    def _find(self, path: str, value: str) -> str | None:
        given = self.given.get(f"{path}={value}")
        return given or _SETTINGS.get(f"{path.rpartition('.')[2]}={value}")

    def _find_pattern(self, path: str) -> str:
        last = path.rpartition(".")[2]
        name = self.given.get(path) or _AXES.get(path) or _AXES.get(last)
        name = name or re.sub(r"[_-]", " ", last)
        return name if "{}" in name else f"{name} {{}}"

    def _name_components(self, path: str, value: str) -> str:
        """Of `activations bits=8 + kv-cache bits=4`: activations (8 bits) + KV cache (4 bits)."""
        parts = []
        for each in value.split(" + "):
            first, *settings = each.split(" ")
            told = tuple((f"{path}.{k}", v) for k, _, v in (s.partition("=") for s in settings))
            parts.append(self._find(path, first) or first)
            parts[-1] += f" ({self.name_settings(told)})" if told else ""
        return " + ".join(parts)


def join_words(label: str, settings: str) -> str:
    return f"{label}, {settings}" if settings else label


def write_raw(told: Told) -> str:
    """`objective=cakld format.bits=2`."""
    return " ".join(f"{path}={value}" for path, value in told)


def _is_component(value: str) -> bool:
    """Whether it is a component's name, or several, with or without settings."""
    return all(_COMPONENT.fullmatch(each) for each in value.split(" + "))


def tell_apart(shown: Mapping[K, str], raw: Mapping[K, str]) -> dict[K, str]:
    """Words of things that `raw` tells apart: of two that have the same, their raw ones.

    So nothing becomes one row, or one line, because it was named alike.
    """
    of_words: dict[str, set[str]] = defaultdict(set)
    for key, words in shown.items():
        of_words[words].add(raw[key])
    return {k: words if len(of_words[words]) == 1 else raw[k] for k, words in shown.items()}
