"""The checker finds what is wrong: a method for each check that fails it, and its words."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from harness.core.errors import FormatError
from harness.core.stage import Input, Stage, value
from harness.data import Tokens
from harness.method import Method
from harness.models import Model, Quantized, matrices
from harness.testing import Bench, check_method
from harness.testing.checks import run_checks
from harness.testing.subjects import make_subject


@dataclass(frozen=True)
class Ternary(Method):
    """Signs times the mean magnitude of a group."""

    name = "test-checked"
    group_size: int = 128

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        result = model.fork()
        for name, matrix in matrices(result.network).items():
            groups = matrix.weight.float().unflatten(-1, (-1, self.group_size))
            scale = groups.abs().mean(-1, keepdim=True)
            values = (self.draw(groups) / scale).round().clamp(-1, 1) * scale
            matrix.replace(self.last(name, values).flatten(-2))
            result.quantized[name] = Quantized("ternary", 2, self.group_size, self.count())
        return result

    def draw(self, groups: torch.Tensor) -> torch.Tensor:
        return groups

    def last(self, name: str, values: torch.Tensor) -> torch.Tensor:
        return values

    def count(self) -> float:
        return 2 + 16 / self.group_size


def test_a_sound_method_passes(bench: Bench) -> None:
    check_method(Ternary(), bench=bench)


@dataclass(frozen=True)
class Noisy(Ternary):
    """Draws random numbers and says nothing."""

    name = "test-noisy"

    def draw(self, groups: torch.Tensor) -> torch.Tensor:
        return groups + torch.randn_like(groups)


@dataclass(frozen=True)
class Dithered(Noisy):
    """Draws random numbers and says so."""

    name = "test-dithered"
    seeded: ClassVar[bool] = True


@dataclass(frozen=True)
class Idle(Ternary):
    """Says that it has a seed."""

    name = "test-idle"
    seeded: ClassVar[bool] = True


@dataclass(frozen=True)
class Unseeded(Ternary):
    """Draws from a generator of its own."""

    name = "test-unseeded"

    def draw(self, groups: torch.Tensor) -> torch.Tensor:
        return groups + random.SystemRandom().random()


@dataclass(frozen=True)
class Fine(Ternary):
    """Keeps the weights of one layer."""

    name = "test-fine"

    def last(self, name: str, values: torch.Tensor) -> torch.Tensor:
        if "layers.1.mlp.down_proj" in name:
            values[3, 0] = torch.arange(self.group_size)
        return values


@dataclass(frozen=True)
class Free(Ternary):
    """Counts no scales."""

    name = "test-free"

    def count(self) -> float:
        return 2.0


@dataclass(frozen=True)
class Writes(Ternary):
    """Writes in place."""

    name = "test-writes"

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        matrices(model.network)["model.layers.0.self_attn.q_proj"].weight.data.zero_()
        return super().apply(model, calibration, work)


@dataclass(frozen=True)
class Raises(Ternary):
    """Has a slip."""

    name = "test-raises"

    def draw(self, groups: torch.Tensor) -> torch.Tensor:
        return groups[:, 70]


@dataclass(frozen=True)
class Worn(Ternary):
    """Takes what lies in its folder for finished."""

    name = "test-worn"

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        result = super().apply(model, calibration, work)
        if (work / "half").exists():
            matrix = matrices(result.network)["model.layers.0.mlp.up_proj"]
            matrix.replace(matrix.weight * 0)
        (work / "half").touch()
        return result


@dataclass(frozen=True)
class Keyless(Ternary):
    """A field that is left out of the key without a word."""

    name = "test-keyless"
    rounds: int = 1

    def build(self, base: Stage[Model], seed: int) -> Stage[Model]:
        return Ternary(self.group_size).build(base, seed)


@dataclass(frozen=True)
class Backwards(Ternary):
    """Worse with more bits."""

    name = "test-backwards"
    bits: int = 2

    def count(self) -> float:
        return self.bits + 16 / self.group_size

    def last(self, name: str, values: torch.Tensor) -> torch.Tensor:
        return values * (self.bits - 1) ** 3

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        result = super().apply(model, calibration, work)
        for name, record in result.quantized.items():
            group, bits = record.group_size, record.bits_per_weight
            result.quantized[name] = Quantized("ternary", self.bits, group, bits)
        return result


@dataclass(frozen=True)
class Zeroed(Ternary):
    """Even steps from a group's minimum, of which the zero points are not counted."""

    name = "test-zeroed"

    def last(self, name: str, values: torch.Tensor) -> torch.Tensor:
        step = values.abs().amax(-1, keepdim=True)
        codes = (((values / step).round() + 1) * 1.5).round()  # 0, 2, 3
        first = torch.arange(values.shape[-3])[:, None, None] % 4 - 3  # -3 to 0: by row
        return (codes + first) * step


class Anywhere(Ternary):
    """Takes any width."""

    def check(self, layers: Mapping[str, tuple[int, int]]) -> None:
        return None


@dataclass(frozen=True)
class Odd(Anywhere):
    """Cuts groups as if they always fitted."""

    name = "test-odd"


@dataclass(frozen=True)
class Nameless(Anywhere):
    """Refuses a width without saying whose."""

    name = "test-nameless"

    def draw(self, groups: torch.Tensor) -> torch.Tensor:
        return groups

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        if any(each.in_features % 32 for each in matrices(model.network).values()):
            raise FormatError("groups do not fit")
        return super().apply(model, calibration, work)


@dataclass(frozen=True)
class Flat(Ternary):
    """Takes every weight for one matrix."""

    name = "test-flat"

    def draw(self, groups: torch.Tensor) -> torch.Tensor:
        rows, count, width = groups.shape
        return groups.view(rows, count, width)


