"""What lm-eval says of a task, as rows and the items behind them.

Which metric stands for a task, what guessing scores, the mean of a group, what was cut, and how a
value follows from its items. Not here: running a task (`lm_eval_run`), the stage (`lm_eval`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from harness.core.records import NO_FILTER, ItemScores, Score

# The metric that stands for its task, as the papers have it; the others are rows too.
PRIMARY = (
    "acc",
    "exact_match,flexible-extract",
    "exact_match",
    "pass@1",
    "pass_at_1",
    "word_perplexity",
)


def add_chance(row: Score, results: Mapping[str, Any], full_names: Mapping[str, str]) -> Score:
    """With what guessing scores: of choices one in their number, mean over items."""
    name = next(name for name, shown in full_names.items() if shown == row.task)
    output = results["configs"].get(name, {}).get("output_type")
    if row.metric not in ("acc", "acc_norm") or output != "multiple_choice":
        return row
    if any(metric.startswith("acc_mutual_info") for metric in results["results"][name]):
        return row  # each choice is scored twice
    samples = [each for each in results["samples"][name] if each["filter"] == row.filter]
    if not samples or any(isinstance(each["target"], list) for each in samples):
        return row  # several are right
    chances = [1 / len(each["filtered_resps"]) for each in samples]
    return replace(row, chance=sum(chances) / len(chances))


def choose_primary(metrics: set[str]) -> str:
    for preferred in PRIMARY:
        for metric in sorted(metrics):
            if metric == preferred or metric.startswith(f"{preferred},"):
                return metric
    return min(metrics)


def add_means(group: str, rows: list[Score]) -> list[Score]:
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
    primary = choose_primary({_name_fully(*metric) for metric in shared})
    means = [average_tasks(group, same) for same in shared.values()]
    means = [replace(m, primary=_name_fully(m.metric, m.filter) == primary) for m in means]
    members = [
        replace(row, primary=False, group=group if (row.metric, row.filter) in shared else None)
        for row in rows
    ]
    return [*means, *members]


def average_tasks(task: str, rows: list[Score]) -> Score:
    """A group's row: the unweighted mean over its tasks, as MMLU is published."""
    errors = [row.stderr for row in rows if row.stderr is not None]
    chances = [row.chance for row in rows if row.chance is not None]
    return replace(
        rows[0],
        task=task,
        value=math.fsum(math.nan if row.value is None else row.value for row in rows) / len(rows),
        stderr=math.sqrt(math.fsum(e * e for e in errors)) / len(rows) if errors else None,
        n=sum(row.n or 0 for row in rows),
        aggregation="macro_mean",
        chance=math.fsum(chances) / len(rows) if len(chances) == len(rows) else None,
        protocol=f"lm-eval; macro mean over {len(rows)} tasks",
    )


def _name_fully(metric: str, filter: str) -> str:
    """`exact_match,strict-match`, as lm-eval has it; without a filter the metric alone."""
    return metric if filter == NO_FILTER else f"{metric},{filter}"


def add_cuts(row: Score, cut: Mapping[str, int]) -> Score:
    """The row, saying how many prompts were cut; of a group's, over all its tasks."""
    count = cut[row.task] if row.task in cut else sum(cut.values())
    told = f"; {count} prompts cut to fit the context" if count else ""
    return replace(row, protocol=f"{row.protocol}{told}")


def read_scores(samples: Iterable[Mapping[str, Any]], row: Score) -> Iterator[tuple[int, float]]:
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


def add_aggregation(row: Score, items: ItemScores) -> Score:
    """The row, saying that its value is the mean of its items, where it is.

    lm-eval aggregates some metrics otherwise (F1, BLEU), and does not tell which.
    """
    if row.value is None or not items.scores:
        return row
    mean = math.fsum(items.scores) / len(items.scores)
    is_mean = math.isclose(mean, row.value, rel_tol=1e-9, abs_tol=1e-12)
    return replace(row, aggregation="mean") if is_mean else row
