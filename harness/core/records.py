"""The records that runs write and reports read: one definition for the lines of each file.

    grid.json          GridHead      what was asked, and which cells lack scores
    rows.jsonl         Row           one line a cell, task, metric and filter
    items.jsonl.gz     RowItems      one line a row: the scores of its items
    curves.jsonl       CurvePoint    one line a training step of each trained model
    diagnostics.jsonl  Diagnostic    one line a cell, diagnostic and step of its method
    provenance.jsonl   StageRecord   one line a stage behind the rows

Each line is a JSON object: the fields of its record, and `schema`, the version of these
definitions. A field's type is what JSON may hold there, its text what it means; both are read by
`reports`, which checks every line against them. A field without a default must be there, `null`
where its type allows it; a field that is added later has a default, so that older lines can be
read.

An item is joined with its row by `ITEM_KEY`. Who evaluates fills `Score`, `Precision` and
`ItemScores`; `harness.run.export` knows the cell and makes `Row` and `RowItems` of them.

Not here: records as lines and back (`record_lines`), reading and writing files
(`harness.run.export`, `reports.reading`), and anything that needs torch or pandas.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, get_type_hints

from harness.core.lineage import name_kind
from harness.core.report_options import ReportOptions

SCHEMA = 2
ITEM_KEY = ("key", "task", "metric", "filter")
"""The fields that an item and its row share, and that no two rows share."""

NO_FILTER = "none"
TRIALS = "trials"
"""The folder, beside the rows of a grid that tunes, of the rows of its trials."""
AVERAGE, DEVICE_HOURS = "average", "device_hours"
COLUMNS = (AVERAGE, DEVICE_HOURS)
"""What a table can show beside tasks, by the names that `report.columns` takes."""

Aggregation = Literal["mean", "exp_mean", "macro_mean"]
Drawn = Literal["all", "order", "data", "calibration"]
Setting = Any  # of a grid: JSON


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Which cell of the grid a line is about."""

    cell: Annotated[str, "id of the cell: one method with one setting and one seed"]
    label: Annotated[str, "the method's name as tables show it"]
    settings: Annotated[dict[str, Setting], "the cell's varied settings, dotted path -> value"]
    seed: Annotated[int | None, "seed of the cell"]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What the weights of an evaluated model were rounded to, and what it does while it runs."""

    format: Annotated[str | None, "number format of the weights; `none` for the reference"]
    bits: Annotated[
        float, "nominal bits of a weight, their mean where layers differ; 16 for the reference"
    ]
    group_size: Annotated[
        int | None,
        "weights that share a scale; 0: a whole row of the matrix (per channel); null: none do, as "
        "in a 16-bit model; where layers differ, the largest",
    ]
    bits_per_weight: Annotated[
        float | None,
        "bits with scales and zero points, over all weights of the blocks, those that were kept "
        "too; of the reference as it was published",
    ]
    dtype: Annotated[str | None, "type that the model was computed in"]
    rounded: Annotated[
        float | None, "share of the weights of the blocks that was rounded; null: none, or unknown"
    ] = None
    kept: Annotated[str | None, "the weights of the blocks that were not rounded, by kind"] = None
    ends: Annotated[
        str | None,
        "embeddings and head that were rounded too, with their bits, which `bits_per_weight` does "
        "not count; null: they were not",
    ] = None
    size_bytes: Annotated[
        int | None,
        "what all parameters take: weights as `bits_per_weight` counts them, embeddings and head "
        "too where they were rounded, all else as it is held in `dtype`, tied ones once; null: not "
        "recorded, or published in fewer bits than it is held in",
    ] = None
    attachments: Annotated[
        str | None,
        "what the model does while it runs, in order: `A8KV4` rounds activations to 8 bits and its "
        "cache to 4; null: nothing beside what its weights say",
    ] = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """One value of one model, and how it was measured."""

    task: Annotated[str, "task, or perplexity protocol"]
    metric: Annotated[str, "acc, exact_match, pass@1, ppl …"]
    filter: Annotated[str, "lm-eval's filter that read the answer from the text; `none` without"]
    group: Annotated[str | None, "group of tasks whose value is the mean over this row and others"]
    primary: Annotated[bool, "the metric that stands for its task in the table"]
    value: Annotated[float | None, "fraction for scores, raw for perplexity; null: not a number"]
    stderr: Annotated[float | None, "standard error over the task's items, in the value's unit"]
    n: Annotated[int | None, "number of items"]
    higher_is_better: Annotated[bool, "false for perplexity"]
    aggregation: Annotated[
        Aggregation | None,
        "how the value follows from the items: `mean`; `exp_mean`: exp of their mean; "
        "`macro_mean`: the unweighted mean of the rows of which it is the group; null: otherwise",
    ]
    num_fewshot: Annotated[int | None, "examples in the prompt"]
    bos: Annotated[bool | None, "whether a prompt began with BOS"]
    chat_template: Annotated[bool | None, "whether prompts were in one; null: no prompts"]
    limit: Annotated[int | None, "items asked for when not all were used"]
    protocol: Annotated[str | None, "how it was measured, in words"]
    window: Annotated[int | None, "tokens of a perplexity's windows"]
    tokenizer: Annotated[str | None, "of a perplexity: size of the vocabulary, digest of it"]
    task_version: Annotated[str | None, "version of the task"]
    lm_eval: Annotated[str | None, "version of lm-eval, where it was used"]
    caveat: Annotated[str | None, "what whoever sees the value must know of its task or model"]
    chance: Annotated[
        float | None, "what guessing scores, in the value's unit; null: nothing to guess from"
    ] = None


PROTOCOL = (
    *("num_fewshot", "bos", "chat_template", "limit", "n", "protocol", "tokenizer"),
    *("task_version", "lm_eval"),
)
"""Fields in which two values of one task may differ so that they are not comparable."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How settings of a cell were chosen among several, on a text that no score reads."""

    chosen: Annotated[dict[str, Setting], "the settings, dotted path -> value"]
    on: Annotated[str, "by what, in words"]
    tried: Annotated[dict[str, list[Setting]], "the values of each that were tried"] = field(
        default_factory=dict
    )
    trials: Annotated[int, "models that were made to choose; 0: its own settings were kept"] = 0
    parts: Annotated[dict[str, int], "share of the steps -> trials that went so far; {}: whole"] = (
        field(default_factory=dict)
    )
    combinations: Annotated[int, "of the values, of which a budget may leave some untried"] = 0
    failed: Annotated[int, "trials that failed"] = 0
    score: Annotated[float | None, "of the chosen one: perplexity or divergence"] = None
    at_end: Annotated[
        list[str], "settings whose least or largest value was chosen: a better one may lie beyond"
    ] = field(default_factory=list)
    models: Annotated[list[str], "keys of the trials' models"] = field(default_factory=list)
    tokens: Annotated[float | None, "that the trials trained on; null: unknown"] = None
    device_hours: Annotated[float | None, "of making the trials' models; null: unknown"] = None


