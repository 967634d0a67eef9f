"""GPTAQ: GPTQ towards what the layer gives in the original network.

GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration (Li et al. 2025, arXiv
2504.02692). The rounding is in `methods.quantization.gptaq`.
"""

from __future__ import annotations

from harness.method import register
from methods.quantization.gptaq import GPTAQ
from methods.recipe import Recipe

register(
    "gptaq",
    Recipe(rounding=GPTAQ()),
    title="GPTAQ",
    about="GPTQ that aims at the layer's output in the original network (arXiv 2504.02692)",
    fixed=("format.gradient", "init", "rounding", "objective", "data", "train", "teacher"),
)
