"""What the engine exported, read and checked: `grid.json` and the `.jsonl` files beside it.

Everything that can be wrong with a file is said here, in one line with file and line number; what
comes after may trust its input. Not here: choosing, averaging and sorting (`summary`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness.core.errors import ReportError, nearest

SCHEMA = 1


@dataclass(frozen=True)
class Field:
    """One column: the JSON types that it takes, its pandas type, and what it means."""

    kinds: tuple[type, ...]
    dtype: str
    words: str
    nullable: bool = False


_NUMBER = (int, float)

FIELDS: dict[str, Field] = {
    "grid": Field((str,), "str", "name of the grid"),
    "cell": Field((str,), "str", "id of the cell: one method with one setting and one seed"),
    "method": Field((str,), "str", "registered name of the method"),
    "label": Field((str,), "str", "the method's name as tables show it"),
    "axes": Field((dict,), "object", "dict of the cell's varied settings, dotted path -> value"),
    "seed": Field((int,), "Int64", "seed of the cell", nullable=True),
    "model": Field((str,), "str", "the full-precision model that was quantised"),
    "bits": Field(_NUMBER, "float64", "nominal bits of a weight; 16 for the reference"),
    "format": Field((str,), "str", "number format of the weights", nullable=True),
    "group_size": Field((int,), "Int64", "weights that share a scale", nullable=True),
    "bits_per_weight": Field(_NUMBER, "float64", "bits with scales and zero points", nullable=True),
    "task": Field((str,), "str", "task, or perplexity protocol"),
    "metric": Field((str,), "str", "acc, exact_match, pass@1, ppl …"),
    "primary": Field((bool,), "bool", "the metric that stands for its task in the table"),
    "value": Field(_NUMBER, "float64", "fraction for scores, raw for perplexity", nullable=True),
    "stderr": Field(_NUMBER, "float64", "standard error over the task's items", nullable=True),
    "n": Field((int,), "Int64", "number of items", nullable=True),
    "higher_is_better": Field((bool,), "bool", "false for perplexity"),
    "num_fewshot": Field((int,), "Int64", "examples in the prompt", nullable=True),
    "bos": Field((bool,), "boolean", "whether a prompt began with BOS", nullable=True),
    "chat_template": Field((bool,), "boolean", "whether prompts were in one", nullable=True),
    "limit": Field((int,), "Int64", "items asked for when not all were used", nullable=True),
    "protocol": Field((str,), "str", "how it was measured, in words", nullable=True),
    "window": Field((int,), "Int64", "tokens of a perplexity's windows", nullable=True),
    "tokenizer": Field((str,), "str", "of a perplexity: size, digest of it", nullable=True),
    "task_version": Field((str,), "str", "version of the task", nullable=True),
    "lm_eval": Field((str,), "str", "version of lm-eval, where it was used", nullable=True),
    "testbed": Field((bool,), "bool", "the embedded miniature world; says nothing of a real LLM"),
    "key": Field((str,), "str", "key of the evaluation stage"),
    "model_key": Field((str,), "str", "key of the quantised model; equal keys are one model"),
    "stale": Field((str,), "str", "why the result is out of date, if it is", nullable=True),
}
"""The columns of `load`, in order, beside `axes.<path>` for each axis and `line` in the file."""

CURVE_FIELDS: dict[str, Field] = {
    "cell": FIELDS["cell"],
    "label": FIELDS["label"],
    "axes": FIELDS["axes"],
    "seed": FIELDS["seed"],
    "bits": FIELDS["bits"],
    "step": Field((int,), "int64", "optimiser step, from 1"),
    "tokens": Field(_NUMBER, "float64", "tokens trained on so far", nullable=True),
    "loss": Field(_NUMBER, "float64", "training loss of the step", nullable=True),
    "grad_norm": Field(_NUMBER, "float64", "norm of the gradient", nullable=True),
    "lr": Field(_NUMBER, "float64", "learning rate", nullable=True),
    "seconds": Field(
        _NUMBER, "float64", "of training so far, steps done again counted once", nullable=True
    ),
}

_STAGE_FIELDS = {
    "key": FIELDS["key"],
    "stage": Field((dict,), "object", "class, version and fields; inputs by key"),
    "commit": Field((str,), "str", "of the code, with + where the tree differed", nullable=True),
    "packages": Field((dict,), "object", "versions by name", nullable=True),
    "wall_s": Field(_NUMBER, "float64", "seconds", nullable=True),
}

DIAGNOSTIC_FIELDS: dict[str, Field] = {
    "cell": FIELDS["cell"],
    "label": FIELDS["label"],
    "axes": FIELDS["axes"],
    "seed": FIELDS["seed"],
    "bits": FIELDS["bits"],
    "key": Field((str,), "str", "key of the diagnostic's stage; equal keys are one step"),
    "diagnostic": Field((str,), "str", "what was looked at: weights, confidence"),
    "step": Field((str,), "str", "of the method, in its order; the last is its result"),
}
_ERROR_FIELDS = {
    "block": Field((int,), "int64", "of the layer, from 0"),
    "projection": Field((str,), "str", "name of the layer in its block"),
    "error": Field(_NUMBER, "float64", "of the weights, relative, against where they came from"),
}
_HISTOGRAM_FIELDS = {
    "layer": Field((str,), "str", "name of the layer"),
    "low": Field(_NUMBER, "float64", "where the first bin begins"),
    "high": Field(_NUMBER, "float64", "where the last bin ends"),
    "counts": Field((list,), "object", "weights a bin"),
    "levels": Field((list,), "object", "what groups are rounded to"),
}
_LEVEL_FIELDS = {
    "share": Field(_NUMBER, "float64", "of the groups that have the level"),
    "quartiles": Field((list,), "object", "of the level over those groups"),
}
_DIAGNOSTICS: dict[str, dict[str, Field]] = {
    "weights": {
        "errors": Field((list,), "object", "relative error of each layer"),
        "histogram": Field((dict,), "object", "counts of one layer's weights, and its levels"),
    },
    "confidence": {
        "objective": Field((str,), "str", "name of the loss"),
        "tokens": Field((list,), "object", "labels by the teacher's probability of them"),
        "loss": Field((list,), "object", "their part of the mean loss"),
        "unbounded": Field((int,), "int64", "labels left out: their loss is not finite"),
    },
}

PROTOCOL = [
    *("num_fewshot", "bos", "chat_template", "limit", "n", "protocol", "tokenizer"),
    *("task_version", "lm_eval"),
]
"""Fields in which two numbers of one task may differ so that they are not comparable."""


CHOICES = {"aggregate": ("mean", "median"), "spread": ("sd", "interval")}


Stages = dict[str, dict[str, Any]]
"""Stage key -> its line of provenance.jsonl."""


@dataclass(frozen=True)
class Spec:
    """The grid's `report:` section."""

    rows: tuple[str, ...] = ("label",)
    over: str | None = "seed"
    columns: tuple[str, ...] | None = None  # tasks, "average", "device_hours"; None: all scores
    average: tuple[str, ...] | None = None  # of which tasks; empty: there is none
    aggregate: str = "mean"  # over models: or "median"
    spread: str = "sd"  # what ± is: or "interval", half of Student's 95 % interval
    decimals: dict[str, int] = field(default_factory=dict)  # by task; "" of all
    effect: str | None = None
    caption: str | None = None
    note: str | None = None
    title: str | None = None


