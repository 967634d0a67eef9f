"""ParetoQ: quantisation-aware training with the quantiser that suits each width.

ParetoQ: Scaling Laws in Extremely Low-bit LLM Quantization (Liu et al. 2025, arXiv 2502.02631):
stretched elastic quantisation to 2 bits, LSQ above, trained from the full-precision model by
cross-entropy, weights and ranges at one learning rate that falls as a cosine. The paper has a range
a row (`format.group_size: 0`) and trains for 10 to 30 billion tokens; here groups and data are
those of the methods that it is compared with. Its published code trains embeddings and head too
(`train.trained: all`), and its script has this rate at 4 bits.
"""

from __future__ import annotations

from harness.method import register
from methods.quantization.seq import ParetoQ
from methods.recipe import Recipe
from methods.training.data import GroundTruth
from methods.training.objectives import CE
from methods.training.settings import Training

register(
    "paretoq",
    Recipe(
        format=ParetoQ(bits=2, group_size=128),
        objective=CE(),
        data=GroundTruth(),
        train=Training(epochs=1, lr=2e-5, schedule="cosine"),
    ),
    title="ParetoQ",
    about="QAT by cross-entropy, each width with the quantiser that suits it (arXiv 2502.02631)",
    fixed=("format", "format.gradient", "init", "rounding", "objective", "data", "teacher"),
)