@dataclass(frozen=True, kw_only=True)
class Match:
    """The training budget of a cell, in a grid that gives all methods the same. Tokens are
    positions, sequences times their length."""

    unit: Annotated[
        Literal["tokens", "flops"],
        "tokens that are trained on or written to be trained on; or 6 FLOPs a weight and token "
        "that is trained on, 2 where it is read or written",
    ]
    budget: Annotated[float, "that every method is given"]
    spent: Annotated[float | None, "of it; null: the cell's cannot be matched"] = None
    steps: Annotated[int | None, "optimizer steps that follow"] = None
    trained: Annotated[int, "tokens that the model is trained on"] = 0
    written: Annotated[int, "tokens that a model writes for it, each counted once"] = 0
    calibration: Annotated[int, "tokens of calibration text, which no budget counts"] = 0
    why: Annotated[str | None, "why it cannot be matched"] = None


@dataclass(frozen=True, kw_only=True)
class Row(Score, Precision, Cell):
    """One line of rows.jsonl: a score of a cell."""

    grid: Annotated[str, "name of the grid"]
    method: Annotated[str, "registered name of the method"]
    model: Annotated[str, "the full-precision model that was quantised"]
    key: Annotated[str, "key of the evaluation's stage"]
    model_key: Annotated[str, "key of the quantised model; equal keys are one model"]
    stale: Annotated[str | None, "why the value is out of date, if it is"]
    text: Annotated[str | None, "what a perplexity or a divergence reads; null: unknown"] = None
    trained_on: Annotated[
        list[str] | None, "texts that the model was trained on, or continuations of; null: unknown"
    ] = None
    calibrated_on: Annotated[
        list[str] | None, "further texts that its weights were fitted to; null: unknown"
    ] = None
    tuning: Annotated[
        Tuning | None, "how its settings were chosen, where the grid tunes and the method can be"
    ] = None
    match: Annotated[Match | None, "its training budget, in a grid that matches budgets"] = None