@dataclass(frozen=True)
class Grid:
    """`grid.json`: what was asked, and what is not finished."""

    name: str
    question: str
    model: str
    testbed: bool
    spec: Spec
    cells: int
    holes: tuple[dict[str, Any], ...]
    published: tuple[dict[str, str], ...] = ()  # lines of harness/published/*.csv
    published_model: str | None = None  # of them, the one that the grid says is its own
    stands_for: dict[str, dict[str, str]] = field(default_factory=dict)  # task -> theirs, and why
    tolerance: dict[str, float] = field(default_factory=dict)  # by task or metric; "" of all
    file: str | None = None  # the YAML, as a command names it


def load(folder: Path) -> pd.DataFrame:
    """One row a (cell, task, metric), in the file's order; see `FIELDS`."""
    path = folder / "rows.jsonl"
    if not path.exists():
        raise ReportError(f"{path} is missing: nothing of this grid was exported yet")
    records = list(_records(path, FIELDS, needs_schema=True))
    frame = _frame(records, FIELDS)
    frame["line"] = pd.Series([line for line, _ in records], dtype="int64")
    _check_directions(path, frame)
    frame = _drop_repeats(path, frame)
    for axis in dict.fromkeys(name for axes in frame["axes"] for name in axes):
        frame[f"axes.{axis}"] = pd.Series(
            [axes.get(axis) for axes in frame["axes"]], index=frame.index, dtype="object"
        )
    return frame


