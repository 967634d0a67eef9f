"""What groups have of their own, found from values alone, against what made them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.testing.packing import count_own_bits
from methods.quantization.formats import NF, IntAsym, IntSym
from methods.quantization.fp4 import MXFP4, NVFP4

WEIGHT = torch.randn(48, 128, generator=torch.Generator().manual_seed(0))


def quantize_q4_0(weight: Tensor) -> Tensor:
    """llama.cpp's: -8 to 7 times a scale whose sign is that of the largest magnitude, turned."""
    groups = weight.view(-1, 32)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = (largest / -8).half().float()
    return ((groups / scale).round().clamp(-8, 7) * scale).view_as(weight)


@pytest.mark.parametrize(
    ("values", "group_size", "levels", "bits"),
    [
        (IntSym(3, 32).quantize(WEIGHT), 32, 8, 16),
        (IntSym(2, 0).quantize(WEIGHT), 0, 4, 16),
        (IntAsym(3, 32).quantize(WEIGHT), 32, 8, 16 + 3),
        (IntAsym(4, 64).quantize(WEIGHT), 64, 16, 16 + 4),
        (NF(3, 32).quantize(WEIGHT), 32, 8, 16 + 16),
        (quantize_q4_0(WEIGHT), 32, 16, 16),
        (WEIGHT.sign(), 32, 2, 0),
        (MXFP4(group_size=32).quantize(WEIGHT), 32, 16, 8),
        (NVFP4(group_size=16).quantize(WEIGHT), 16, 16, 8),
    ],
    ids=[
        *("int-sym", "int-sym by row", "int-asym", "int-asym 4", "nf", "q4-0", "one scale"),
        *("mxfp4", "nvfp4"),
    ],
)
def test_own_bits_of_known_formats(values: Tensor, group_size: int, levels: int, bits: int) -> None:
    found = count_own_bits(values, group_size, levels)
    assert found.bits == bits and found.exact


def test_levels_of_no_known_form_are_said_to_be_counted_at_least() -> None:
    groups = WEIGHT.view(48, 4, 32)
    places = torch.linspace(0.1, 1, 4) ** torch.rand(48, 4, 1)  # each group has levels of its own
    places = places * torch.rand(48, 4, 1)
    at = (groups[..., None] - places[:, :, None]).abs().argmin(-1)
    values = places.expand(48, 4, 4).gather(-1, at).flatten(1)
    found = count_own_bits(values, 32, 4)
    assert not found.exact and found.words == "at least a scale of 16 bits"
