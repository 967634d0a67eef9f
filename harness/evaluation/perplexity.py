"""Perplexity by the protocols that papers use, and by those that others register.

    register_evaluation(
        PerplexityTask("letters-ppl", Protocol("letters", 1024, "joined", words="all letters"))
    )

A protocol is all that moves the number: the text, the window, how windows are cut from it. Not
here: texts (`harness.data`), lm-eval's word perplexity (`lm_eval`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from harness.core.checked import Checked
from harness.core.errors import ModelError, TextError
from harness.core.records import NO_FILTER, Score
from harness.core.stage import Input, Resources, Stage, added, incidental, report, value
from harness.data import pack, texts
from harness.data.sources import find_text
from harness.evaluation.evaluations import Evaluation, register_evaluation
from harness.evaluation.scores import (
    EVALUATION_TOKENS,
    Scores,
    check_evaluable,
    describe_precision,
    describe_tokenizer,
    join_caveats,
    make_item_scores,
)
from harness.models import Model, Pretrained, host_gib, run_finite

Cut: TypeAlias = Literal["joined", "first", "packed", "random"]
"""How windows are cut from a text's documents: see the functions in `_CUTS`."""


@dataclass(frozen=True)
class Protocol:
    """How a perplexity is taken: everything that moves the number."""

    text: str
    window: int
    cut: Cut
    words: str = incidental("")  # the same for a reader


@dataclass(frozen=True)
class Perplexity(Stage[Scores]):
    """exp of the mean of windows' mean token NLL over non-overlapping windows, tail dropped."""

    kind: ClassVar[str] = "perplexity"
    model: Input[Model]
    documents: Input[list[str]]
    task: str
    protocol: Protocol
    bos: bool
    limit: int | None = None  # windows
    caveat: str | None = incidental(None)
    skip: int = added(0)  # windows before the first that is read

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1, memory_gib=host_gib(self.model), hours=1)

    def run(self, work: Path) -> Scores:
        model = check_evaluable(value(self.model))
        window = self.protocol.window
        windows = cut_windows(self.protocol, value(self.documents), model, self.bos, self.task)
        windows = select_windows(windows, self.skip, self.limit, self.task)
        nll = torch.cat(list(_window_nll(model, windows))).double()
        mean, spread = nll.mean().item(), nll.std().item() if len(nll) > 1 else math.nan
        perplexity = math.exp(mean) if mean < 700 else math.inf
        row = Score(
            task=self.task,
            metric="ppl",
            filter=NO_FILTER,
            group=None,
            primary=True,
            value=perplexity,
            # Delta method: the standard error of exp(mean) is exp(mean) times that of the mean.
            stderr=None if math.isnan(spread) else perplexity * spread / math.sqrt(len(nll)),
            n=len(nll),
            higher_is_better=False,
            aggregation="exp_mean",
            num_fewshot=None,
            bos=self.bos,
            chat_template=None,
            limit=self.limit,
            protocol=describe_protocol(self.protocol, model, self.skip),
            window=window,
            tokenizer=describe_tokenizer(model),
            task_version=str(self.version),
            lm_eval=None,
            caveat=self.caveat,
        )
        return Scores(
            [row], describe_precision(model), [make_item_scores(row, enumerate(nll.tolist()))]
        )


@dataclass(frozen=True)
class PackedOptions(Checked):
    """What a grid may say of a perplexity over packed documents.

    Each begins with the tokenizer's BOS and ends with its EOS, where it has them.
    """

    limit: Annotated[int, Field(gt=0, le=100_000_000)] | None = None  # windows
    window: Annotated[int, Field(ge=2, le=2**24)] | None = None  # tokens


@dataclass(frozen=True)
class PerplexityOptions(PackedOptions):
    """What a grid may say of another perplexity."""

    bos: bool | None = None  # before the whole text, or each drawn document; default: no


@dataclass(frozen=True)
class PerplexityTask(Evaluation):
    """A perplexity by name."""

    name: str
    protocol: Protocol

    higher_is_better = False

    @property
    def about(self) -> str:
        return f"perplexity: {self.protocol.words}; window {self.protocol.window}"

    @property
    def options(self) -> type:
        return PackedOptions if self.protocol.cut == "packed" else PerplexityOptions

    def check(self, options: PackedOptions, base: Pretrained) -> None:
        _check_window(self.name, options.window or self.protocol.window, base.context())
        if getattr(options, "bos", None) and base.tokenizer().bos_token_id is None:
            raise ModelError(
                f"{self.name}: bos is true, but the tokenizer has no BOS token; set it to false"
            )

    def stage(
        self, model: Stage[Model], options: PackedOptions, base: Pretrained | None
    ) -> Stage[Scores]:
        return Perplexity(
            model, task=self.name, limit=options.limit, **self.find_reading(options, base)
        )

    def find_reading(self, options: PackedOptions, base: Pretrained | None) -> dict[str, Any]:
        """What is read, as fields of the stage: documents, protocol, bos, caveat."""
        protocol = replace(self.protocol, window=options.window or self.protocol.window)
        bos = bool(getattr(options, "bos", None))
        if self.protocol.cut == "packed":  # where there is one
            bos = base is None or base.tokenizer().bos_token_id is not None
        return {
            "documents": texts(protocol.text, "heldout"),
            "protocol": protocol,
            "bos": bos,
            "caveat": join_caveats(
                find_text(protocol.text)[0].caveat, base.caveat if base else None
            ),
        }