@dataclass(frozen=True)
class Wide(Stage[Model]):
    """A model in float32 whatever it was."""

    kind: ClassVar[str] = "test-wide"
    stored: ClassVar[bool] = False
    model: Input[Model]

    def run(self, work: Path) -> Model:
        result = value(self.model).fork()
        head = result.network.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.float(), requires_grad=False)
        return result


@dataclass(frozen=True)
class Widened(Ternary):
    """Gives a model of another type than it was given."""

    name = "test-widened"

    def build(self, base: Stage[Model], seed: int) -> Stage[Model]:
        return Wide(super().build(base, seed))


@dataclass(frozen=True)
class Hasty(Ternary):
    """Says that a layer is done before it is."""

    name = "test-hasty"

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        kept = work / "done"
        result = model.fork()
        for name, matrix in matrices(result.network).items():
            is_late = name.endswith("layers.1.mlp.down_proj")
            if is_late and kept.exists() and kept.read_text() == "begun":
                kept.write_text("all")
                continue
            if is_late:
                kept.write_text("begun")
            groups = matrix.weight.float().unflatten(-1, (-1, self.group_size))
            scale = groups.abs().mean(-1, keepdim=True)
            matrix.replace(((groups / scale).round().clamp(-1, 1) * scale).flatten(-2))
            result.quantized[name] = Quantized("ternary", 2, self.group_size, self.count())
        kept.write_text("all")
        return result


@dataclass(frozen=True)
class Tidy(Hasty):
    """Takes back what it said where it is interrupted, which nothing does where it is killed."""

    name = "test-tidy"

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        try:
            return super().apply(model, calibration, work)
        except BaseException:
            (work / "done").unlink(missing_ok=True)
            raise


@dataclass(frozen=True)
class Copies(Ternary):
    """Holds the model five times."""

    name = "test-copies"

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        kept = [[each.detach().clone() for each in model.network.parameters()] for _ in range(5)]
        result = super().apply(model, calibration, work)
        del kept
        return result


@dataclass(frozen=True)
class Silent(Ternary):
    name = "test-silent"


FAULTS: list[tuple[type[Method], str, str]] = [
    (Noisy, "depends on its seed as it says", r"draws random numbers \(model.*ClassVar\[bool\] ="),
    (Idle, "depends on its seed as it says", "another seed gives the same model"),
    (Unseeded, "gives the same again", r"two models: model\.layers\.\S+ differs"),
    (Fine, "gives what it declares", r"layer model\.layers\.1\.mlp\.down_proj: a group of 32 has"),
    (
        Free,
        "counts its bits",
        r"layer model\.\S+: its groups have levels of their own, a scale of 16 bits a group, and",
    ),
    (Writes, "leaves its input as it was", r"changed model\.layers\.0\.self_attn\.q_proj\.weight"),
    (Raises, "runs", r"test_checks\.py:\d+: IndexError: index 70 is out of bounds"),
    (
        Worn,
        "goes on after a kill",
        r"another model: \S+up_proj\.weight differs",
    ),
    (Keyless, "has the key of its fields", "with another rounds the key is the same"),
    (Backwards, "errs less with more bits", "does not fall as bits grow: 2 bits"),
    (
        Zeroed,
        "counts its bits",
        r"layer model\.\S+: .* a scale of 16 bits and a zero point of 2 a group, and bits_per_w",
    ),
    (
        Odd,
        "rounds any width, or refuses it",
        r"layer model\.layers\.0\.mlp\.down_proj, of 88 inputs: \S+test_checks\.py:\d+: Runtime",
    ),
    (
        Nameless,
        "rounds any width, or refuses it",
        r"without naming the layer, model\.layers\.0\.mlp\.down_proj: groups do not fit",
    ),
    (
        Flat,
        "rounds experts, or refuses them",
        r"layer model\.layers\.0\.mlp\.experts\.\S+ \(E x O x I: 4 x \d+ x 64\): \S+checks\.py:",
    ),
    (
        Widened,
        "keeps the type of the model",
        r"lm_head\.weight comes back torch\.float32 on cpu; it was torch\.bfloat16 on cpu",
    ),
    (
        Hasty,
        "goes on where it was stopped",
        r"`work` had changed 1 times, .*: model\.layers\.1\.mlp\.down_proj\.weight differs",
    ),
    (
        Tidy,
        "goes on where it was stopped",
        r"killed when `work` had changed 1 times, .*: model\.layers\.1\.mlp\.down_proj\.weight d",
    ),
    (
        Copies,
        "holds few copies of the model",
        r"beside the model, 0\.36 MiB, it holds [2-9]\.\d+ MiB of tensors at once, at layer "
        r"model\.layers\.\d\.\w+\.\w+; 4 models",
    ),
    (Silent, "says what it is", "Silent has no docstring"),
]


@pytest.mark.parametrize(("kind", "title", "words"), FAULTS)
def test_a_fault_is_said(kind: Any, title: str, words: str, bench: Bench) -> None:
    with pytest.raises(AssertionError) as told:
        check_method(kind(), bench=bench)
    opening, *lines = str(told.value).splitlines()
    assert len(lines) == 1, lines
    (line,) = lines
    assert re.fullmatch(rf"method {kind.__name__} fails 1 of \d+ checks:", opening)
    assert line.startswith(f"  {title}: ") and re.search(words, line), line


def test_after_a_fault_nothing_is_said_of_what_is_not_there(bench: Bench) -> None:
    findings = run_checks(make_subject(Raises()), bench)
    states = [each.state for each in findings]
    assert states == ["passed"] * 2 + ["FAILED"] + ["skipped"] * (len(states) - 3)
