"""EfficientQAT: blocks are trained whole, one after the other, then all steps together.

EfficientQAT: Efficient Quantization-Aware Training for Large Language Models (Chen et al. 2024,
arXiv 2407.11062): Block-AP (section 3.2), whose integers and zero points then stay, and E2E-QP
(section 3.3): steps alone, by cross-entropy on text. Both in the paper see RedPajama, here C4; its
rates are of 2 bits (E2E-QP has 1e-5 at 3 and 4). Warm-up, 3 % of the steps, and the norm to which
gradients are clipped are its published code's.
"""

from __future__ import annotations

from harness.method import register
from methods.quantization.block_ap import BlockAP
from methods.quantization.int_step import IntStep
from methods.recipe import Recipe
from methods.training.data import GroundTruth
from methods.training.objectives import CE
from methods.training.settings import Training

register(
    "efficient-qat",
    Recipe(
        format=IntStep(bits=2, group_size=128),
        rounding=BlockAP(),
        objective=CE(),
        data=GroundTruth(text="c4", sequences=4096, length=4096),
        train=Training(
            epochs=1,
            batch_size=32,
            lr=2e-5,
            schedule="cosine",
            warmup=4,
            clip_norm=0.3,
            trained="parameters",
        ),
    ),
    title="EfficientQAT",
    about="trains blocks whole, then steps alone end to end (arXiv 2407.11062)",
    fixed=(
        "format",
        "format.gradient",
        "init",
        "rounding",
        "objective",
        "data",
        "train.trained",
        "teacher",
    ),
)
