"""What would be lost if the k likeliest tokens stood for a teacher's distribution?

    BITGRID_MIRROR=… python -m benchmarks.truncated_teacher [--text wikitext2] [--write]

SmolLM2-135M reads 1,024 tokens of a text. Of its next-token distribution p the k largest
probabilities are kept, and what is left over is spread: over all other tokens alike, or as the mean
distribution of the text has them. Either way it is a distribution p' over all tokens, so every
objective would have a meaning. KL(p‖p') is what is lost, in nats a token, beside the bytes that
are kept: a number in 16 bits and a token in 32 for each of the k. The last hidden states, which
`train.teacher_states: stored` keeps, lose nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.record import Record
from harness.data import texts
from harness.models import pretrained

COUNT, LENGTH = 2, 512
KEPT = (16, 64, 256, 1024)
BYTES = 6  # of a probability and its token


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--text", default="wikitext2")
    options.add_argument("--write", action="store_true", help="keep the figures")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    model = pretrained("smollm2-135m", "bfloat16").run(Path())
    words = "\n".join(texts(chosen.text, "heldout").read()[:60])
    ids = torch.tensor(model.tokenizer(words)["input_ids"][: COUNT * LENGTH]).view(COUNT, LENGTH)
    with torch.inference_mode():
        logs = model.network(ids, use_cache=False).logits.flatten(0, 1).float().log_softmax(-1)
    record = Record("truncated_teacher")
    width = model.network.config.hidden_size
    record.add("last hidden states", "kept", "bytes a token", [2 * width])
    for k in KEPT:
        record.add(f"{k} likeliest tokens", "kept", "bytes a token", [BYTES * k])
        forms = {"rest alike": torch.ones(logs.shape[1]), "rest by the mean": logs.exp().mean(0)}
        for form, shape in forms.items():
            record.add(f"{k} likeliest tokens", form, "nats", [lose(logs, k, shape).mean().item()])
    record.finish(write=chosen.write)


def lose(logs: Tensor, k: int, shape: Tensor) -> Tensor:
    """KL(p‖p') of log p (N, V): (N,). p' has p's k largest; the rest has p's sum, as `shape` (V,)
    has it."""
    top, places = logs.topk(k, -1)
    rest = logs.exp().scatter(-1, places, 0.0).sum(-1, keepdim=True)  # 1 - the others rounds
    others = shape.expand_as(logs).scatter(-1, places, 0.0)
    kept = (rest * others / others.sum(-1, keepdim=True)).log().scatter(-1, places, top)
    return (logs.exp() * (logs - kept)).sum(-1)


if __name__ == "__main__":
    main()
