"""RTN: each weight goes to the nearest level of its group's range. No data, no training.

The baseline of every paper on post-training quantisation, for instance GPTQ (Frantar et al. 2022,
arXiv 2210.17323). Asymmetric integers by default.
"""

from __future__ import annotations

from harness.method import register
from methods.recipe import Recipe

register(
    "rtn",
    Recipe(),
    title="RTN",
    about="round to nearest, asymmetric, no data",
    fixed=("format.gradient", "init", "rounding", "objective", "data", "train", "teacher"),
)
