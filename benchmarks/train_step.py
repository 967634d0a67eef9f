"""How long is a training step, and how much memory does it take?

    python -m benchmarks.train_step --steps 10 --dtype bfloat16 --objective cakld

A random Llama of 5 million weights in its blocks (hidden 256, ffn 768, 6 layers, vocabulary 2048)
distils itself at 2 bits on 8 sequences of 256 tokens, as in the quickstart. Prints one line a
dtype.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time

import psutil
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.data import Tokens
from harness.models import DTYPES, Model, device
from methods.quantization.formats import IntAsym
from methods.training.batches import order_rows, split_batch
from methods.training.masters import Masters
from methods.training.objectives import CAKLD, Objective
from methods.training.settings import Training
from methods.training.shards import ALONE
from methods.training.step import TrainingStep


def random_llama(seed: int = 0) -> Model:
    """5.1 M weights in the blocks, 1 M in embeddings and head, bf16."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    network = LlamaForCausalLM(config).to(device(), torch.bfloat16).eval().requires_grad_(False)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(2048)}, unk_token="w0"))
    return Model(network, PreTrainedTokenizerFast(tokenizer_object=words))


class PeakMemory:
    """Peak resident memory above what was there before, in MiB, sampled."""

    def __enter__(self) -> PeakMemory:
        self._process, self._ended = psutil.Process(), threading.Event()
        self.before = self.peak = self._process.memory_info().rss
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    @property
    def mib(self) -> float:
        return (self.peak - self.before) / 2**20

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.peak = max(self.peak, self._process.memory_info().rss)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"])
    options.add_argument("--objective", default="cakld", choices=sorted(Objective.choices()))
    options.add_argument("--micro-batch", type=int, default=8)
    chosen = options.parse_args()
    if len(chosen.dtype) > 1:  # a process each: memory that one run freed would hide the next one's
        for dtype in chosen.dtype:
            command = [sys.executable, "-m", "benchmarks.train_step", "--dtype", dtype]
            command += ["--steps", str(chosen.steps), "--objective", chosen.objective]
            command += ["--micro-batch", str(chosen.micro_batch)]
            subprocess.run(command, check=True)
        return
    (dtype,) = chosen.dtype
    teacher = random_llama()
    ids = torch.randint(0, 2048, (64, 256))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    objective = CAKLD() if chosen.objective == "cakld" else Objective.choices()[chosen.objective]()
    training = Training(
        steps=chosen.steps, batch_size=8, micro_batch=chosen.micro_batch, lr=1e-4, dtype=dtype
    )
    seconds: list[float] = []
    with PeakMemory() as memory:
        compute = DTYPES[dtype]
        masters = Masters.of(teacher, IntAsym(2, 128), training.trained, compute)
        step = TrainingStep(training, objective, 0.5, masters, ALONE.split(teacher, compute))
        for rows in order_rows(len(tokens), 8, 8 * chosen.steps, seed=0):
            began = time.perf_counter()
            size, place = training.micro_batch, masters.network.device
            _, norm = step.compute_gradients(split_batch(tokens, rows, size, ALONE, place))
            step.update(training.lr, norm)
            seconds.append(time.perf_counter() - began)
    per_step = sorted(seconds)[len(seconds) // 2]
    print(
        f"{dtype:9} {chosen.objective:10} {1000 * per_step:6.0f} ms a step  "
        f"{2048 / per_step:7.0f} tokens/s  peak {memory.mib:5.0f} MiB"
    )


if __name__ == "__main__":
    main()
