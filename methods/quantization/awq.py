"""AWQ: channels that see large activations are scaled up before rounding, so that they keep more of
it.

    start = AWQ().build(base, IntAsym(bits=3))          # Stage[Model] -> Stage[Model]

Input channel j of a layer is multiplied by s_j, and the operation that writes the channel is
divided by s_j: the model computes the same, but rounding to groups now hurts the channel s_j times
less (arXiv 2306.00978, section 3.2). s = mean|x|^alpha, and alpha is searched for all layers that
share an input. In this file: the init, its two stages and the value between them, the search, and
where scales can be folded (`find_foldable`). Not here: how layers are observed (`observing`),
rounding (`formats`).

As published but for one thing: a layer's error is that of its own output, where the published code
takes that of the attention or feed-forward module around query, key, value, gate and up
projections.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.core.checked import Count
from harness.core.errors import ModelError
from harness.core.stage import Input, Resources, Stage, value
from harness.data import Tokens, calibration
from harness.models import Matrix, Model, host_gib, matrices
from methods.quantization import clip
from methods.quantization.by_layer import has_levels
from methods.quantization.formats import Format, IntAsym
from methods.quantization.inits import Clip, Init, read_errors
from methods.quantization.observing import observe
from methods.quantization.readings import find_norms, read_logits
from methods.quantization.walking import Block, sequentially

# What models call the layers of a gated feed-forward module: down(f(gate(x)) * up(x)).
_GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))

# One group a row, whatever the format's: channels of all groups add up to an output.
ROWS = IntAsym(group_size=0)
_SMALLEST = 1e-4  # of mean|x|^alpha, as published: a channel that is never used would divide by 0


@dataclass(frozen=True)
class AWQ(Init):
    """AWQ's scales, searched on `sequences` blocks of `length` tokens of `text`.

    alpha is tried at i/grid for i < grid; the output error is measured on `tokens` of the tokens.
    `clip` searches ranges for the scaled weights after that, as AWQ does, but with the asymmetric
    search of `Clip`. A format without groups leaves nothing to scale.
    """

    name = "awq"
    grid: Annotated[Count, Field(le=10_000)] = 20  # exponents that are tried, from 0 to below 1
    text: str = "pile-val"  # calibration text
    sequences: Count = 128  # of calibration text
    length: Count = 512  # of each, in tokens
    tokens: Count = 512  # of these, on which errors are measured
    clip: bool = False  # search ranges after scaling, as `clip` does

    def origin(self, base: Stage[Model], format: Format) -> Stage[Model]:
        if not has_levels(format):
            return base
        tokens = calibration(base, self.text, self.sequences, self.length)
        return Scaled(base, ScaleSearch(base, tokens, format, self.grid, self.tokens))

    def build(self, base: Stage[Model], format: Format) -> Stage[Model]:
        scaled = self.origin(base, format)
        if not self.clip:
            return scaled
        ranges = Clip(
            text=self.text, sequences=self.sequences, length=self.length, tokens=self.tokens
        )
        return ranges.build(scaled, format)


@dataclass(frozen=True)
class Scales:
    """The scales found by a search, by the operation that writes the scaled channels.

    layers: the linear layers that read them. scales: (I,) float32. exponents: alpha. errors: the
    squared output error of those layers together on the sampled tokens, unscaled and scaled.
    """

    layers: dict[str, list[str]]
    scales: dict[str, Tensor]
    exponents: dict[str, float]
    errors: dict[str, tuple[float, float]]

    def save(self, folder: Path) -> dict[str, Any]:
        save_file(self.scales, folder / "scales.safetensors")
        errors = {name: list(pair) for name, pair in self.errors.items()}
        return {"layers": self.layers, "exponents": self.exponents, "errors": errors}

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any]) -> Scales:
        scales = load_file(folder / "scales.safetensors")
        errors = {name: (before, after) for name, (before, after) in facts["errors"].items()}
        return cls(facts["layers"], scales, facts["exponents"], errors)


@dataclass(frozen=True)
class ScaleSearch(Stage[Scales]):
    """The best scales of every input that some layers share (see `find_foldable`).

    Holds, beside the model, what its layers see: 4 * tokens bytes an input channel.
    """

    kind: ClassVar[str] = "scale-search"
    on_host: ClassVar[bool] = True
    model: Input[Model]
    calibration: Input[Tokens]
    format: Format
    grid: int
    tokens: int

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1, memory_gib=host_gib(self.model, 16.0), hours=1.0)

    def run(self, work: Path) -> Scales:
        model = value(self.model).fork()
        model.network.eval()
        readers, layers = find_foldable(model), matrices(model.network)
        for name in (name for group in readers.values() for name in group):
            self.format.of(name).check(name, layers[name].in_features)
            if not bool(layers[name].stored.isfinite().all()):
                raise ModelError(f"layer {name}: its weight has NaN or Inf")
        found: dict[str, Tensor] = {}
        tokens = value(self.calibration)
        for block in sequentially(model, tokens, work, quantized_inputs=False):
            search_block = partial(self._search, readers, layers)
            found |= block.once("scales", search_block)
        exponents = {writer: float(found[f"{writer}.exponent"]) for writer in readers}
        scales = {writer: found[f"{writer}.scales"] for writer in readers}
        errors = {writer: read_errors(found[f"{writer}.errors"]) for writer in readers}
        return Scales(readers, scales, exponents, errors)

    def _search(
        self,
        readers: Mapping[str, Sequence[str]],
        layers: Mapping[str, Matrix],
        block: Block,
    ) -> dict[str, Tensor]:
        """The scales of what a block's layers read: `<writer>.scales` and so on."""
        here = {group[0]: writer for writer, group in readers.items() if group[0] in block.layers}
        tensors = {}
        for seen in observe(block, {name: layers[name] for name in here}, ROWS, self.tokens):
            writer = here[seen.layers[0]]
            weights = [layers[name].weight for name in readers[writer]]
            formats = [self.format.of(name) for name in readers[writer]]
            (root,) = seen.roots()
            sizes = seen.sizes / max(1, seen.seen)
            exponent, before, after = search(weights, sizes, root[0], formats, self.grid)
            if not math.isfinite(before):
                raise ModelError(f"layer {seen.layers[0]}: its output error on the text overflows")
            tensors[f"{writer}.scales"] = balance_scales(sizes, exponent)
            tensors[f"{writer}.exponent"] = torch.tensor(exponent, dtype=torch.float64)
            tensors[f"{writer}.errors"] = torch.tensor([before, after], dtype=torch.float64)
        return tensors


