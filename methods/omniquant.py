"""OmniQuant: clipping of ranges, and scales of channels, learnt block by block.

OmniQuant: Omnidirectionally Calibrated Quantization for Large Language Models (Shao et al. 2023,
arXiv 2308.13137). The rounding is in `methods.quantization.omniquant`.
"""

from __future__ import annotations

from harness.method import register
from methods.quantization.omniquant import OmniQuant
from methods.recipe import Recipe

register(
    "omniquant",
    Recipe(rounding=OmniQuant()),
    title="OmniQuant",
    about="learns how ranges are clipped from a block's output (arXiv 2308.13137)",
    fixed=("format.gradient", "init", "rounding", "objective", "data", "train", "teacher"),
)