@dataclass(frozen=True, kw_only=True)
class ItemScores:
    """The scores of the items behind one `Score`, which has the same task, metric and filter."""

    task: Annotated[str, "task; of a group of tasks, one of its members"]
    metric: Annotated[str, "metric, as in the row"]
    filter: Annotated[str, "filter, as in the row"]
    items: Annotated[list[int] | None, "numbers of the items in the task; null: 0, 1, 2 …"]
    scores: Annotated[list[float], "the items' scores; of a perplexity windows' mean NLLs, in nats"]


@dataclass(frozen=True, kw_only=True)
class RowItems(ItemScores):
    """One line of items.jsonl.gz."""

    key: Annotated[str, "key of the evaluation's stage, as in the row"]


@dataclass(frozen=True, kw_only=True)
class CurvePoint(Cell):
    """One line of curves.jsonl: a step of a training."""

    bits: Annotated[float, "nominal bits of a weight"]
    step: Annotated[int, "optimiser step, from 1"]
    tokens: Annotated[float | None, "tokens trained on so far"] = None
    loss: Annotated[float | None, "training loss of the step"] = None
    grad_norm: Annotated[float | None, "norm of the gradient"] = None
    lr: Annotated[float | None, "learning rate"] = None
    tokens_per_s: Annotated[float | None, "tokens trained on a second"] = None
    seconds: Annotated[float | None, "of training so far, steps done again counted once"] = None


@dataclass(frozen=True, kw_only=True)
class Diagnostic(Cell):
    """One line of diagnostics.jsonl; what it holds beside this depends on `diagnostic`."""

    bits: Annotated[float, "nominal bits of a weight"]
    key: Annotated[str, "key of the diagnostic's stage; equal keys are one step"]
    diagnostic: Annotated[str, "what was looked at, a name of `DIAGNOSTICS`"]
    step: Annotated[str, "step of the method, in its order; the last is its result"]


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """How far a layer's weights are from what they were, relative, in Frobenius norms."""

    layer: Annotated[str, "name of the layer"]
    block: Annotated[int, "block of the layer, from 0"]
    projection: Annotated[str, "name of the layer in its block"]
    error: Annotated[float, "|after - origin| / |origin|"]
    rounding: Annotated[float, "|after - before| / |before|"]


@dataclass(frozen=True, kw_only=True)
class Level:
    """A value that groups of weights are rounded to, over the groups."""

    place: Annotated[int, "number of the level, counted from zero"]
    share: Annotated[float, "of the groups that have the level"]
    quartiles: Annotated[list[float], "of the level over those groups"]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """The weights of one layer before they were rounded, and the levels they were rounded to."""

    layer: Annotated[str, "name of the layer"]
    low: Annotated[float, "where the first bin begins"]
    high: Annotated[float, "where the last bin ends"]
    counts: Annotated[list[int], "weights in each bin"]
    outside: Annotated[int, "weights below the first bin or above the last"]
    levels: Annotated[list[Level], "what groups are rounded to; empty: too many to be drawn"]


@dataclass(frozen=True, kw_only=True)
class Weights(Diagnostic):
    """What rounding did to the weights."""

    errors: Annotated[list[LayerError], "errors of all layers"]
    histogram: Annotated[Histogram, "one layer"]


@dataclass(frozen=True, kw_only=True)
class Confidence(Diagnostic):
    """Where the loss comes from: labels in equal bins of the teacher's probability of them."""

    objective: Annotated[str, "name of the loss"]
    tokens: Annotated[list[int], "labels in each bin"]
    loss: Annotated[list[float], "part of the mean loss that the labels of each bin have"]
    unbounded: Annotated[int, "labels left out: their loss is not finite"]


