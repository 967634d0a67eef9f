"""AWQ: scales chosen from the activations, then a clip search, then rounding.

AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration (Lin et al. 2023,
arXiv 2306.00978). The searches are in `methods.quantization.awq` and `methods.quantization.clip`,
which also say where they differ from the published code.
"""

from __future__ import annotations

from harness.method import register
from methods.quantization.awq import AWQ
from methods.recipe import Recipe

register(
    "awq",
    Recipe(init=(AWQ(clip=True),)),
    title="AWQ",
    about="activation-aware scaling, then the clip search, then round (arXiv 2306.00978)",
    fixed=("format.gradient", "init", "rounding", "objective", "data", "train", "teacher"),
)
