"""LLM-QAT: distilled by forward KL on text that the full-precision model writes alone.

LLM-QAT: Data-Free Quantization Aware Training for Large Language Models (Liu et al. 2023, arXiv
2305.17888): symmetric integers (section 2.2), self-generated data (section 2.1). Weights only: the
paper's quantised activations and key-value cache are not part of the space. Gradients pass the
rounding unchanged, as in the published code, which takes the scale for a constant.
"""

from __future__ import annotations

from harness.method import register
from methods.quantization.formats import IntSym
from methods.recipe import Recipe
from methods.training.data import SelfGenerated
from methods.training.objectives import KL
from methods.training.settings import Training

register(
    "llm-qat",
    Recipe(
        format=IntSym(bits=2, group_size=128),
        objective=KL(),
        data=SelfGenerated(),
        train=Training(epochs=1, lr=2e-5, schedule="cosine"),
    ),
    title="LLM-QAT",
    about="distilled by forward KL on data that the model generates alone (arXiv 2305.17888)",
    fixed=("format.gradient", "init", "rounding", "objective", "data", "teacher"),
)
