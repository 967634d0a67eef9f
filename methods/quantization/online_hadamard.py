"""An online Hadamard: what a layer reads is rotated as the model runs, and its weight was rotated
back.

    model = model.attach(OnlineHadamard(), Activations(bits=4))

x W' = (x H)(W H)' for an orthogonal and symmetric H, so that the model computes the same to
rounding, but the few large entries of x are spread over all channels, and cost a range less
(QuaRot, arXiv 2404.00456, section 4). Not here: rotations that are folded into weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.core.errors import ModelError, nearest
from harness.models import Attachment, Matrix, change_inputs, matrices


@dataclass(frozen=True)
class OnlineHadamard(Attachment):
    """Rotates what the layers called `layer` in each block read, by blocks of the largest power of
    two that divides their inputs."""

    name = "online-hadamard"
    layer: str = "down_proj"  # the last part of the name of the layers that read rotated

    @property
    def label(self) -> str:
        return "H"

    def attach(self, network: PreTrainedModel) -> None:
        change_inputs(self, network, self._find(network))

    def fold(self, network: PreTrainedModel) -> None:
        for matrix in self._find(network):
            matrix.replace(rotate(matrix.weight.detach()))

    def change_input(self, read: Tensor, layer: str) -> Tensor:
        return rotate(read)

    def _find(self, network: PreTrainedModel) -> list[Matrix]:
        """Raises ModelError where no layer has the name, and where one has an odd width."""
        every = matrices(network)
        found = [each for name, each in every.items() if name.endswith(f".{self.layer}")]
        if not found:
            names = {name.rpartition(".")[2] for name in every}
            raise ModelError(
                f"attachment {self.name!r}: layer {self.layer!r} is unknown; "
                f"{nearest(self.layer, names)}"
            )
        for matrix in found:
            if matrix.in_features % 2:
                raise ModelError(
                    f"attachment {self.name!r}: {matrix.name} has {matrix.in_features} inputs, an "
                    "odd number, which no Hadamard matrix divides"
                )
        return found


def rotate(rows: Tensor) -> Tensor:
    """Each row of (..., I) times diag(H, …, H), H the Hadamard matrix of Sylvester over √n, n the
    largest power of two that divides I. In float32, or float64 where rows are; the same dtype."""
    size = rows.shape[-1] & -rows.shape[-1]
    parts = (rows if rows.dtype == torch.float64 else rows.float()).unflatten(-1, (-1, size))
    width = 1
    while width < size:  # the fast transform: log n steps of sums and differences
        first, second = parts.unflatten(-1, (-1, 2, width)).unbind(-2)
        parts = torch.stack((first + second, first - second), dim=-2).flatten(-3)
        width *= 2
    return (parts / size**0.5).flatten(-2).to(rows.dtype)
