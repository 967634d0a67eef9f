"""What groups have of their own, found from values alone, against what made them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.testing.packing import count_own_bits
from methods.quantization.formats import NF, IntAsym, IntSym

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
    ],
    ids=["int-sym", "int-sym by row", "int-asym", "int-asym 4", "nf", "q4-0", "one scale"],
)
def test_own_bits_of_known_formats(values: Tensor, group_size: int, levels: int, bits: int) -> None:
    assert count_own_bits(values, group_size, levels).bits == bits
