"""Scores of a model: perplexity by the protocols that papers use, and tasks by lm-eval.

Each task of a cell is a stage of its own, so that a task added to a grid costs that task alone; the
run keeps the model in memory between them. Every row names its protocol. Not here: tables and
averages (`reports`), lm-eval itself (`tasks`), the testbed's tasks (`harness.testbed`).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.core.checked import Checked
from harness.core.errors import GridError, ModelError, TextError
from harness.core.reads import Read
from harness.core.records import NO_FILTER, ItemScores, Precision, Score
from harness.core.stage import Input, Resources, Stage, incidental, report, value
from harness.data import pack, texts
from harness.data.fill import DataSetRead
from harness.data.hub import current, find_access
from harness.data.sources import TEXTS
from harness.evaluation import tasks
from harness.models import Model, Pretrained, host_gib
from harness.testbed import world

FEWSHOT = {"mmlu": 5}  # where the field's habit is not the task's own default
# The metric that stands for its task, as the papers have it; the others are rows too.
PRIMARY = (
    "acc",
    "exact_match,flexible-extract",
    "exact_match",
    "pass@1",
    "pass_at_1",
    "word_perplexity",
)
EVALUATION_TOKENS = 16_384  # a batch: as many sequences as fit
USUAL_TOKENS = 1024  # what few task items exceed, however long a model's context is


@dataclass(frozen=True)
class Scores:
    """What one task says of one model: rows, and the items behind them for paired statistics."""

    rows: list[Score]
    model: Precision
    items: list[ItemScores] = field(default_factory=list)

    def save(self, folder: Path) -> dict[str, Any]:
        text = "".join(json.dumps(asdict(item)) + "\n" for item in self.items)
        (folder / "items.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        return {"rows": [asdict(row) for row in self.rows], "model": asdict(self.model)}

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any]) -> Scores:
        lines = gzip.decompress((folder / "items.jsonl.gz").read_bytes()).decode().splitlines()
        return cls(
            [Score(**row) for row in facts["rows"]],
            Precision(**facts["model"]),
            [ItemScores(**json.loads(line)) for line in lines],
        )


@dataclass(frozen=True)
class Protocol:
    """How a perplexity is taken: everything that moves the number, and nothing else."""

    text: str
    window: int
    cut: str  # a name in `_CUTS`
    words: str

    @property
    def testbed(self) -> bool:
        return self.text.partition(":")[0] == "testbed"


PERPLEXITY: dict[str, Protocol] = {
    "wikitext2": Protocol("wikitext2", 2048, "joined", "raw test joined by blank lines"),
    "c4": Protocol("c4", 2048, "random", "256 random long documents, seed 0"),
    "c4-new": Protocol("c4", 2048, "first", "first 1100 documents joined by a space, 256 windows"),
    "testbed-ppl": Protocol("testbed", 512, "packed", "held-out documents end to end, BOS and EOS"),
}
for _domain in world.DOMAINS:
    PERPLEXITY[f"testbed-ppl-{_domain}"] = replace(
        PERPLEXITY["testbed-ppl"], text=f"testbed:{_domain}"
    )


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

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1, memory_gib=host_gib(self.model), hours=1)

    def run(self, work: Path) -> Scores:
        model = _evaluable(value(self.model))
        cut, window = _CUTS[self.protocol.cut], self.protocol.window
        _check_window(self.task, window, model.context)
        windows = cut(value(self.documents), model, window, self.bos)[: self.limit]
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
            protocol=f"{self.protocol.words}; window {window}",
            window=window,
            tokenizer=_describe_tokenizer(model),
            task_version=str(self.version),
            lm_eval=None,
            caveat=world.CAVEAT if self.protocol.testbed else None,
        )
        return Scores([row], _precision(model), [_item_scores(row, enumerate(nll.tolist()))])


@dataclass(frozen=True)
class LmEval(Stage[Scores]):
    """One lm-eval task, or group of tasks, on a model in memory."""

    kind: ClassVar[str] = "lm-eval"
    version: ClassVar[int] = 2
    model: Input[Model]
    task: str
    num_fewshot: int | None
    bos: bool
    digest: str  # of the items: see `tasks.digest`
    limit: int | None = None  # items
    mirror: str | None = incidental(None)  # data sets are read from it; BITGRID_MIRROR goes before

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1, memory_gib=host_gib(self.model), hours=2)

    def reads(self) -> tuple[Read, ...]:
        splits, access = tasks.reads(self.task, self.num_fewshot), current(self.mirror)
        if not splits and self.task not in tasks.testbed():
            return (tasks.Unlisted(self.task),)
        return tuple(DataSetRead(split, access) for split in splits)

    def run(self, work: Path) -> Scores:
        model = _evaluable(value(self.model))
        batch = task_batch(model.context)
        found = tasks.evaluate(
            model,
            self.task,
            self.num_fewshot,
            self.bos,
            self.limit,
            batch_size=batch,
            access=find_access(self.mirror),
        )
        named = {
            name: self.task if len(found["samples"]) == 1 else name for name in found["samples"]
        }
        rows = [row for name in named for row in self._rows(found, name, named[name])]
        items = [
            _item_scores(row, _scores_of(found["samples"][name], row))
            for name in named
            for row in rows
            if row.task == named[name]
        ]
        rows = [_with_aggregation(row, of_row) for row, of_row in zip(rows, items, strict=True)]
        if self.task not in named.values():
            rows = _with_means(self.task, rows)
        cut = {named[name]: count for name, count in found["cut"].items()}
        rows = [_with_cuts(row, cut) for row in rows]
        return Scores(rows, _precision(model), [each for each in items if each.scores])

    def _rows(self, found: Mapping[str, Any], name: str, shown: str) -> Iterator[Score]:
        """A row for each metric that lm-eval has of a task, the primary one first."""
        results = {
            metric.removesuffix(",none"): score
            for metric, score in found["results"][name].items()
            if "," in metric and isinstance(score, int | float)
        }
        metrics = {metric for metric in results if "_stderr" not in metric}
        primary = _primary(metrics)
        for metric in [primary, *sorted(metrics - {primary})]:
            base, _, chosen = metric.partition(",")
            yield Score(
                task=shown,
                metric=base,
                filter=chosen or NO_FILTER,
                group=None,
                primary=metric == primary,
                value=float(results[metric]),
                stderr=results.get(f"{base}_stderr" + (f",{chosen}" if chosen else "")),
                n=found["n-samples"][name]["effective"],
                higher_is_better=bool(found["higher_is_better"].get(name, {}).get(base, True)),
                aggregation=None,
                num_fewshot=found["n-shot"].get(name),
                bos=self.bos,
                chat_template=False,  # `tasks.evaluate` asks for none, whatever the model
                limit=self.limit,
                protocol="lm-eval",
                window=None,
                tokenizer=None,
                task_version=str(found["versions"].get(name)),
                lm_eval=tasks.release(),
                caveat=world.CAVEAT if self.task in tasks.testbed() else None,
            )


@dataclass(frozen=True)
class TaskOptions(Checked):
    """What a grid may say of a task beside its name."""

    limit: Annotated[int, Field(gt=0)] | None = None
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    bos: bool | None = None
    window: Annotated[int, Field(ge=2)] | None = None


def evaluation(
    model: Stage[Model], task: str, options: TaskOptions, base: Pretrained | None = None
) -> Stage[Scores]:
    """The stage that scores `model` on a task by name. Raises GridError with the nearest name.

    `base` is the published model behind `model`: what it cannot do is then an error now, and not
    when it has been quantised.
    """
    protocol = PERPLEXITY.get(task)
    if protocol is not None:
        _check_applies(task, num_fewshot=options.num_fewshot)
        if protocol.cut == "packed":  # each document has its BOS and EOS, by the protocol
            _check_applies(task, bos=options.bos)
        if options.window:
            protocol = replace(protocol, window=options.window)
        bos = protocol.testbed if options.bos is None else options.bos
        if base is not None:
            _check_window(task, protocol.window, base.context())
            if bos and base.tokenizer().bos_token_id is None:
                raise ModelError(f"{task}: bos is true, but the tokenizer has no BOS token")
        documents = texts(protocol.text, "heldout")
        return Perplexity(model, documents, task, protocol, bos, options.limit)
    tasks.check(task, others=PERPLEXITY, texts=TEXTS.load())
    _check_applies(task, window=options.window)
    shots = FEWSHOT.get(task) if options.num_fewshot is None else options.num_fewshot
    bos = False if options.bos is None else options.bos  # as the papers do
    if base is not None:
        tasks.check_model(task, bos, base.tokenizer(), base.context())
    access = current()
    folder = None if access.folder is None else str(access.folder)
    digest = tasks.digest(task, shots, access)
    return LmEval(model, task, shots, bos, digest, options.limit, folder)


def task_batch(context: int) -> int:
    """How many of a task's texts are run at once by a model of so long a context."""
    return max(1, EVALUATION_TOKENS // min(context, USUAL_TOKENS))


def higher_is_better(task: str) -> bool:
    """Whether a task's primary metric is a score, rather than a perplexity."""
    return task not in PERPLEXITY


def list_known() -> tuple[str, ...]:
    """Names that are known without asking lm-eval, which takes seconds."""
    return (*PERPLEXITY, *tasks.testbed())


def runs_code(task: str) -> bool:
    """Whether scoring a task means running what the model wrote."""
    return task not in PERPLEXITY and tasks.runs_code(task)


def _check_applies(task: str, **options: object) -> None:
    for name, given in options.items():
        if given is not None:
            raise GridError(f"{task}: the option {name!r} says nothing of this task")


def _check_window(task: str, window: int, context: int | None) -> None:
    if context is not None and window > context:
        raise ModelError(f"{task}: window {window}, but the context is {context}")


def _evaluable(model: Model) -> Model:
    if model.latent:
        raise ModelError("latent weights are never evaluated: round them with the format first")
    return model


def _precision(model: Model) -> Precision:
    kinds = sorted({(q.format, q.bits, q.group_size) for q in model.quantized.values()})
    formats = [format for format, _, _ in kinds] or ["none"]
    return Precision(
        format="+".join(dict.fromkeys(formats)),
        bits=max((bits for _, bits, _ in kinds), default=16),
        # 0, a whole row of the matrix, is the largest.
        group_size=max((size for _, _, size in kinds), key=lambda size: size or math.inf)
        if kinds
        else None,
        bits_per_weight=round(model.bits_per_weight(), 4) if kinds else 16.0,
        dtype=str(model.network.dtype).removeprefix("torch."),
    )


def _describe_tokenizer(model: Model) -> str:
    """Size of the vocabulary, and a digest that tells two of one size apart."""
    entries = json.dumps(sorted(model.tokenizer.get_vocab().items()))
    count = len(model.tokenizer.get_vocab())
    return f"{count} tokens, {hashlib.sha256(entries.encode()).hexdigest()[:8]}"


@torch.inference_mode()
def _window_nll(model: Model, windows: Tensor) -> Iterator[Tensor]:
    """Mean token NLL of each window (N, T) -> (N,) float32, a batch at a time."""
    batch = max(1, EVALUATION_TOKENS // 2 // windows.shape[1])
    for start in range(0, len(windows), batch):
        ids = windows[start : start + batch].to(model.device)
        logits = model.network(ids, use_cache=False).logits
        for row, labels in zip(logits, ids, strict=True):  # float32 for one window, not the batch
            loss = torch.nn.functional.cross_entropy(row[:-1].float(), labels[1:])
            yield loss.cpu().unsqueeze(0)
        report(min(start + batch, len(windows)), len(windows))


def _joined(documents: list[str], model: Model, window: int, bos: bool) -> Tensor:
    return _windows("\n\n".join(documents), model, window, bos)


def _first(documents: list[str], model: Model, window: int, bos: bool) -> Tensor:
    return _windows(" ".join(documents[:1100]), model, window, bos)[:256]


def _packed(documents: list[str], model: Model, window: int, bos: bool) -> Tensor:
    return pack(documents, model.tokenizer, window, count=10**9).ids


def _random(documents: list[str], model: Model, window: int, bos: bool) -> Tensor:
    chooser, found = random.Random(0), list[list[int]]()
    drawn = 0
    while len(found) < 256:
        ids = _encode(documents[chooser.randint(0, len(documents) - 1)], model, bos)
        drawn += 1
        if not found and drawn > 20 * len(documents):
            raise TextError(f"no document has more tokens than a window of {window}")
        if len(ids) > window:
            start = chooser.randint(0, len(ids) - window - 1)
            found.append(ids[start : start + window])
    return torch.tensor(found)


_CUTS = {"joined": _joined, "first": _first, "packed": _packed, "random": _random}


def _windows(text: str, model: Model, window: int, bos: bool) -> Tensor:
    ids = _encode(text, model, bos)
    if len(ids) < window:
        raise ModelError(f"the text has {len(ids)} tokens, fewer than one window of {window}")
    return torch.tensor(ids[: len(ids) // window * window]).view(-1, window)


def _encode(text: str, model: Model, bos: bool) -> list[int]:
    first = [model.tokenizer.bos_token_id] if bos else []
    return first + list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def _primary(metrics: set[str]) -> str:
    for preferred in PRIMARY:
        for metric in sorted(metrics):
            if metric == preferred or metric.startswith(f"{preferred},"):
                return metric
    return min(metrics)


def _with_means(group: str, rows: list[Score]) -> list[Score]:
    """A group's own rows, a macro mean for each metric that all its tasks have, before theirs.

    A group whose tasks share no metric has no mean: then each task stands for itself.
    """
    count = len({row.task for row in rows})
    by_metric: dict[tuple[str, str], list[Score]] = {}
    for row in rows:
        by_metric.setdefault((row.metric, row.filter), []).append(row)
    shared = {metric: same for metric, same in by_metric.items() if len(same) == count}
    if not shared:
        return rows
    primary = _primary({_full_name(*metric) for metric in shared})
    means = [_macro_mean(group, same) for same in shared.values()]
    means = [replace(m, primary=_full_name(m.metric, m.filter) == primary) for m in means]
    members = [
        replace(row, primary=False, group=group if (row.metric, row.filter) in shared else None)
        for row in rows
    ]
    return [*means, *members]


def _macro_mean(task: str, rows: list[Score]) -> Score:
    """A group's row: the unweighted mean over its tasks, as MMLU is published."""
    errors = [row.stderr for row in rows if row.stderr is not None]
    return replace(
        rows[0],
        task=task,
        value=math.fsum(math.nan if row.value is None else row.value for row in rows) / len(rows),
        stderr=math.sqrt(math.fsum(e * e for e in errors)) / len(rows) if errors else None,
        n=sum(row.n or 0 for row in rows),
        aggregation="macro_mean",
        protocol=f"lm-eval; macro mean over {len(rows)} tasks",
    )


def _full_name(metric: str, filter: str) -> str:
    """`exact_match,strict-match`, as lm-eval has it; without a filter the metric alone."""
    return metric if filter == NO_FILTER else f"{metric},{filter}"


def _with_cuts(row: Score, cut: Mapping[str, int]) -> Score:
    """The row, saying how many prompts were cut; of a group's, over all its tasks."""
    count = cut[row.task] if row.task in cut else sum(cut.values())
    told = f"; {count} prompts cut to fit the context" if count else ""
    return replace(row, protocol=f"{row.protocol}{told}")


def _scores_of(samples: Iterable[Mapping[str, Any]], row: Score) -> Iterator[tuple[int, float]]:
    """(item, score) of a row's task, metric and filter, in lm-eval's order.

    A score that is not one number, as what a word perplexity sums, is left out.
    """
    for sample in samples:
        if (
            row.metric in sample.get("metrics", ())
            and sample.get("filter", NO_FILTER) == row.filter
        ):
            score = sample.get(row.metric)
            if isinstance(score, bool | int | float):
                yield sample["doc_id"], float(score)


def _item_scores(row: Score, scored: Iterable[tuple[int, float]]) -> ItemScores:
    pairs = list(scored)
    numbers = [item for item, _ in pairs]
    return ItemScores(
        task=row.task,
        metric=row.metric,
        filter=row.filter,
        items=None if numbers == list(range(len(pairs))) else numbers,
        scores=[int(score) if score.is_integer() else score for _, score in pairs],
    )


def _with_aggregation(row: Score, items: ItemScores) -> Score:
    """The row, saying that its value is the mean of its items, where it is.

    lm-eval aggregates some metrics otherwise (F1, BLEU), and does not tell which.
    """
    if row.value is None or not items.scores:
        return row
    mean = math.fsum(items.scores) / len(items.scores)
    is_mean = math.isclose(mean, row.value, rel_tol=1e-9, abs_tol=1e-12)
    return replace(row, aggregation="mean") if is_mean else row
