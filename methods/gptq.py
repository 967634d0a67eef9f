"""GPTQ: weights are rounded one input channel after another, each making up for those before.

GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers (Frantar et al.
2022, arXiv 2210.17323). The rounding is in `methods.quantization.gptq`.
"""

from __future__ import annotations

from harness.method import register
from methods.quantization.gptq import GPTQ
from methods.recipe import Recipe

register(
    "gptq",
    Recipe(rounding=GPTQ()),
    title="GPTQ",
    about="rounds column by column; what is left makes up for the error (arXiv 2210.17323)",
    fixed=("format.gradient", "init", "rounding", "objective", "data", "train", "teacher"),
)
