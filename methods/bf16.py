"""The model itself as it was published, the reference that every method is compared with.

Tables call it what it is: BF16, FP32, or `Q4_1 (as published)` (`Pretrained.title`).
"""

from __future__ import annotations

from harness.method import register
from methods.quantization.formats import FullPrecision
from methods.recipe import Recipe

register(
    "bf16",
    Recipe(format=FullPrecision()),
    title="Full precision",
    about="the full-precision model itself: the reference",
    fixed=("format", "init", "rounding", "objective", "data", "train", "teacher", "attach"),
)