@dataclass(frozen=True)
class Scaled(Stage[Model]):
    """The model with scales folded in. Latent, as a clipped one: nothing is rounded yet.

    It computes what the model did up to the rounding of its own dtype, in which it is kept.
    """

    kind: ClassVar[str] = "scaled"
    stored: ClassVar[bool] = False
    model: Input[Model]
    scales: Input[Scales]

    def run(self, work: Path) -> Model:
        scales = value(self.scales)
        return fold(value(self.model), scales.layers, scales.scales)


@torch.no_grad()
def search(
    weights: Sequence[Tensor], sizes: Tensor, root: Tensor, formats: Sequence[Format], grid: int
) -> tuple[float, float, float]:
    """The best exponent for layers that share an input; of equal errors the smallest.

    weights: (O, I) each; sizes: mean|x| (I,); root: (k, I), R with R'R = X'X. Also returns the
    squared output error of the layers together, unscaled (exponent 0) and with that exponent.
    """
    device = weights[0].device
    project = root.mT.contiguous().to(device)
    jobs = [
        partial(_error, weights, balance_scales(sizes, step / grid).to(device), project, formats)
        for step in range(grid)
    ]
    errors = list(clip.each(jobs, device))
    best = min(range(grid), key=errors.__getitem__)
    return best / grid, errors[0], errors[best]


def balance_scales(sizes: Tensor, exponent: float) -> Tensor:
    """Scales sizes^exponent (I,), over the root of the largest times the smallest; float32."""
    scales = sizes.double().pow(exponent).clamp(min=_SMALLEST)
    return (scales / (scales.max() * scales.min()).sqrt()).float()


