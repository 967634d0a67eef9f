"""BitDistiller: asymmetric clipping, then self-distillation by a confidence-aware divergence.

BitDistiller: Unleashing the Potential of Sub-4-Bit LLMs via Self-Distillation (Du et al. 2024,
arXiv 2402.10631): the clip search (section 3.1), the teacher's continuations as data (section 3.3),
CAKLD as the objective (eq. 6). Gradients pass through the range, as in the published code; the
paper does not speak of it.
"""

from __future__ import annotations

from harness.method import register
from methods.quantization.formats import IntAsym
from methods.quantization.inits import Clip
from methods.recipe import Recipe
from methods.training.data import Generated
from methods.training.objectives import CAKLD
from methods.training.settings import Training

register(
    "bitdistiller",
    Recipe(
        format=IntAsym(bits=2, group_size=128, gradient="through-range"),
        init=(Clip(),),
        objective=CAKLD(),
        data=Generated(),
        train=Training(),
    ),
    title="BitDistiller",
    about="asymmetric clipping, then self-distillation by confidence-aware KL (arXiv 2402.10631)",
    fixed=("format.gradient", "init", "rounding", "objective", "data", "teacher"),
)
