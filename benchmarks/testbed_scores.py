"""Scores a testbed model on every testbed task, in 16 bits or after round-to-nearest.

    python benchmarks/testbed_scores.py [--bits 2 3 16] [--limit N] [--folder F] [--json OUT]

The model card's table comes from here. Round-to-nearest is written out below, apart from `methods`,
as an independent check: asymmetric, groups of 128, every linear layer of the blocks.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.testbed.world import DOMAINS, documents

ROOT = Path(__file__).parents[1] / "harness" / "testbed"
CHOICE = ("knowledge", "physical", "story", "pronoun", "harder")
TASKS = [f"testbed_{name}" for name in (*CHOICE, "arithmetic", "code")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bits", type=int, nargs="+", default=[16])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--folder", type=Path, default=ROOT / "model")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    found = {
        bits: scores(arguments.folder, bits, arguments.limit, arguments.tasks)
        for bits in arguments.bits
    }
    for bits, row in found.items():
        print(bits, "  ".join(f"{k}={v:.3f}" for k, v in row.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def scores(folder: Path, bits: int, limit: int | None, tasks: list[str]) -> dict[str, float]:
    """Every task's metrics, held-out perplexity per domain, and the seconds that it took."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if bits < 16:
        round_to_nearest(model, bits)
    began = time.monotonic()
    results = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=64, device="cpu"),
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(ROOT / "tasks"), include_defaults=False),
        limit=limit,
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,
        verbosity="ERROR",
    )["results"]
    row = {}
    for task, values in results.items():
        for key, value in values.items():
            metric = key.split(",")[0]
            if metric in ("acc", "acc_norm", "exact_match", "pass@1"):
                row[f"{task.removeprefix('testbed_')}.{metric}"] = value
    row["seconds"] = time.monotonic() - began
    for domain in (None, *DOMAINS):
        row[f"ppl.{domain or 'all'}"] = perplexity(model, tokenizer, domain)
    return row


@torch.no_grad()
def perplexity(model: torch.nn.Module, tokenizer: object, domain: str | None) -> float:
    """Of the first 200 held-out documents, each with BOS and EOS, in windows of 256 tokens."""
    ids: list[int] = []
    for text in documents("heldout", domain)[:200]:
        encoded = tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
        ids += [tokenizer.bos_token_id, *encoded, tokenizer.eos_token_id]  # type: ignore[attr-defined]
    windows = torch.tensor(ids[: len(ids) // 256 * 256]).view(-1, 256)
    losses = []
    for x in windows.split(16):
        logits = model(input_ids=x).logits[:, :-1].float()
        losses.append(F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten()) * len(x))
    return math.exp(sum(losses).item() / len(windows))  # type: ignore[union-attr]


@torch.no_grad()
def round_to_nearest(model: torch.nn.Module, bits: int, group: int = 128) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            weight = module.weight.float().view(-1, group)
            low = weight.amin(1, keepdim=True).clamp(max=0)
            high = weight.amax(1, keepdim=True).clamp(min=0)
            scale = ((high - low) / (2**bits - 1)).clamp(min=1e-8)
            zero = (-low / scale).round()
            levels = ((weight / scale).round() + zero).clamp(0, 2**bits - 1)
            module.weight.copy_(((levels - zero) * scale).view_as(module.weight))


if __name__ == "__main__":
    main()
