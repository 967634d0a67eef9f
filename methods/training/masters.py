"""The weights that training moves: float32 masters, and the network that computes with them.

    masters = Masters.of(student, format, "body", torch.bfloat16)
    masters.requantize()                                  # once a step: network = format(masters)
    loss.backward(); masters.accumulate_gradients()       # once a micro-batch
    norm = masters.finish_gradients(scale)                # gradients of the masters, and their norm

The network holds plain parameters in the compute dtype; those of quantised layers are overwritten
by the rounded masters. So a weight is rounded once a step however many micro-batches there are, the
forward pass is the model's own, and gradients are added up in float32.

Where several processes train together the network is sharded by rows (`shards`) and the masters are
this process's rows as plain tensors: a format is applied row by row, and so is the optimizer.

Formats may have trained parameters: masters too, cut as the rows of their weight.

Not here: the optimizer and its state (`step`, `checkpoint`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from transformers import PreTrainedModel

from harness.core.errors import ModelError
from harness.models import Matrix, Model, find_text_model, matrices
from harness.models.tensors import move_buffers, replace_parameters
from methods.quantization.formats import Format, FullPrecision
from methods.quantization.learned import Learned
from methods.training.shards import ALONE, Shards, find_rows, local_part

Trained: TypeAlias = Literal["body", "linears", "all", "parameters"]


@dataclass
class Masters:
    """Trained parameters by name, in float32, in the order of the network; then those of formats.

    With `trained` "parameters" the weights of formats that have some are here too, and stay: as
    codes in int8, where the format keeps those.
    """

    student: Model
    format: Format
    network: PreTrainedModel
    weights: dict[str, nn.Parameter]
    quantized: dict[str, Matrix]  # the student's, by the parameter's name
    shards: Shards
    # Of formats, by the name of their weight in the network: their names here.
    parameters: dict[str, tuple[str, ...]] = field(default_factory=dict)
    coded: set[str] = field(default_factory=set)  # the weights that are here as codes
    _edges: dict[str, GradientEdge] = field(default_factory=dict)
    _sums: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        student: Model,
        format: Format,
        trained: Trained,
        dtype: torch.dtype,
        shards: Shards = ALONE,
    ) -> Masters:
        """A network of its own in `dtype`; `student` is left as it is.

        Raises FormatError where the format does not fit a layer.
        """
        quantized = {each.parameter_name: each for each in matrices(student.network).values()}
        for matrix in quantized.values():
            format.of(matrix.name).check(matrix.name, matrix.in_features)
            if shards.world > 1 and not matrix.layout.splits_by_rows(matrix.stored):
                raise ModelError(
                    f"layer {matrix.name}: {type(student.network).__name__} stores its input "
                    "channels first, which processes that train together cannot share; train it "
                    "in one"
                )
        learned = {n for n, each in quantized.items() if isinstance(format.of(each.name), Learned)}
        if trained == "parameters":
            chosen = learned
        else:
            chosen = _choose_trained(student.network, trained, quantized.keys())

        network = shards.split(student, dtype, chosen).network.eval()
        places = dict(network.named_parameters())
        masters = {}
        for name, old in student.network.named_parameters():
            if name in chosen:
                part = _take_part(old, place := places[name])
                masters[name] = nn.Parameter(part.to(place.device, torch.float32, copy=True))
                masters[name].requires_grad_(trained != "parameters")
        quantized = {name: each for name, each in quantized.items() if name in masters}
        result = cls(student, format, network, masters, quantized, shards)
        for name in [each for each in masters if each in learned]:  # in one order everywhere
            result._start_parameters(name, places[name])
        return result

    def _start_parameters(self, name: str, place: nn.Parameter) -> None:
        """Make masters of a weight's parameters: the student's, or those that training starts
        from."""
        matrix, mine = self.quantized[name], find_rows(place)
        format = self.format.of(matrix.name)
        assert isinstance(format, Learned)
        if given := self.student.format_parameters.get(matrix.name):
            start = {n: p if mine is None else p[mine] for n, p in format.store(given).items()}
        else:
            start = format.parameters(matrix.layout.view(self.weights[name]))
        named = {f"{name}:{own}": each for own, each in start.items()}
        for own, each in named.items():
            self.weights[own] = nn.Parameter(each.to(place.device, torch.float32, copy=True))
        self.parameters[name] = tuple(named)
        if format.keeps_codes and not self.weights[name].requires_grad:
            codes = matrix.map(format.encode, self.weights[name], *start.values())
            self.weights[name] = nn.Parameter(codes.detach(), requires_grad=False)
            self.coded.add(name)

    def _find_format(self, name: str) -> Format:
        """The format of a weight, which may be none."""
        matrix = self.quantized.get(name)
        return FullPrecision() if matrix is None else self.format.of(matrix.name)

    def _round(self, name: str, format: Learned) -> Tensor:
        """The values of a weight, given the masters of its format's parameters: stored as it is,
        with gradients."""
        change = format.decode if name in self.coded else format.quantize_with_gradient
        own = [self.weights[each] for each in self.parameters.get(name, ())]
        return self.quantized[name].map(change, self.weights[name], *own)

    def _pair(self, name: str, beside: Tensor) -> Iterable[tuple[Tensor, ...]]:
        """The rows that a format is applied to, of a master and of what is stored alike: views."""
        own = self.weights[name].detach()
        return self.quantized[name].pair(own, beside) if name in self.quantized else [(own, beside)]

    @torch.no_grad()
    def _read(self, name: str) -> Tensor:
        """A master as a weight, where it is here as codes, too."""
        if name not in self.coded:
            return self.weights[name].detach()
        format = self._find_format(name)
        assert isinstance(format, Learned)
        return self._round(name, format)

    @property
    def places(self) -> dict[str, nn.Parameter]:
        """The network's parameters that the masters are written to, by name; of a format's
        parameters that of their weight, whose rows they have."""
        places = {name: p for name, p in self.network.named_parameters() if name in self.weights}
        owners = {own: name for name, named in self.parameters.items() for own in named}
        return places | {own: places[name] for own, name in owners.items()}

    def list_weights(self) -> list[nn.Parameter]:
        """The masters that are trained and belong to the network."""
        own = set(self.list_parameters())
        return [each for each in self.weights.values() if each.requires_grad and each not in own]

    def list_parameters(self) -> list[nn.Parameter]:
        """The masters of formats' parameters."""
        return [self.weights[own] for named in self.parameters.values() for own in named]

    def requantize(self) -> None:
        """Write the masters, rounded where the format applies, into the network."""
        self._edges.clear()
        for name, place in self.network.named_parameters():
            if name not in self.weights:
                continue
            format, here = self._find_format(name), local_part(place).detach()
            if isinstance(format, Learned):
                rounded = self._round(name, format)
                self._edges[name] = get_gradient_edge(rounded)
                here.copy_(rounded.detach())
                continue
            for weight, values in self._pair(name, here):
                format.quantize_into(weight, values)

    def accumulate_gradients(self) -> None:
        """Add the network's gradients to the step's sums, in float32, and clear them."""
        for name, place in self.network.named_parameters():
            if place.grad is None:
                continue
            gradient = local_part(place.grad)
            if name in self._sums:
                self._sums[name].add_(gradient)
            else:
                self._sums[name] = gradient.float()
            place.grad = None

    def finish_gradients(self, scale: float) -> Tensor:
        """Turn the sums, times `scale`, into the masters' gradients; returns their norm, a
        scalar."""
        places = self.places
        for name in self.shards.list_replicated(places) if self._sums else ():
            # A process without label tokens in this step has none for the head.
            own = self._sums.get(name)
            self._sums[name] = self.shards.all_reduce(
                torch.zeros_like(self.weights[name]) if own is None else own
            )
        for name in list(self._sums):  # one by one, so that no two sets of gradients stand
            total = self._sums.pop(name).mul_(scale)
            if name in self._edges:
                torch.autograd.backward([self._edges[name]], [total])
                continue
            for weight, slopes in self._pair(name, total):
                self._find_format(name).pull_back(weight, slopes, slopes)
            self.weights[name].grad = total
        gradients = {n: w.grad for n, w in self.weights.items() if w.grad is not None}
        return self.shards.total_norm(gradients, places)

    def are_finite(self) -> bool:
        """Whether all weights are, those of the other processes too."""
        broken = torch.stack([~weight.isfinite().all() for weight in self.weights.values()])
        return not bool(self.shards.all_reduce(broken.sum()))

    @torch.no_grad()
    def find_furthest(self) -> tuple[str, float]:
        """The quantised layer that moved most since training began, and how far: its weights'
        distance from where they were, over their norm there."""
        began, places = dict(self.student.network.named_parameters()), self.places
        moved: dict[str, float] = {}
        for name in self.weights:
            if name in self.quantized:
                weight = self._read(name)
                start = _take_part(began[name], places[name]).to(weight)
                pair = ({name: weight - start}, {name: start})
                far, size = (float(self.shards.total_norm(each, places)) for each in pair)
                moved[self.quantized[name].name] = far / size if size else math.inf
        layer = max(moved, key=lambda name: moved[name])
        return layer, moved[layer]

    def build_model(self) -> Model:
        """The student with the masters in place: float32 throughout, since a model is stored in one
        dtype, and latent, since neither the format nor the student's dtype holds these weights.

        It lies on the host, twice as large as a model that is evaluated. Of several processes the
        main one gets it; to the others the student comes back.
        """
        result, places = self.student.fork(quantized={}, latent=True), self.places

        def make(name: str, old: nn.Parameter) -> nn.Parameter:
            trained: Tensor | None = old
            if name in places:
                trained = self.shards.gather(self._read(name), places[name])
            if trained is None or not self.shards.is_main:
                return old
            return nn.Parameter(trained.detach().cpu().float(), requires_grad=False)

        replace_parameters(result.network, make)
        for name, named in self.parameters.items():
            gathered = {
                own.rpartition(":")[2]: self.shards.gather(self.weights[own].detach(), places[own])
                for own in named
            }
            whole = {own: each.clone() for own, each in gathered.items() if each is not None}
            if self.shards.is_main:
                result.format_parameters[self.quantized[name].name] = whole
        move_buffers(result.network, torch.device("cpu"))
        return result


def _take_part(full_weight: Tensor, place: Tensor) -> Tensor:
    """The rows of a whole weight that this process holds at `place`."""
    mine = find_rows(place)
    return full_weight.detach() if mine is None else full_weight.detach()[mine]


def _choose_trained(
    network: PreTrainedModel, trained: Trained, quantized: Iterable[str]
) -> set[str]:
    if trained == "linears":
        return set(quantized)
    ends = [network.get_input_embeddings(), network.get_output_embeddings()]
    outside = {id(tensor) for module in ends for tensor in module.parameters()}
    _, text_model = find_text_model(network)  # no vision tower is trained on text
    inside = {id(tensor) for tensor in text_model.parameters()}
    chosen = inside | outside if trained == "all" else inside - outside
    return {name for name, tensor in network.named_parameters() if id(tensor) in chosen}
