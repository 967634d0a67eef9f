"""What do losses of logits cost, from hidden states to their gradient, and what do they hold?

    python -m benchmarks.objectives --more --write         # benchmarks/results/objectives.json
    python -m benchmarks.objectives --objectives cakld kl --words 49152 --repetitions 5

A head of SmolLM2-135M's width (hidden 576) on the last states of 4 × 256 tokens; student and
teacher share it, and it is not trained. Three forms of each objective, in turn:

    published    whole logits, widened to float32, the loss by log_softmax, softmax and kl_div as in
                 BitDistiller's published code (CAKLD) or the like of it, backward by autograd
    chunked      the same on chunks of 2^21 logits, each sent back to the states at once
    ours         what a training step runs

Their gradients are compared before they are timed. Memory is the peak of a process of its own above
what it held before, sampled. `--more`: CAKLD also in float32, and at more sizes, for how it grows.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.record import Record, time_in_turn
from benchmarks.train_step import PeakMemory
from harness.models import DTYPES, device
from methods.training.eakld import EAKLD
from methods.training.forward import Labels, measure_states, token_entropy, token_nll
from methods.training.losses import Losses
from methods.training.objectives import (
    CAKLD,
    CE,
    JSD,
    KL,
    MSE,
    TSLD,
    Objective,
    ReverseKL,
    weigh_terms,
    weigh_tokens,
)
from methods.training.sums import Sum

ROWS, HIDDEN, CHUNK = 4, 576, 2**21
OBJECTIVES: dict[str, Objective] = {
    "cakld": CAKLD(0.5),
    "kl": KL(),
    "reverse-kl": ReverseKL(),
    "jsd": JSD(0.5),
    "tsld": TSLD(10.0),
    "eakld": EAKLD(),
    "mse": MSE(),
    "ce": CE(),
    "sum": Sum((CAKLD(0.5), CE()), (1.0, 0.1)),
}
SIZES = [(256, 32_000), (512, 32_000), (1024, 8_000), (1024, 16_000)]  # tokens, words


class Case:
    """A head, states of N tokens on both sides, labels, and an objective."""

    def __init__(self, name: str, dtype: str, tokens: int, words: int) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=words,
            hidden_size=HIDDEN,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=9,
            tie_word_embeddings=True,
        )
        self.network = LlamaForCausalLM(config).to(device(), DTYPES[dtype]).requires_grad_(False)
        shared, noise = torch.randn(2, tokens, HIDDEN, device=device())
        # Logits of a standard deviation of 3.
        self.guide = (6 * shared).to(DTYPES[dtype])
        self.states = (6 * shared + 2 * noise).to(DTYPES[dtype])
        ids = torch.randint(words, (ROWS, tokens // ROWS + 1), device=device())
        self.labels = Labels.of(ids, torch.ones_like(ids, dtype=torch.bool))
        self.name, self.objective = name, OBJECTIVES[name]

    def run_ours(self) -> Tensor:
        """Gradient of Σ weight · loss at the student's states, (N, D), as in a step."""
        terms, zero = self.objective.list_terms(), torch.zeros((), device=self.states.device)
        measure = partial(measure_states, self.network, self.guide, self.labels)
        weights = weigh_tokens(terms, self.labels, lambda: measure(token_nll))
        factors = weigh_terms(terms, lambda: float(measure(token_entropy).mean()))
        losses = Losses(self.labels, terms, factors, weights, [], zero)
        teacher = self.network if self.objective.needs_teacher else None
        return losses.add_heads(self.network, teacher, self.states, self.guide)

    def run_published(self) -> Tensor:
        """The same from whole logits."""
        return self._run_plain(len(self.states))

    def run_chunked(self) -> Tensor:
        """The same from chunks of them."""
        return self._run_plain(CHUNK // self.network.config.vocab_size)

    def _run_plain(self, size: int) -> Tensor:
        ids, needed = self.labels.ids, self.objective.needs_teacher
        parts = [slice(start, start + size) for start in range(0, len(ids), size)]
        kept = self._run_teacher(parts[0]) if len(parts) == 1 and needed else None
        weights, gamma = torch.ones_like(ids, dtype=torch.float32), 0.5
        if self.name in ("tsld", "eakld"):  # what the teacher says of all tokens, before
            told = [
                _describe(self._run_teacher(part) if kept is None else kept, ids[part])
                for part in parts
            ]
            nll, entropy = torch.cat(told, 1)
            if self.name == "tsld":
                weights = (nll.view(ROWS, -1) / 10).softmax(-1).flatten()
            else:
                gamma = EAKLD().find_confidence(float(entropy.mean()))
        gradients = []
        for part in parts:
            leaf = self.states[part].clone().requires_grad_()
            target = kept
            if needed and kept is None:
                target = self._run_teacher(part)
            losses = lose_plainly(
                self.name, self.network.lm_head(leaf).float(), target, ids[part], gamma
            )
            (losses * weights[part]).sum().backward()
            assert leaf.grad is not None
            gradients.append(leaf.grad)
        return torch.cat(gradients)

    @torch.no_grad()
    def _run_teacher(self, part: slice) -> Tensor:
        logits: Tensor = self.network.lm_head(self.guide[part])
        return logits.float()


def _describe(logits: Tensor, ids: Tensor) -> Tensor:
    """The teacher's loss on each label, and its entropy: (2, N)."""
    return torch.stack([token_nll(logits, ids), token_entropy(logits, ids)])


def lose_plainly(
    name: str, student: Tensor, teacher: Tensor | None, ids: Tensor, gamma: float
) -> Tensor:
    """The plain form of each objective, (N,), from float32 logits (N, V)."""
    if name == "ce" or teacher is None:
        return F.cross_entropy(student, ids, reduction="none")
    if name == "mse":
        return (student - teacher).square().mean(-1)
    if name == "jsd":
        q, p = F.softmax(student, -1), F.softmax(teacher, -1)
        log_m = ((p + q) / 2).log()
        return (_diverge(log_m, p) + _diverge(log_m, q)) / 2
    forward = reverse = student.new_zeros(())
    if name != "reverse-kl":
        forward = _diverge(F.log_softmax(student, -1), F.softmax(teacher, -1))
    if name in ("kl", "tsld"):
        return forward
    reverse = _diverge(F.log_softmax(teacher, -1), F.softmax(student, -1))
    if name == "reverse-kl":
        return reverse
    label = F.cross_entropy(student, ids, reduction="none") if name == "sum" else 0.0
    return gamma * reverse + (1 - gamma) * forward + 0.1 * label


def _diverge(log_b: Tensor, a: Tensor) -> Tensor:
    """KL(a‖b): (N,)."""
    return F.kl_div(log_b, a, reduction="none").sum(-1)


FORMS: dict[str, Callable[[Case], Tensor]] = {
    "published": Case.run_published,
    "chunked": Case.run_chunked,
    "ours": Case.run_ours,
}


def measure_case(
    record: Record, repetitions: int, name: str, dtype: str, tokens: int, words: int
) -> None:
    """Seconds and peak memory of the three forms, if they agree."""
    case = Case(name, dtype, tokens, words)
    wanted = case.run_published().float()
    loose = 2e-2 if dtype == "bfloat16" else 1e-4
    for form in (case.run_chunked, case.run_ours):
        error = (form().float() - wanted).norm() / wanted.norm()
        assert error < loose, f"{name}: gradients differ by {error:.1e}"
    del wanted
    title = f"{name}, {tokens} tokens, {words} words, {dtype}"
    sizes = {"tokens": tokens, "words": words} if (name, dtype) == ("cakld", "bfloat16") else {}
    forms = {form: partial(run, case) for form, run in FORMS.items()}
    for form, seconds in time_in_turn(forms, repetitions, time.process_time).items():
        record.add(title, form, "CPU s", seconds, **sizes)
    for form in FORMS:  # memory that one form freed would hide another's
        command = [sys.executable, "-m", "benchmarks.objectives", "--one", form, name, dtype]
        told = subprocess.run(
            [*command, str(tokens), str(words)], check=True, capture_output=True, text=True
        )
        record.add(title, form, "MiB", [float(told.stdout)], **sizes)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--objectives", nargs="*", default=list(OBJECTIVES), choices=OBJECTIVES)
    options.add_argument("--words", nargs="*", type=int, default=[32_000, 49_152])
    options.add_argument("--repetitions", type=int, default=3)
    options.add_argument("--more", action="store_true", help="cakld in float32, and how it grows")
    options.add_argument("--write", action="store_true")
    options.add_argument("--one", nargs=5, help=argparse.SUPPRESS)  # peak memory of one form
    chosen = options.parse_args()
    torch.set_num_threads(1)  # whose seconds are counted
    if chosen.one:
        form, name, dtype, tokens, words = chosen.one
        case = Case(name, dtype, int(tokens), int(words))
        with PeakMemory() as memory:
            FORMS[form](case)
        print(memory.mib)
        return
    cases = []
    if "cakld" in chosen.objectives:
        cases += [("cakld", "bfloat16", 1024, words) for words in chosen.words]
        cases += [("cakld", "float32", 1024, words) for words in chosen.words if chosen.more]
        cases += [("cakld", "bfloat16", *size) for size in SIZES if chosen.more]
    others = [name for name in chosen.objectives if name != "cakld"]
    cases += [(name, "bfloat16", 1024, words) for words in chosen.words for name in others]
    record = Record("objectives", baseline="published")
    try:
        for name, dtype, tokens, words in cases:
            measure_case(record, chosen.repetitions, name, dtype, tokens, words)
    finally:  # stopped, it keeps what it has
        record.finish(write=chosen.write)


if __name__ == "__main__":
    main()