DIAGNOSTICS: dict[str, type[Diagnostic]] = {"weights": Weights, "confidence": Confidence}
"""What a line of a diagnostic holds; of a name that is not here, `Diagnostic` alone is read."""


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One line of provenance.jsonl: a stage, and how its value was computed if it was kept."""

    key: Annotated[str, "key of the stage"]
    stage: Annotated[dict[str, Any], "kind, version and fields; inputs by key"]
    code: Annotated[Any, "digest of the code"] = None
    started: Annotated[float | None, "when, in seconds since 1970"] = None
    wall_s: Annotated[float | None, "wall time, in seconds"] = None
    peak_rss_gib: Annotated[float | None, "peak memory of the host, in GiB"] = None
    peak_gpu_gib: Annotated[float | None, "peak memory of the GPU, in GiB"] = None
    commit: Annotated[str | None, "of the code, with + where the code differed from it"] = None
    packages: Annotated[dict[str, str] | None, "versions by name"] = None
    python: Annotated[str | None, "version of Python"] = None
    host: Annotated[str | None, "name of the machine"] = None
    device: Annotated[str | None, "cpu or cuda"] = None
    device_name: Annotated[str | None, "what the device is"] = None
    threads: Annotated[int | None, "threads of the process"] = None
    files: Annotated[dict[str, int] | None, "files of the value, in bytes"] = None
    more: Annotated[dict[str, Any], "facts that only some stages have"] = field(
        default_factory=dict
    )

    @property
    def name(self) -> str:
        """The stage's kind; of a record that has none, its class without the module."""
        return name_kind(self.stage)


@dataclass(frozen=True, kw_only=True)
class Hole:
    """A cell without a full set of scores."""

    cell: Annotated[str, "id of the cell"]
    label: Annotated[str, "the method's name as tables show it"]
    settings: Annotated[dict[str, Setting], "the cell's varied settings"]
    seed: Annotated[int | None, "seed of the cell"]
    reason: Annotated[str, "`not run yet`, or what failed"]

    @property
    def waits(self) -> bool:
        """Whether it was not run yet, rather than failed."""
        return self.reason in (NOT_RUN, WAITS)


NOT_RUN = "not run yet"
WAITS, ALL_FAILED = "waits for its trials", "every trial failed"  # where settings are tuned


@dataclass(frozen=True, kw_only=True)
class GridHead:
    """grid.json: what was asked, and what is not finished."""

    name: Annotated[str, "name of the grid"]
    question: Annotated[str, "the question that it answers"]
    model: Annotated[str, "the model it is about"]
    cells: Annotated[int, "how many cells it has"]
    holes: Annotated[list[Hole], "those without a full set of scores"]
    report: Annotated[ReportOptions, "what its table shows"]
    varies: Annotated[
        Drawn | None, "what differs between seeds: all that is random, or one kind; null: unknown"
    ] = None
    style: Annotated[str | None, "text of the file that `report.style` names"] = None
    file: Annotated[str | None, "the grid's file, as a command names it"] = None
    published: Annotated[list[dict[str, str]], "published figures of its model"] = field(
        default_factory=list
    )
    published_model: Annotated[str | None, "the model in them that is the grid's own"] = None
    published_tasks: Annotated[
        dict[str, dict[str, str]] | None, "measured task -> the published `task`, and `why`"
    ] = None
    tolerance: Annotated[
        float | str | dict[str, float | str] | None,
        "of a figure, in the printed unit or as a share (`2%`): one, or by name",
    ] = None

    @property
    def stands_for(self) -> dict[str, dict[str, str]]:
        """`published_tasks`, empty where there are none."""
        return self.published_tasks or {}

    @property
    def tolerances(self) -> dict[str, float | str]:
        """`tolerance` by method, task or metric; "" of all others."""
        tolerance = self.tolerance
        if tolerance is None:
            return {}
        return tolerance if isinstance(tolerance, dict) else {"": tolerance}


def documentation(kind: type) -> dict[str, str]:
    """Field of a record -> what it means."""
    hints = get_type_hints(kind, include_extras=True)
    return {each.name: hints[each.name].__metadata__[0] for each in fields(kind)}