@torch.no_grad()  # of its own: grad mode does not reach other threads
def _error(
    weights: Sequence[Tensor], scales: Tensor, project: Tensor, formats: Sequence[Format]
) -> float:
    """|(Q(W s)/s - W) X'|^2, summed over the layers; W s as the weight's dtype will hold it."""
    total = 0.0
    for weight, format in zip(weights, formats, strict=True):
        count = max(1, clip.at_once(weight.device.type) // weight.shape[1])
        for rows in weight.split(count) if format.by_row else [weight]:
            rounded = format.quantize((rows.float() * scales).to(rows.dtype)).float()
            total += float(((rounded / scales - rows) @ project).square_().sum())
    return total


@torch.no_grad()
def fold(model: Model, layers: Mapping[str, Sequence[str]], scales: Mapping[str, Tensor]) -> Model:
    """A fork whose `layers` are multiplied, and the operations that they read from divided."""
    fork = model.fork(latent=True)
    multiplied = {name: scales[writer] for writer, names in layers.items() for name in names}
    found = matrices(fork.network)
    for name in {**multiplied, **layers}:  # up projections are both: once, so as to round once
        module = fork.network.get_submodule(name)
        for part, old in list(module.named_parameters(recurse=False)):
            factors = multiplied.get(name) if part == "weight" else None
            change = partial(rescale, factors=factors, divisors=scales.get(name))
            is_matrix = part == "weight" and name in found
            new = found[name].map(change, old) if is_matrix else change(old)
            if not bool(new.isfinite().all()):
                raise ModelError(f"layer {name}: scaled, it has NaN or Inf in {old.dtype}")
            setattr(module, part, nn.Parameter(new, requires_grad=False))
    return fork


def rescale(rows: Tensor, factors: Tensor | None, divisors: Tensor | None) -> Tensor:
    """Input channels (last) times `factors`, output channels (first) over `divisors`: (O, I), or
    what a norm or a bias has, (O,)."""
    new = rows.float()
    if factors is not None:
        new = new * factors.to(rows.device)
    if divisors is not None:
        new = new / divisors.to(rows.device).view(-1, *[1] * (rows.dim() - 1))
    return new.to(rows.dtype)


def find_foldable(model: Model, method: str = "awq") -> dict[str, list[str]]:
    """Operations whose output channels can be scaled -> the linear layers that read them.

    A norm, if what a layer reads is the very tensor that it wrote; the up projection of a gated
    feed-forward module; the value projection of an attention module where each of its heads has one
    reader, that is without grouped queries. Raises ModelError, naming the class, where there are
    none, where there are experts, and where scaling one changes what the model computes: its norm
    may not multiply by its weight, or something other than a linear layer may read it.
    """
    layers, kind = matrices(model.network), type(model.network).__name__
    expert = next((name for name in layers if "expert" in name or layers[name].experts), None)
    if expert is not None:  # called scaled, they would be rounded to nearest
        raise ModelError(f"{kind}: {method} cannot scale what its experts read ({expert})")
    modules = {name: matrix.module for name, matrix in layers.items()}
    readers = {n: names for n, names in find_norms(model.network, modules).items() if names}
    taken = {name for group in readers.values() for name in group}
    for writer, reader in (*list_values(layers), *_list_gated(layers)):
        if reader not in taken and layers[writer].out_features == layers[reader].in_features:
            readers[writer] = [reader]
    if not readers:
        raise ModelError(f"{kind}: no operation found that {method} could fold scales into")
    if not _preserved(model, readers):
        wrong = next((one for one in readers.items() if not _preserved(model, dict([one]))), None)
        where = "them" if wrong is None else f"{wrong[0]} against {', '.join(wrong[1])}"
        raise ModelError(
            f"{kind}: scaling {where} changes what it computes, so {method} cannot do that"
        )
    return readers


def list_values(layers: Mapping[str, Matrix]) -> Iterator[tuple[str, str]]:
    """Value projections, each with the output projection of its attention, by name."""
    for children in clip.group_siblings(layers):
        names = clip.separate(children)
        others = children.keys() - set(names or ())
        if names is not None and len(others) == 1:  # the output projection, whatever its name
            yield children[names[2]], children[others.pop()]


def _list_gated(layers: Mapping[str, Matrix]) -> Iterator[tuple[str, str]]:
    """Up projections, each with the down projection behind it, by name."""
    for children in clip.group_siblings(layers):
        for gate, up, down in _GATED:
            if {gate, up, down} <= children.keys():
                yield children[up], children[down]


def _preserved(model: Model, layers: Mapping[str, Sequence[str]]) -> bool:
    """Whether the model computes the same with scales folded in.

    Tried with powers of two: they change no digit of a float, whatever the dtype, so what differs
    is an error and not rounding.
    """
    generator, layer = torch.Generator().manual_seed(0), matrices(model.network)
    scales = {
        writer: 2.0 ** torch.randint(-2, 3, (layer[names[0]].in_features,), generator=generator)
        for writer, names in layers.items()
    }
    plain, scaled = read_logits(model), read_logits(fold(model, layers, scales))
    tolerance = 1e-3 * float(plain.abs().max())
    return bool(torch.isclose(scaled, plain, rtol=0, atol=tolerance, equal_nan=True).all())
