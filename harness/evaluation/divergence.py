"""How far a model's next-token distributions are from those of the model that it was made from.

    evaluate: [kl:wikitext2, {kl:testbed-ppl: {limit: 60}}]

`kl:NAME` reads the text of perplexity NAME, in the same windows, with the same options. A
perplexity sees of each distribution one token; the divergence sees all of it, without the noise of
which token the text has, and so tells models apart that few items of a task do not. Not here: the
text and its windows (`perplexity`), divergences as objectives (`methods.training`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor

from harness.core.errors import GridError, ModelError, nearest
from harness.core.records import NO_FILTER, Score
from harness.core.stage import Input, Resources, Stage, added, incidental, report, value
from harness.evaluation.evaluations import EVALUATIONS, Catalogue, Evaluation, register_catalogue
from harness.evaluation.perplexity import (
    PackedOptions,
    PerplexityTask,
    Protocol,
    compute_logits,
    cut_windows,
    describe_protocol,
    select_windows,
)
from harness.evaluation.scores import (
    EVALUATION_TOKENS,
    Scores,
    check_evaluable,
    describe_precision,
    describe_tokenizer,
    make_item_scores,
)
from harness.models import Model, Pretrained, host_gib, run_finite

PREFIX = "kl:"
_TOKENS = 256  # whose distributions are compared at once, in float32


@dataclass(frozen=True)
class Divergence(Stage[Scores]):
    """KL(p‖q), in nats, of the original's next-token distribution p from the model's q, at each
    token that a perplexity scores: mean, median and 99th percentile over tokens; and how often both
    hold the same token for the likeliest."""

    kind: ClassVar[str] = "divergence"
    model: Input[Model]
    original: Input[Model]
    documents: Input[list[str]]
    task: str
    protocol: Protocol
    bos: bool
    limit: int | None = None  # windows
    caveat: str | None = incidental(None)
    skip: int = added(0)  # windows before the first that is read

    @property
    def resources(self) -> Resources:
        memory = host_gib(self.model) + host_gib(self.original)
        return Resources(gpus=1, memory_gib=memory, hours=1)

    def run(self, work: Path) -> Scores:
        model, original = check_evaluable(value(self.model)), value(self.original)
        windows = cut_windows(self.protocol, value(self.documents), original, self.bos, self.task)
        windows = select_windows(windows, self.skip, self.limit, self.task)
        compared = list(_compare(original, model, windows))
        divergences = torch.stack([each for each, _ in compared]).double()  # (N, T - 1)
        agreements = torch.stack([each for _, each in compared]).double().mean(1)
        middle, high = numpy.quantile(divergences.numpy(), (0.5, 0.99))
        row = Score(
            task=self.task,
            metric="kl",
            filter=NO_FILTER,
            group=None,
            primary=True,
            **_average(divergences.mean(1)),
            higher_is_better=False,
            num_fewshot=None,
            bos=self.bos,
            chat_template=None,
            limit=self.limit,
            protocol="KL from the full-precision model; "
            + describe_protocol(self.protocol, model, self.skip),
            window=self.protocol.window,
            tokenizer=describe_tokenizer(model),
            task_version=str(self.version),
            lm_eval=None,
            caveat=self.caveat,
        )
        rest = replace(row, primary=False, stderr=None, aggregation=None)
        top = replace(
            row, metric="top1", primary=False, higher_is_better=True, **_average(agreements)
        )
        return Scores(
            [
                row,
                replace(rest, metric="kl_median", value=float(middle)),
                replace(rest, metric="kl_p99", value=float(high)),
                top,
            ],
            describe_precision(model),
            [
                make_item_scores(row, enumerate(divergences.mean(1).tolist())),
                make_item_scores(top, enumerate(agreements.tolist())),
            ],
        )


def _average(windows: Tensor) -> dict[str, Any]:
    """The mean over windows (N,) as fields of a score."""
    spread = windows.std().item() / math.sqrt(len(windows)) if len(windows) > 1 else None
    return {
        "value": windows.mean().item(),
        "stderr": spread,
        "n": len(windows),
        "aggregation": "mean",
    }


@torch.inference_mode()
def _compare(original: Model, model: Model, windows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each window (T,) the KL (T - 1,) float32, and whether both hold the same token for the
    likeliest (T - 1,) bool. The last token is left out, after which no perplexity is taken."""
    batch = max(1, EVALUATION_TOKENS // 4 // windows.shape[1])
    for start in range(0, len(windows), batch):
        ids = windows[start : start + batch]
        theirs, ours = (
            run_finite(each, partial(compute_logits, each, ids.to(each.device)))[:, :-1]
            for each in (original, model)
        )
        if theirs.shape != ours.shape:
            raise ModelError(
                f"the model has logits of {ours.shape[-1]} tokens, and the model that it was made "
                f"from of {theirs.shape[-1]}: they have no divergence"
            )
        for p, q in zip(theirs, ours.to(theirs.device), strict=True):
            parts = zip(p.split(_TOKENS), q.split(_TOKENS), strict=True)
            divergences, agreements = zip(*(compare_logits(*part) for part in parts), strict=True)
            yield torch.cat(divergences).cpu(), torch.cat(agreements).cpu()
        report(min(start + batch, len(windows)), len(windows))


def compare_logits(original: Tensor, model: Tensor) -> tuple[Tensor, Tensor]:
    """KL(softmax(original)‖softmax(model)) of logits (T, V), (T,) in float32, or float64 where they
    are; and whether the largest logit is the same one's, (T,) bool.

    A token of probability 0 in the original adds nothing. Raises ModelError where the model gives 0
    to one that has some: the divergence is infinite.
    """
    wide = torch.float64 if original.dtype == torch.float64 else torch.float32
    p, q = original.to(wide).log_softmax(-1), model.to(wide).log_softmax(-1)
    terms = torch.where(p.isinf(), 0.0, p.exp() * (p - q)).sum(-1)
    if not bool(terms.isfinite().all()):
        raise ModelError("a token that may come has no probability: its logit is -Inf")
    return terms, original.argmax(-1) == model.argmax(-1)


@dataclass(frozen=True)
class DivergenceTask(Evaluation):
    """The divergence on the text of a perplexity."""

    of: PerplexityTask

    higher_is_better = False

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{PREFIX}{self.of.name}"

    @property
    def about(self) -> str:
        return f"KL divergence from the full-precision model, on the text of {self.of.name}"

    @property
    def options(self) -> type:
        return self.of.options

    def check(self, options: PackedOptions, base: Pretrained) -> None:
        self.of.check(options, base)

    def stage(
        self, model: Stage[Model], options: PackedOptions, base: Pretrained | None
    ) -> Stage[Scores]:
        if base is None:
            raise GridError(f"{self.name}: no full-precision model is known to compare with")
        return Divergence(
            model, base, task=self.name, limit=options.limit, **self.of.find_reading(options, base)
        )


class Divergences(Catalogue):
    """`kl:` before the name of each perplexity that is registered."""

    about = "KL divergence from the full-precision model"
    is_short = True

    def find(self, name: str) -> Evaluation | None:
        if not name.startswith(PREFIX):
            return None
        known = {each.name: each for each in self._list_perplexities()}
        if (of := name.removeprefix(PREFIX)) not in known:
            raise GridError(f"task {name!r} is unknown; {nearest(name, self.names())}")
        return DivergenceTask(known[of])

    def names(self) -> Iterable[str]:
        return [f"{PREFIX}{each.name}" for each in self._list_perplexities()]

    def _list_perplexities(self) -> list[PerplexityTask]:
        return [each for each in EVALUATIONS.load().values() if isinstance(each, PerplexityTask)]


register_catalogue("divergence", Divergences())
