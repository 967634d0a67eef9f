"""The verbs that write an author's first file: new-method, new-objective, new-format.

Each file is whole: it passes `bitgrid check` as it is, and is then changed line by line. Not here:
the checks (`harness.testing`).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from harness.cli.verb import Verb
from harness.core.component import find_named
from harness.core.errors import GridError

_METHOD = '''\
"""TITLE: what it does, and whose it is (authors, year, arXiv, equation)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from harness.api import FormatError, Method, Model, Quantized, Tokens, matrices, register


@dataclass(frozen=True)
class CLASS(Method):
    """Each group of weights on even steps of its largest magnitude."""

    bits: Annotated[int, Field(ge=2, le=8)] = 4  # what a grid may set; pydantic's limits are kept
    group_size: Annotated[int, Field(ge=1)] = 128

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        result = model.fork()  # shares every tensor until `replace` gives a new one
        for name, matrix in matrices(result.network).items():
            if matrix.in_features % self.group_size:
                raise FormatError(f"layer {name}: no groups of {self.group_size} in its rows")
            groups = matrix.weight.float().unflatten(-1, (-1, self.group_size))
            top = 2 ** (self.bits - 1) - 1
            scale = groups.abs().amax(-1, keepdim=True).clamp(min=2**-14) / top
            matrix.replace(((groups / scale).round() * scale).flatten(-2))
            per_weight = self.bits + 16 / self.group_size  # the scale is counted
            result.quantized[name] = Quantized(
                "NAME",
                self.bits,
                self.group_size,
                per_weight,
            )
        return result


register(
    "NAME",
    CLASS(),
    title="TITLE",
    about="even steps of a group's largest magnitude",
)
'''

_OBJECTIVE = '''\
"""TITLE: what it does, and whose it is (authors, year, arXiv, equation)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from methods.parts import Objective, TokenLogits


@dataclass(frozen=True)
class CLASS(Objective):
    """Forward KL(p‖q) to the teacher, both at a temperature (Hinton et al. 2015, section 2)."""

    name = "NAME"
    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0

    def token_losses(self, seen: TokenLogits) -> Tensor:
        """(N, V) logits of N label tokens -> (N,) losses."""
        log_q = (seen.log_q / self.temperature).log_softmax(-1)
        log_p = (seen.log_p / self.temperature).log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1) * self.temperature**2
'''

_FORMAT = '''\
"""TITLE: what its levels are, and whose it is (authors, year, arXiv, equation)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.parts import Bits, Grouped


@dataclass(frozen=True)
class CLASS(Grouped):
    """Even steps on both sides of 0, as many as fit below a group's largest magnitude."""

    name = "NAME"
    bits: Bits = 4

    def overhead(self) -> int:
        return 16  # bits a group: one scale

    def quantize_dequantize(self, groups: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The nearest levels: groups (..., g), low <= 0 <= high (..., 1) -> (..., g), float32."""
        top = 2 ** (self.bits - 1) - 1
        scale = (torch.maximum(high, -low) / top).clamp(2**-24, 65504).half().float()
        inside = torch.minimum(torch.maximum(groups, low), high)
        return (inside / scale).round().clamp(-top, top) * scale
'''


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="small letters, digits and hyphens: my-name")


def _make_verb(kind: str, template: str) -> Verb:
    def write(arguments: argparse.Namespace) -> int:
        return _write(arguments.name, template)

    function: Callable[[argparse.Namespace], int] = write
    return Verb(
        f"new-{kind}",
        f"write NAME.py, a whole {kind} that passes `bitgrid check`, to start from",
        f"bitgrid new-{kind} my-{kind}",
        function,
        _add_arguments,
    )


def _write(name: str, template: str) -> int:
    """Write the file, into methods/ in a checkout. Raises GridError, before anything is written."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise GridError(f"{name!r} should be small letters, digits and hyphens, as in my-name")
    from harness.testing import list_names

    if taken := find_named(name, list_names()):
        raise GridError(f"the name {name!r} is taken: {taken[0]}; choose another")
    is_checkout = Path("methods/__init__.py").is_file() and Path("harness").is_dir()
    path = Path("methods" if is_checkout else ".") / f"{name.replace('-', '_')}.py"
    words = name.split("-")
    title = " ".join([words[0].capitalize(), *words[1:]])
    text = template.replace("CLASS", "".join(map(str.capitalize, words)))
    text = text.replace("TITLE", title).replace("NAME", name)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise GridError(f"{path} exists already; nothing was written") from None
    except OSError as error:
        raise GridError(f"{path}: cannot be written: {error.strerror}") from None
    print(f"{path}: a whole file; docs/methods.md tells what may stand in it\n")
    print(f"  bitgrid check {path}")
    return 0


NEW_METHOD = _make_verb("method", _METHOD)
NEW_OBJECTIVE = _make_verb("objective", _OBJECTIVE)
NEW_FORMAT = _make_verb("format", _FORMAT)
