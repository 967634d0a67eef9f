"""SignRound: offsets of the rounding and ranges of the groups are learnt by the sign of gradients.

Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs (Cheng et al.
2023, arXiv 2309.05516). The rounding is in `methods.quantization.signround`.
"""

from __future__ import annotations

from harness.method import register
from methods.quantization.signround import SignRound
from methods.recipe import Recipe

register(
    "signround",
    Recipe(rounding=SignRound()),
    title="SignRound",
    about="learns rounding and ranges from a block's output by signed gradients (arXiv 2309.05516)",
    fixed=("format.gradient", "init", "rounding", "objective", "data", "train", "teacher"),
)
