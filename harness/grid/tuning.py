"""`tune:` of a grid: settings chosen, for each method alike, on a text that no score reads.

    tune:
      train.lr: [1e-4, 4e-4, 1.6e-3]
      on: {text: testbed, cut: packed, skip: 60}     # windows that no score of the grid reads
      metric: kl                                     # or nll
      budget: 3                                      # the most trials for one row
    early: halving                                 # the worse half of them ends early

For each method at each point of `vary`, every combination of the values is a trial at the grid's
first seed. Trials are cells like others, so that they are shared, resumed and run on a cluster;
once they have ended, the cells of the combination that was chosen are part of the plan, whose
models at the first seed are there already. Not here: reading trials' scores (`harness.run.trials`).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeAlias, TypeVar

from harness.config.document import Document
from harness.config.settings import configure, list_settings
from harness.core.errors import BitgridError
from harness.core.halting import stop_early
from harness.core.records import ALL_FAILED, WAITS, Tuning
from harness.core.stage import Stage, closure
from harness.data.fill import DataSetRead
from harness.data.hub import digest_of
from harness.data.sources import Documents, texts
from harness.evaluation.divergence import Divergence
from harness.evaluation.perplexity import Perplexity, Protocol
from harness.evaluation.scores import Scores
from harness.grid.points import Point
from harness.grid.schema import Tune
from harness.method import Method
from harness.models import Model, Pretrained

T = TypeVar("T")
_WHOLE = Fraction(1)
Look: TypeAlias = Callable[[Stage[Scores]], float | None]
"""The score of a trial, lower is better: None before it has ended, infinite where it failed."""


@dataclass(frozen=True)
class Trial:
    """One combination of the values that are tried: the model that it makes, and its score."""

    point: Point
    model: Stage[Model]
    score: Stage[Scores]
    share: Fraction = _WHOLE  # of the steps, after which it ends


@dataclass(frozen=True)
class Tuned:
    """What is known of one method at one point of `vary`."""

    trials: tuple[Trial, ...]  # none where there is nothing to choose; each part of one is one
    chosen: Mapping[str, Any] | None  # settings; None while trials are to come, or all have failed
    tuning: Tuning | None = None  # None: the method has none of the settings, or nothing is chosen
    awaits: str = ""  # why nothing is chosen
    open: tuple[Trial, ...] = ()  # those whose scores are awaited


def list_groups(points: Sequence[Point]) -> list[list[Point]]:
    """Points that differ in seeds and in what is tried alone, in the grid's order."""
    groups: dict[tuple[str, str, str], list[Point]] = {}
    for point in points:
        place = (str(point.contender.where), point.source, json.dumps(point.axes, default=str))
        groups.setdefault(place, []).append(point)
    return list(groups.values())


def choose(
    document: Document,
    tune: Tune,
    points: Sequence[Point],
    base: Pretrained,
    build: Callable[[Point], Stage[Model]],
    look: Look,
) -> Tuned:
    """The settings of a group of points of one seed: those of the trial with the least score.

    Of trials that score the same, the first of the grid. Raises GridError where the text cannot be
    read, or is read by the method itself.
    """
    made: dict[str, tuple[Point, Stage[Model]]] = {}
    for point in points:
        model = build(point)
        made.setdefault(model.key, (point, model))
    distinct = list(made.values())
    if len(distinct) == 1:
        ((point, model),) = distinct
        return Tuned((), point.tried, _describe_own(tune, point, model, build))
    tried = _spread(distinct, tune.budget)
    whole = [_make_trial(document, tune, point, base, model) for point, model in tried]
    rungs = _run_rungs(tune, whole, look)
    if rungs.awaits:
        return Tuned(rungs.trials, None, awaits=rungs.awaits, open=rungs.open)
    ends = list(rungs.ends.values())
    best = min(rungs.open, key=lambda trial: rungs.ends[trial.point.method][1])
    winner, score = best.point, rungs.ends[best.point.method][1]
    values = {
        path: list(dict.fromkeys(t.point.tried[path] for t in whole))
        for path in tune.axes
        if path in winner.tried
    }
    tuning = Tuning(
        chosen=winner.tried,
        tried=values,
        trials=len(whole),
        parts=rungs.parts,
        combinations=len(distinct),
        failed=sum(score == math.inf for _, score in ends),
        score=score,
        on=describe(tune),
        at_end=[p for p, each in values.items() if _is_at_end(winner.tried[p], each)],
        models=[trial.model.key for trial, _ in ends],
    )
    return Tuned(rungs.trials, winner.tried, tuning)


