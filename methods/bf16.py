"""BF16: the full-precision model itself, the reference that every method is compared with."""

from __future__ import annotations

from harness.method import register
from methods.quantization.formats import FullPrecision
from methods.recipe import Recipe

register(
    "bf16",
    Recipe(format=FullPrecision()),
    title="BF16",
    about="the full-precision model itself: the reference",
    fixed=("format", "init", "objective", "data", "train", "teacher"),
)
