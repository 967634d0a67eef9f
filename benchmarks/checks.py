"""What it costs to look at a model before and after each stage, and as it is made and stored.

    python -m benchmarks.checks --out benchmarks/checks.csv

A random Llama of 135 million weights in bfloat16 (SmolLM2-135M's shape), one thread. Beside the
checks: reading its bytes once with hashlib's SHA-256, its rounding, and one pass over 2048 tokens,
which is the least that a stage does with a model. The table that was measured is beside this file.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.core.fingerprint import find_change
from harness.models import Model
from harness.models.integrity import check_kept, check_rounded
from methods.quantization.formats import IntAsym
from methods.quantization.rounding import quantize_model

REPEATS = 3


def make_model() -> Model:
    """SmolLM2-135M's shape, random weights, no tokenizer."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    network = LlamaForCausalLM(config).bfloat16().eval().requires_grad_(False)
    return Model(network, None)  # type: ignore[arg-type]


def measure(action: Callable[[], Any]) -> float:
    """Seconds: the least of three."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return min(times)


def measure_all() -> dict[str, float]:
    """Seconds by what is done."""
    torch.set_num_threads(1)
    model = make_model()
    rounded = quantize_model(model, IntAsym(2, 64))
    ids = torch.arange(2048)[None]
    found = model.fingerprint()
    network = rounded.network

    def read() -> None:
        for tensor in model.network.parameters():
            hashlib.sha256(tensor.view(torch.uint8).numpy()).digest()  # type: ignore[arg-type]

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder:
            network.save_pretrained(folder)

    actions: dict[str, Callable[[], Any]] = {
        "inputs, once a stage": lambda: find_change(found, model.fingerprint()),
        "a result: would come back": lambda: check_kept(network),
        "a result: finite, levels of 2 bits": lambda: check_rounded(rounded),
        "beside them: SHA-256 of the weights": read,
        "beside them: rounding": lambda: quantize_model(model, IntAsym(2, 64)),
        "beside them: writing": write,
        "beside them: 2048 tokens": lambda: network(ids, use_cache=False),
    }
    return {name: measure(action) for name, action in actions.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [("what", "seconds"), *((n, f"{s:.3f}") for n, s in measure_all().items())]
    rows.append(("machine", f"{platform.machine()}, torch {torch.__version__}, 1 thread"))
    csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    if options.out:
        with options.out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
