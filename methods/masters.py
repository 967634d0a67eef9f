"""The weights that training moves: float32 masters, and the network that computes with them.

    masters = Masters.of(student, format, "body", torch.bfloat16)
    masters.refresh()                    # once a step: network's weights = format(masters)
    loss.backward(); masters.gather()    # once a micro-batch
    norm = masters.settle(scale)         # gradients of the masters, and their norm

The network holds plain parameters in the compute dtype; those of quantised layers are overwritten
by the rounded masters. So a weight is rounded once a step however many micro-batches there are, the
forward pass is the model's own, and gradients are added up in float32. A format is applied row by
row, so masters may be shards of rows.

Not here: the optimizer and its state (`train`, `checkpoint`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from transformers import PreTrainedModel

from harness.models import Model, linears
from methods.formats import Format, FullPrecision
from methods.forward import replace_parameters

Trained: TypeAlias = Literal["body", "linears", "all"]


@dataclass
class Masters:
    """Trained parameters by name, in float32, in the order of the network."""

    student: Model
    format: Format
    network: PreTrainedModel
    weights: dict[str, nn.Parameter]
    quantized: frozenset[str]
    _edges: dict[str, GradientEdge] = field(default_factory=dict)
    _sums: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, student: Model, format: Format, trained: Trained, dtype: torch.dtype) -> Masters:
        """A network of its own in `dtype`; `student` is left as it is.

        Raises FormatError where the format does not fit a layer.
        """
        for layer, linear in linears(student.network).items():
            format.check(layer, linear.in_features)
        quantized = frozenset(f"{layer}.weight" for layer in linears(student.network))
        chosen = _chosen(student.network, trained, quantized)
        masters: dict[str, nn.Parameter] = {}

        def make(name: str, old: nn.Parameter) -> nn.Parameter:
            if name not in chosen:
                return nn.Parameter(old.detach().to(dtype), requires_grad=False)
            masters[name] = nn.Parameter(old.detach().to(torch.float32, copy=True))
            return nn.Parameter(old.detach().to(dtype, copy=True))

        fork = student.fork()
        replace_parameters(fork.network, make)
        fork.network.eval()
        return cls(student, format, fork.network, masters, quantized & masters.keys())

    def refresh(self) -> None:
        """Write the masters, rounded where the format applies, into the network."""
        places = dict(self.network.named_parameters())
        self._edges.clear()
        for name, master in self.weights.items():
            rounded: Tensor = master
            if name in self.quantized and not isinstance(self.format, FullPrecision):
                rounded = self.format.straight_through(master)
                self._edges[name] = get_gradient_edge(rounded)
            with torch.no_grad():
                places[name].copy_(rounded)

    def gather(self) -> None:
        """Add the network's gradients to the step's sums, in float32, and clear them."""
        for name, place in self.network.named_parameters():
            if place.grad is None:
                continue
            if name in self._sums:
                self._sums[name].add_(place.grad)
            else:
                self._sums[name] = place.grad.float()
            place.grad = None

    def settle(self, scale: float) -> Tensor:
        """Turn the sums, times `scale`, into the masters' gradients; returns their norm, a scalar."""
        for master in self.weights.values():
            master.grad = None
        for name, total in self._sums.items():
            total.mul_(scale)
            if name in self._edges:
                torch.autograd.backward([self._edges[name]], [total])
            else:
                self.weights[name].grad = total
        self._sums.clear()
        gradients = [w.grad for w in self.weights.values() if w.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def finite(self) -> bool:
        return all(bool(master.isfinite().all()) for master in self.weights.values())

    def model(self) -> Model:
        """The student with the masters in place: float32 throughout, since a model is stored in one
        dtype, and latent, since no format holds these weights."""
        latent = not isinstance(self.format, FullPrecision)
        result = self.student.fork(quantized={}, latent=latent)

        def make(name: str, old: nn.Parameter) -> nn.Parameter:
            trained = self.weights.get(name, old)
            return nn.Parameter(trained.detach().float(), requires_grad=False)

        replace_parameters(result.network, make)
        return result


def _chosen(network: PreTrainedModel, trained: Trained, quantized: frozenset[str]) -> set[str]:
    if trained == "linears":
        return set(quantized)
    ends = [network.get_input_embeddings(), network.get_output_embeddings()]
    outside = {id(tensor) for module in ends for tensor in module.parameters()}
    return {
        name
        for name, tensor in network.named_parameters()
        if trained == "all" or id(tensor) not in outside
    }