def cut_windows(
    protocol: Protocol, documents: list[str], model: Model, bos: bool, task: str
) -> Tensor:
    """The windows (N, T) int64 of a text. Raises ModelError where the model cannot read one."""
    _check_window(task, protocol.window, model.context)
    return _CUTS[protocol.cut](documents, model, protocol.window, bos)


def select_windows(windows: Tensor, skip: int, limit: int | None, task: str) -> Tensor:
    """Of windows (N, T) at most `limit` after the first `skip`. Raises TextError for none."""
    if skip >= len(windows):
        raise TextError(f"{task}: skip {skip}, but the text has {len(windows)} windows")
    return windows[skip:][:limit]


def describe_protocol(protocol: Protocol, model: Model, skip: int = 0) -> str:
    """In words, with what packed documents are joined by as a rule and this tokenizer lacks."""
    tokenizer, lacking = model.tokenizer, []
    if protocol.cut == "packed":
        ids = {"BOS": tokenizer.bos_token_id, "EOS": tokenizer.eos_token_id}
        lacking = [f"the tokenizer has no {name}" for name, token in ids.items() if token is None]
    skipped = [f"after the first {skip} windows"] if skip else []
    return "; ".join([protocol.words, *lacking, f"window {protocol.window}", *skipped])


def _check_window(task: str, window: int, context: int | None) -> None:
    if context is not None and window > context:
        raise ModelError(f"{task}: window {window}, but the context is {context}")


@torch.inference_mode()
def _window_nll(model: Model, windows: Tensor) -> Iterator[Tensor]:
    """Mean token NLL of each window (N, T) -> (N,) float32, a batch at a time."""
    batch = max(1, EVALUATION_TOKENS // 2 // windows.shape[1])
    for start in range(0, len(windows), batch):
        ids = windows[start : start + batch].to(model.device)
        logits = run_finite(model, partial(compute_logits, model, ids))
        for row, labels in zip(logits, ids, strict=True):  # float32 for one window, not the batch
            loss = torch.nn.functional.cross_entropy(row[:-1].float(), labels[1:])
            if not math.isfinite(loss):
                raise ModelError("a token of the text has no probability: its logit is -Inf")
            yield loss.cpu().unsqueeze(0)
        report(min(start + batch, len(windows)), len(windows))


def compute_logits(model: Model, ids: Tensor) -> Tensor:
    """(B, T) -> (B, T, V)."""
    logits: Tensor = model.network(ids, use_cache=False).logits
    return logits


def _joined(documents: list[str], model: Model, window: int, bos: bool) -> Tensor:
    return _windows("\n\n".join(documents), model, window, bos)


def _first(documents: list[str], model: Model, window: int, bos: bool) -> Tensor:
    return _windows(" ".join(documents[:1100]), model, window, bos)[:256]


def _packed(documents: list[str], model: Model, window: int, bos: bool) -> Tensor:
    return pack(documents, model.tokenizer, window, count=10**9).ids


def _random(documents: list[str], model: Model, window: int, bos: bool) -> Tensor:
    chooser, windows = random.Random(0), list[list[int]]()
    drawn = 0
    while len(windows) < 256:
        ids = _encode(documents[chooser.randint(0, len(documents) - 1)], model, bos)
        drawn += 1
        if not windows and drawn > 20 * len(documents):
            raise TextError(f"no document has more tokens than a window of {window}")
        if len(ids) > window:
            start = chooser.randint(0, len(ids) - window - 1)
            windows.append(ids[start : start + window])
    return torch.tensor(windows)


_CUTS: dict[Cut, Callable[[list[str], Model, int, bool], Tensor]] = {
    "joined": _joined,
    "first": _first,
    "packed": _packed,
    "random": _random,
}


def _windows(text: str, model: Model, window: int, bos: bool) -> Tensor:
    ids = _encode(text, model, bos)
    if len(ids) < window:
        raise ModelError(f"the text has {len(ids)} tokens, fewer than one window of {window}")
    return torch.tensor(ids[: len(ids) // window * window]).view(-1, window)


def _encode(text: str, model: Model, bos: bool) -> list[int]:
    first = [model.tokenizer.bos_token_id] if bos else []
    return first + list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


for _name, _protocol in {
    "wikitext2": Protocol("wikitext2", 2048, "joined", "raw test joined by blank lines"),
    "c4": Protocol("c4", 2048, "random", "256 random long documents, seed 0"),
    "c4-new": Protocol("c4", 2048, "first", "first 1100 documents joined by a space, 256 windows"),
}.items():
    register_evaluation(PerplexityTask(_name, _protocol))