@dataclass(frozen=True)
class _Rungs:
    """How far the trials of a group went. `open`: of the last part those that were in it; `ends`:
    of each method the furthest part that it was in, with its score."""

    trials: tuple[Trial, ...]
    open: tuple[Trial, ...]
    ends: Mapping[Method, tuple[Trial, float]]
    parts: dict[str, int]
    awaits: str = ""


def _run_rungs(tune: Tune, whole: Sequence[Trial], look: Look) -> _Rungs:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): in each part the better
    half of those before, as far as they have ended; the last two are whole. Of trials that score
    the same, the first. Without `early`, and where nothing has steps, all are whole."""
    parts = count_parts(len(whole)) if tune.early else 1
    standing, trials, ends = list(whole), list[Trial](), dict[Method, tuple[Trial, float]]()
    counts: dict[str, int] = {}
    for part in reversed(range(parts)):
        rung = [_end_after(trial, Fraction(1, 2**part)) for trial in standing]
        if part and rung[0].model.key == standing[0].model.key:
            continue  # nothing has steps
        trials += rung
        scores = [look(trial.score) for trial in rung]
        if None in scores:
            return _Rungs(tuple(trials), tuple(rung), {}, {}, WAITS)
        if min(map(_read, scores)) == math.inf:
            return _Rungs(tuple(trials), tuple(rung), {}, {}, ALL_FAILED)
        ends |= {t.point.method: (t, _read(s)) for t, s in zip(rung, scores, strict=True)}
        counts[str(Fraction(1, 2**part))] = len(rung)
        going = sorted(
            (each for each in standing if ends[each.point.method][1] < math.inf),
            key=lambda each: ends[each.point.method][1],
        )[: math.ceil(len(standing) / 2)]
        standing = [each for each in standing if each in going]
    return _Rungs(tuple(trials), tuple(rung), ends, counts if len(counts) > 1 else {})


def count_parts(trials: int) -> int:
    """Parts of a training for so many trials, each twice the one before; 1: all are whole."""
    return max(1, (trials - 1).bit_length())


def _read(score: float | None) -> float:
    return math.inf if score is None else score


def _end_after(trial: Trial, share: Fraction) -> Trial:
    if share == 1:
        return trial
    model, score = stop_early(trial.model, float(share)), stop_early(trial.score, float(share))
    return replace(trial, model=model, score=score, share=share)


def describe(tune: Tune) -> str:
    """How a setting is chosen, in words."""
    on = tune.on
    skipped = f" after the first {on.skip}" if on.skip else ""
    return f"{tune.metric} on {on.text} ({on.split}), {on.limit} windows of {on.window}{skipped}"


def check_apart(document: Document, tune: Tune, scores: Sequence[Stage[Scores]]) -> None:
    """Raise GridError where a score of the grid reads the windows on which settings are chosen."""
    own = _read_text(document, tune)
    for stage in scores:
        if not isinstance(stage, Perplexity | Divergence) or not _overlaps(stage.documents, own):
            continue
        windows = math.inf if stage.limit is None else stage.skip + stage.limit
        if stage.protocol.cut == "first":
            windows = min(windows, 256)
        read = windows * stage.protocol.window
        if (
            read == math.inf
            or stage.protocol.cut == "random"
            or not _is_same(stage.documents, own)  # in another order, so that no window is apart
        ):
            why = f"{stage.task!r} may read any of {tune.on.text!r} ({tune.on.split})"
            raise document.error(("tune", "on"), f"tune.on: {why}; choose another text or split")
        if stage.protocol.cut not in (tune.on.cut, "first"):
            cut = stage.protocol.cut
            message = f"tune.on.cut: {tune.on.cut!r} should be {cut!r}, as {stage.task!r} cuts it"
            raise document.error(("tune", "on"), message)
        least = math.ceil(read / tune.on.window)
        if tune.on.skip < least:
            message = f"tune.on.skip: {tune.on.skip} should be at least {least}: {stage.task!r} "
            raise document.error(("tune", "on"), f"{message}scores the windows before")


def _make_trial(
    document: Document, tune: Tune, point: Point, base: Pretrained, model: Stage[Model]
) -> Trial:
    documents = _read_text(document, tune)
    for stage in closure([model]):
        if _overlaps(stage, documents):
            raise document.error(
                ("tune", "on"),
                f"tune.on: {point.contender.label} itself reads {tune.on.text!r} "
                f"({tune.on.split}); choose another text or split",
            )
    context = base.context()
    if context is not None and tune.on.window > context:
        message = f"tune.on.window: {tune.on.window}, but the context is {context}"
        raise document.error(("tune", "on"), message)
    words = {"joined": "documents joined by blank lines", "packed": "documents end to end"}
    protocol = Protocol(tune.on.text, tune.on.window, tune.on.cut, words[tune.on.cut])
    read: dict[str, Any] = {
        "documents": documents,
        "task": "tuning",
        "protocol": protocol,
        "bos": tune.on.cut == "packed" and base.tokenizer().bos_token_id is not None,
        "limit": tune.on.limit,
        "caveat": base.caveat,
        "skip": tune.on.skip,
    }
    nll = tune.metric == "nll"
    return Trial(
        point, model, Perplexity(model, **read) if nll else Divergence(model, base, **read)
    )


def _read_text(document: Document, tune: Tune) -> Documents:
    try:
        return texts(tune.on.text, tune.on.split)
    except BitgridError as error:
        raise document.error(("tune", "on"), f"tune.on: {error}") from None


def _is_same(stage: object, documents: Documents) -> bool:
    """Whether a stage reads these documents, in this order, be it by another name."""
    if not isinstance(stage, Documents) or stage.digest != documents.digest:
        return False
    files = stage.reads()
    named = (stage.source, stage.split) == (documents.source, documents.split)
    return named or (bool(files) and files == documents.reads())


def _overlaps(stage: object, documents: Documents) -> bool:
    """Whether a stage may read some of these documents: parts of a text are not known to be apart
    where they have one digest, unless they are two splits of a data set."""
    if _is_same(stage, documents):
        return True
    if not isinstance(stage, Documents) or stage.digest != documents.digest:
        return False
    texts = {each.source.partition(":")[0] for each in (stage, documents)}
    return len(texts) == 1 and stage.split == documents.split and not _are_splits(stage, documents)


def _are_splits(one: Documents, other: Documents) -> bool:
    """Whether two texts are two splits of a data set. Its commit is the digest of both; where their
    files are at hand, these must differ too."""
    names: list[str] = []
    contents: list[str] = []
    for documents in (one, other):
        for read in documents.reads():
            if not isinstance(read, DataSetRead):
                return False
            names.append(read.split.split)
            file = read.access.find(read.split)
            contents += [digest_of(file)] if file is not None else []
    return len(set(names)) == 2 and len(set(contents)) == len(contents)


def _spread(points: Sequence[T], budget: int | None) -> list[T]:
    """At most `budget` of them, drawn the same for every method."""
    if budget is None or len(points) <= budget:
        return list(points)
    drawn = sorted(random.Random(0).sample(range(len(points)), budget))
    return [points[number] for number in drawn]


def _is_at_end(chosen: Any, values: Sequence[Any]) -> bool:
    """Whether a number is the least or the largest that was tried: a better one may lie beyond."""
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
    return numbers and len(values) > 1 and chosen in (min(values), max(values))


def _describe_own(
    tune: Tune, point: Point, model: Stage[Model], build: Callable[[Point], Stage[Model]]
) -> Tuning | None:
    """That a method has settings which others are tuned in, and keeps its own; None where none of
    them changes its model."""
    held = dict(list_settings(point.method))
    own = {}
    for path, values in tune.axes.items():
        for each in values if path in held else ():
            try:
                other = build(replace(point, method=configure(point.method, {path: each})))
            except BitgridError:
                continue
            if other.key != model.key:
                own[path] = held[path]
    return Tuning(chosen=own, on=describe(tune)) if own else None
