"""What papers print of the same model, as a table of its own below the measured one.

Nothing is subtracted: a paper's protocol and ours are each named, and a reader compares. Not here:
where the figures come from (`harness.published`, which the export has asked already).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from reports.sheet import escape_markdown

HIGHER_IS_BETTER = {"ppl": False}


def markdown(figures: Sequence[dict[str, Any]], titles: dict[str, str]) -> str:
    """One table a model: methods grouped by bits, tasks as columns, digits as printed."""
    parts = []
    for (source, model), group in groupby(figures, key=lambda row: (row["source"], row["model"])):
        rows = list(group)
        tasks = dict.fromkeys((row["task"], row["metric"]) for row in rows)
        head = ["Bits", "Method", "Group size"]
        for task, metric in tasks:
            arrow = "↑" if HIGHER_IS_BETTER.get(metric, True) else "↓"
            head.append(f"{titles.get(task, task.capitalize())} {arrow}")
        lines = [head, [":--"] * 3 + ["--:"] * len(tasks)]
        methods = dict.fromkeys((row["bits"], row["method"], row["group_size"]) for row in rows)
        cells = {(r["bits"], r["method"], r["task"], r["metric"]): r["value"] for r in rows}
        for bits, method, group_size in methods:
            values = [cells.get((bits, method, *task), "–") for task in tasks]
            lines.append([escape_markdown(c) for c in (bits, method, group_size or "–", *values)])
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(
            f"{escape_markdown(model)}, as printed in {escape_markdown(source)}:\n\n{table}"
        )
    return "\n\n".join(parts)
