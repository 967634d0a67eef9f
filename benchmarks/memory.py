"""Does the memory that `bitgrid plan --memory` foretells agree with what training takes?

    python -m benchmarks.memory [--model smollm2-135m] [--length 256]

Trains SmolLM2-135M for two steps of two micro-batches (one line a configuration) in a process of
its own, on the CPU, and compares the peak of its memory with the estimate for the very same stage.

Measured is the peak of anonymous resident memory (RssAnon in /proc, read every 5 ms from outside)
less what there was after the imports, before the model was loaded: code and mapped files are not
in it. The C library keeps freed memory for itself by default, up to 32 MiB a block, and then the
peak measures its habits; the process is told to give back what is 64 KiB or larger at once.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from harness.data import Packed, Tokens
from harness.models import pretrained
from methods.quantization.formats import IntAsym
from methods.training.memory import of_training
from methods.training.objectives import CAKLD
from methods.training.settings import Training
from methods.training.train import Train

FORMAT, OBJECTIVE = IntAsym(bits=2, group_size=64), CAKLD(gamma=0.5)
CONFIGURATIONS = {
    "4": Training(micro_batch=4),
    "4, gradient checkpointing": Training(micro_batch=4, gradient_checkpointing=True),
    "1": Training(micro_batch=1),
    "1, float32": Training(micro_batch=1, dtype="float32"),
}
RETURNED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**16)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--only", choices=list(CONFIGURATIONS))
    parser.add_argument("--child", choices=list(CONFIGURATIONS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        train(given.model, given.length, _configured(given.child))
        return
    print(f"{'micro-batch':28}{'estimate':>10}{'measured':>10}{'ratio':>8}   MiB")
    for name in [given.only] if given.only else CONFIGURATIONS:
        estimate = estimated(given.model, given.length, _configured(name))
        found = measured(["--model", given.model, "--length", str(given.length), "--child", name])
        print(f"{name:28}{estimate:10.0f}{found:10.0f}{estimate / found:8.2f}", flush=True)


def _configured(name: str) -> Training:
    training = CONFIGURATIONS[name]
    return replace(training, steps=2, batch_size=2 * training.micro_batch, checkpoint_every=0)


def estimated(model: str, length: int, training: Training) -> float:
    """MiB."""
    base = pretrained(model, "bfloat16")
    tokens = Packed([], base, length, count=2 * training.batch_size)
    stage = Train(base, base, tokens, FORMAT, OBJECTIVE, None, training)
    return of_training(stage, device="cpu").total / 2**20


def measured(arguments: list[str]) -> float:
    """MiB that a process of this file takes with `arguments`."""
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    environment = {**os.environ, **RETURNED_AT_ONCE, "BITGRID_DEVICE": "cpu"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, _resident(process.pid))
            time.sleep(0.005)
        assert process.stdout is not None
        before = float(process.stdout.read())
    return peak - before


def train(model: str, length: int, training: Training) -> None:
    """What is measured; prints the MiB that were resident before the model."""
    import torch

    before = _resident(os.getpid())
    base = pretrained(model, "bfloat16").run(Path())
    ids = torch.randint(3, base.network.config.vocab_size, (2 * training.batch_size, length))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    with tempfile.TemporaryDirectory() as work:
        Train(base, base, tokens, FORMAT, OBJECTIVE, None, training).run(Path(work))
    print(before)


def _resident(pid: int) -> float:
    """Anonymous resident memory of a process in MiB, 0 where it has ended."""
    try:
        found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    main()
