"""AWQ-clip: the asymmetric clip search alone, then rounding.

What BitDistiller (Du et al. 2024, arXiv 2402.10631, section 3.1) trains from, without the training.
The search is in `methods.quantization.clip`.
"""

from __future__ import annotations

from harness.method import register
from methods.quantization.inits import Clip
from methods.recipe import Recipe

register(
    "awq-clip",
    Recipe(init=(Clip(),)),
    title="AWQ-clip",
    about="asymmetric clip search on calibration activations, then round (BitDistiller sec. 3.1)",
    fixed=("format.gradient", "init", "rounding", "objective", "data", "train", "teacher"),
)