def load_curves(folder: Path) -> pd.DataFrame:
    """One row a (trained model, step), see `CURVE_FIELDS`; empty where nothing was trained."""
    path = folder / "curves.jsonl"
    records = list(_records(path, CURVE_FIELDS, needs_schema=False)) if path.exists() else []
    return _frame(records, CURVE_FIELDS)


def load_diagnostics(folder: Path) -> list[dict[str, Any]]:
    """The lines of diagnostics.jsonl, see `DIAGNOSTIC_FIELDS`; none where nothing was asked for."""
    path = folder / "diagnostics.jsonl"
    if not path.exists():
        return []
    found = []
    for number, record in _records(path, DIAGNOSTIC_FIELDS, needs_schema=True):
        where, kind = f"{path}:{number}", record["diagnostic"]
        _check_fields(where, record, _DIAGNOSTICS.get(kind, {}))
        if kind == "weights":
            for each in record["errors"]:
                _check_fields(f"{where}: errors", each, _ERROR_FIELDS)
            _check_fields(f"{where}: histogram", record["histogram"], _HISTOGRAM_FIELDS)
            for each in record["histogram"]["levels"]:
                _check_fields(f"{where}: levels", each, _LEVEL_FIELDS)
        found.append(record)
    return found


def load_grid(folder: Path) -> Grid:
    path = folder / "grid.json"
    if not path.exists():
        raise ReportError(f"{path} is missing: {folder} is not an exported grid")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path}: not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise ReportError(f"{path}: expected an object, found {type(raw).__name__}")
    _check_schema(str(path), raw)
    try:
        return Grid(
            name=str(raw["name"]),
            question=str(raw.get("question") or ""),
            model=str(raw["model"]),
            testbed=bool(raw.get("testbed", False)),
            spec=_spec(path, raw.get("report") or {}),
            cells=int(raw["cells"]),
            holes=tuple(raw.get("holes") or ()),
            published=tuple(raw.get("published") or ()),
            published_model=raw.get("published_model"),
            stands_for=raw.get("published_tasks") or {},
            tolerance=_by_name(raw.get("tolerance")),
            file=None if raw.get("file") is None else str(raw["file"]),
        )
    except KeyError as error:
        raise ReportError(f"{path}: field {error.args[0]!r} is missing") from error


def load_provenance(folder: Path) -> Stages:
    """Stage key -> its line of provenance.jsonl; empty where the export has no such file."""
    path = folder / "provenance.jsonl"
    if not path.exists():
        return {}
    return {line["key"]: line for _, line in _records(path, _STAGE_FIELDS, needs_schema=True)}


def inputs(stage: object) -> Iterator[str]:
    """Keys of the stages that a described stage names among its fields, in their order."""
    if isinstance(stage, dict):
        if set(stage) == {"stage"} and isinstance(stage["stage"], str):
            yield stage["stage"]
            return
        for part in stage.values():
            yield from inputs(part)
    elif isinstance(stage, list):
        for part in stage:
            yield from inputs(part)


