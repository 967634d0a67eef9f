"""LLM-QAT: distilled by forward KL on text that the full-precision model writes alone.

LLM-QAT: Data-Free Quantization Aware Training for Large Language Models (Liu et al. 2023, arXiv
2305.17888): symmetric integers (section 2.2), self-generated data (section 2.1). Its W4A8KV4 is

    {name: llm-qat, format.bits: 4, attach: [{name: activations, bits: 8},
     {name: kv-cache, bits: 4, symmetric: true, range: token}]}

with the range of each token, as in the paper; keys are rounded behind their position embeddings, as
a cache holds them, where the published code rounds them before. Gradients pass the rounding
unchanged, as in the published code, which takes the scale for a constant.
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
