"""Folds a rotation of the residual stream into the weights.

With R orthogonal, x R can stand for every hidden state x: what writes the stream is multiplied by
R, what reads it by R'. A norm that only divides by the root of the mean square lets R pass once its
weight is folded into what reads it (SliceGPT, arXiv 2401.15024; QuaRot, arXiv 2404.00456, section
4). Not here: which rotation (`rotation`), scales that are folded (`awq`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.core.errors import ModelError
from harness.models import Matrix, Model, matrices, read_text_config
from methods.quantization.readings import find_norms, read_logits


@dataclass(frozen=True)
class Rotation:
    """An orthogonal matrix (D, D) float64, on the host."""

    matrix: Tensor

    def save(self, folder: Path) -> dict[str, Any]:
        save_file({"matrix": self.matrix}, folder / "rotation.safetensors")
        return {}

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any]) -> Rotation:
        return cls(load_file(folder / "rotation.safetensors")["matrix"])


@torch.no_grad()
def fold_rotation(model: Model, rotation: Tensor) -> Model:
    """A fork whose hidden states are those of `model` times `rotation` (D, D).

    Raises ModelError, naming the class, where the fork does not compute what the model does: its
    norms may subtract a mean, or something that is not known here reads the stream.
    """
    fork = model.fork(latent=True)
    network, turn = fork.network, rotation.to(model.device)
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    linears = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    linears = {n: m for n, m in linears.items() if m not in (embedding, head)}
    norms = find_norms(network, linears)
    if not norms:
        raise ModelError(
            f"{type(network).__name__}: a rotation finds no norm with a weight to fold"
        )
    last = list(norms)[-1]  # what the head reads
    read = {name for names in norms.values() for name in names}
    for matrix in find_writers(matrices(network), read, len(turn)):
        matrix.replace((turn.T @ matrix.weight.double()).to(matrix.stored.dtype))
        if isinstance(bias := getattr(matrix.module, "bias", None), Tensor):
            _set(matrix.module, "bias", bias.double() @ turn)
    for norm, names in norms.items():
        if not names and norm != last:
            continue  # inside a head; one behind a block is found out below
        scale = _free_of_scale(network.get_submodule(norm))
        for module in [linears[name] for name in names] + ([head] if norm == last else []):
            _set(module, "weight", module.weight.double() * scale @ turn)
    _set(embedding, "weight", embedding.weight.double() @ turn)
    for config in (network.config, read_text_config(network.config)):
        config.tie_word_embeddings = False
    _check_same(model, fork)
    return fork


def find_writers(layers: Mapping[str, Matrix], readers: set[str], width: int) -> list[Matrix]:
    """Of a network's matrices those that write its stream of `width` channels."""
    return [m for name, m in layers.items() if name not in readers and m.out_features == width]


def turn_weights(network: PreTrainedModel, turn: Tensor) -> dict[str, Tensor]:
    """What `fold_rotation` by a further `turn` (D, D) makes of the parameters of a network that it
    gave, by their names, float32 and differentiable in `turn`."""
    ends = network.get_input_embeddings(), network.get_output_embeddings()
    linears = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    names = {m: n for n, m in network.named_modules() if m in ends}
    blocks = {n: m for n, m in linears.items() if m not in ends}
    readers = {name for norm in find_norms(network, blocks).values() for name in norm}
    reading = [*readers, *names.values()]
    turned = {f"{n}.weight": network.get_submodule(n).weight.float() @ turn for n in reading}
    for matrix in find_writers(matrices(network), readers, len(turn)):
        turned[matrix.parameter_name] = matrix.layout.store(turn.T @ matrix.weight.float())
        if isinstance(bias := getattr(matrix.module, "bias", None), Tensor):
            owner = matrix.parameter_name.rpartition(".")[0]
            turned[f"{owner}.bias"] = bias.float() @ turn
    return turned


def _free_of_scale(norm: nn.Module) -> Tensor:
    """What a norm multiplies each channel by, (D,) float64; afterwards it is 1."""
    ones = torch.ones_like(norm.get_parameter("weight"))
    scale = norm(ones).double()  # their mean square is 1
    for neutral in (1.0, 0.0):  # some multiply by 1 + weight
        _set(norm, "weight", neutral * ones)
        if torch.allclose(norm(ones), ones, atol=1e-2):
            break
    return scale


def _set(module: nn.Module, leaf: str, tensor: Tensor) -> None:
    new = tensor.to(getattr(module, leaf).dtype)
    setattr(module, leaf, nn.Parameter(new, requires_grad=False))


def _check_same(model: Model, fork: Model) -> None:
    """Raise ModelError where a fork computes something else, by far more than its dtype rounds."""
    before, after = (read_logits(each) for each in (model, fork))
    allowed = 1e-3 if model.network.dtype == torch.float32 else 0.1
    if float((before - after).abs().mean()) > allowed * float(before.std()):
        raise ModelError(
            f"{type(model.network).__name__}: a rotation changes what it computes: its norms, or "
            "what reads its hidden states, are of a kind that one cannot be folded into"
        )