def _spec(path: Path, raw: dict[str, Any]) -> Spec:
    known = list(Spec.__dataclass_fields__)
    for key in raw:
        if key not in known:
            raise ReportError(f"{path}: report has no setting {key!r}; {nearest(key, known)}")
    names: dict[str, tuple[str, ...]] = {}
    for key in ("rows", "columns", "average"):
        value = raw.get(key) or []
        if not isinstance(value, str | list):
            raise ReportError(f"{path}: report.{key} is a name or a list of names, not {value!r}")
        names[key] = (value,) if isinstance(value, str) else tuple(value)
    for key, choices in CHOICES.items():
        if raw.get(key) is not None and raw[key] not in choices:
            words = nearest(raw[key], choices)
            raise ReportError(f"{path}: report.{key}: there is no {raw[key]!r}; {words}")
    return Spec(
        rows=names["rows"] or ("label",),
        over=raw.get("over", "seed"),
        columns=names["columns"] or None,
        average=None if raw.get("average") is None else names["average"],  # []: no average
        aggregate=raw.get("aggregate") or "mean",
        spread=raw.get("spread") or "sd",
        decimals=_decimals(path, raw.get("decimals")),
        effect=raw.get("effect"),
        caption=raw.get("caption"),
        note=raw.get("note"),
        title=raw.get("title"),
    )


def _by_name(given: Any) -> dict[str, Any]:
    """`2`, of all, or `{piqa: 1, average: 2}`."""
    return {} if given is None else given if isinstance(given, dict) else {"": given}


def _decimals(path: Path, given: Any) -> dict[str, int]:
    found = _by_name(given)
    for value in found.values():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 9:
            raise ReportError(f"{path}: report.decimals: {value!r} is no number from 0 to 9")
    return found


def _records(
    path: Path, fields: dict[str, Field], needs_schema: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ReportError(f"{where}: not JSON ({error})") from error
            if needs_schema or "schema" in _object(where, record):
                _check_schema(where, record)
            _check_fields(where, record, fields)
            yield number, record


def _object(where: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ReportError(f"{where}: expected an object, found {type(record).__name__}")
    return record


def _check_schema(where: str, record: Any) -> None:
    found = _object(where, record).get("schema")
    if found != SCHEMA:
        raise ReportError(
            f"{where}: schema version {found!r}, expected {SCHEMA}; "
            "export the grid again with this version of the code"
        )


def _check_fields(where: str, record: Any, fields: dict[str, Field]) -> None:
    for name, known in fields.items():
        value = _object(where, record).get(name)
        if value is None:
            if not known.nullable:
                raise ReportError(f"{where}: field {name!r} is missing")
        elif not isinstance(value, known.kinds) or (
            isinstance(value, bool) and bool not in known.kinds
        ):
            kinds = " or ".join(kind.__name__ for kind in known.kinds)
            raise ReportError(f"{where}: field {name!r} should be {kinds}, found {value!r}")


def _frame(records: list[tuple[int, dict[str, Any]]], fields: dict[str, Field]) -> pd.DataFrame:
    columns = {}
    for name, known in fields.items():
        values = [record.get(name) for _, record in records]
        if known.dtype == "float64":
            values = [math.nan if value is None else float(value) for value in values]
        columns[name] = pd.Series(values, dtype=known.dtype)
    return pd.DataFrame(columns)


def _check_directions(path: Path, frame: pd.DataFrame) -> None:
    directions = frame.groupby(["task", "metric"])["higher_is_better"].nunique()
    for task, metric in directions[directions > 1].index:
        raise ReportError(f"{path}: {task} {metric} is better higher in one row, lower in another")


def _drop_repeats(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """Rows given twice count once; two rows of one cell and metric that disagree are an error."""
    identity = ["cell", "task", "metric"]
    told = ["value", *PROTOCOL, "model_key"]
    for (cell, task, metric), same in frame[frame.duplicated(identity, keep=False)].groupby(
        identity, sort=False
    ):
        for name in told:
            if same[name].nunique(dropna=False) > 1:
                raise ReportError(
                    f"{path}: cell {cell} has {task} {metric} twice with a different {name}: "
                    + ", ".join(
                        f"{value} (line {line})"
                        for value, line in zip(same[name], same["line"], strict=True)
                    )
                )
    return frame.drop_duplicates(identity).reset_index(drop=True)
