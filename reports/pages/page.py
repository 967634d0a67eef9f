"""The page of a grid, as Markdown and for a terminal: its question, its table, how each number was
measured, and what is missing.

Not here: HTML (`html`).
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.records import NOT_RUN
from reports.numbers.columns import name_metric
from reports.numbers.effects import Effect
from reports.numbers.naming import format_setting
from reports.numbers.summary import Summary
from reports.numbers.wording import Wording
from reports.pages import effects, printed, published, tuning
from reports.pages.escape import escape_markdown, write_code
from reports.pages.pictures import Picture
from reports.pages.sheet import Sheet, markdown, plain, wrap
from reports.pages.table import list_explanations, make_ranks, make_sheet

AS_PUBLISHED = "As published"
"""The heading of a paper's own tables."""

PROTOCOL_TITLES = {
    "num_fewshot": "Few-shot",
    "bos": "BOS",
    "chat_template": "Chat template",
    "n": "Items",
    "limit": "Limit",
    "protocol": "Protocol",
    "tokenizer": "Tokenizer",
    "task_version": "Task version",
    "lm_eval": "lm-eval",
}
"""What the fields of a protocol are called, in their order."""

_LATER = ("chat_template", "tokenizer")  # which rows of older exports do not have


def write_page(
    summary: Summary,
    pictures: Sequence[Picture],
    beside: Sheet | None = None,
    tested: Sequence[Effect] = (),
) -> str:
    """report.md."""
    grid, options = summary.grid, summary.grid.report
    parts = [f"# {escape_markdown(options.title or grid.name)}"]
    if grid.question:
        parts.append(escape_markdown(grid.question))
    parts += [f"> **{escape_markdown(caveat)}.**" for caveat in summary.caveats]
    parts.append(f"Model: {write_code(grid.model)}. {describe_progress(summary)}")
    if options.caption:
        parts.append(escape_markdown(options.caption))
    parts.append(markdown(make_sheet(summary)).rstrip())
    parts.append(escape_markdown(" ".join(list_explanations(summary))))
    parts += [f"{each.heading}: {escape_markdown(each.text)}" for each in summary.remarks]
    parts.append(
        "`bitgrid report` writes this table as LaTeX, HTML and, unrounded, as CSV too, and the "
        "figures as PDF."
    )
    if ranks := make_ranks(summary):
        parts += ["## Ranks", escape_markdown(ranks.caption), markdown(ranks).rstrip()]
    if choices := tuning.make_sheet(summary):
        parts += ["## Tuning", escape_markdown(choices.caption), markdown(choices).rstrip()]
    if grid.published:
        parts += _published(summary, beside)
    if tested:
        table = effects.make_sheet(tested, summary.decimals)
        parts += [f"## The effect of {escape_markdown(tested[0].axis)}"]
        parts += [escape_markdown(table.caption), markdown(table).rstrip()]
    for picture in pictures:
        title = escape_markdown(picture.title)
        parts += [f"## {title}", f"![{title}](plots/{picture.name}.png)"]
        parts += [escape_markdown(picture.words)] if picture.words else []
    parts += ["## How each column was measured", _protocols(summary)]
    if grid.holes:
        parts += ["## Not finished", _holes(summary)]
    if summary.stale:
        sentence = "These numbers are older than the code, or the settings, behind them:"
        listed = "\n".join(f"- {escape_markdown(line)}" for line in summary.stale)
        parts += ["## Stale", sentence, listed]
    return "\n\n".join(parts) + "\n"


def _published(summary: Summary, beside: Sheet | None) -> list[str]:
    parts = []
    if beside is not None:
        parts += [f"## {escape_markdown(published.title_comparison(summary))}"]
        parts += [escape_markdown(beside.caption)]
        parts += [markdown(beside).rstrip()]
    parts.append(f"## {AS_PUBLISHED}")
    if beside is None:
        parts.append(escape_markdown(published.explain_silence(summary) or ""))
    for each in printed.make_sheets(summary.grid.published):
        parts += [escape_markdown(f"{each.caption} {printed.BEST}"), markdown(each).rstrip()]
    return parts


def list_tables(
    summary: Summary, beside: Sheet | None, tested: Sequence[Effect]
) -> list[tuple[str, Sheet]]:
    """The tables after the comparison, each with its heading, for other pages than this."""
    title = published.title_comparison(summary)
    ranks = make_ranks(summary)
    sheets = [] if ranks is None else [("Ranks", ranks)]
    sheets += [("Tuning", each) for each in [tuning.make_sheet(summary)] if each]
    sheets += [] if beside is None else [(title, beside)]
    if beside is None and (sentence := published.explain_silence(summary)):
        sheets.append((title, Sheet("published", sentence, head=(), groups=())))
    sheets += [(AS_PUBLISHED, each) for each in printed.make_sheets(summary.grid.published)]
    if tested:
        sheets.append(
            (f"The effect of {tested[0].axis}", effects.make_sheet(tested, summary.decimals))
        )
    return sheets


def write_terminal(summary: Summary, width: int, tested: Sequence[Effect] = ()) -> str:
    """What a run ends with: question, table, ranks, how many effects there are, and what is open,
    wrapped to `width`."""
    grid = summary.grid
    lines = wrap(f"{grid.report.title or grid.name}: {grid.question}".rstrip(": "), width)
    lines += ["", plain(make_sheet(summary), width), ""]
    lines += wrap(" ".join(list_explanations(summary, terminal=True)), width)
    if ranks := make_ranks(summary):
        lines += ["", *wrap(ranks.caption, width), "", plain(ranks, width), ""]
    if tested:
        lines += wrap(effects.count_statuses(tested), width)
    for remark in summary.remarks:
        lines += wrap(f"{remark.heading}: {remark.text}", width)
    for caveat in summary.caveats:
        lines += wrap(f"{caveat}.", width)
    if grid.holes or summary.stale:
        lines += ["", *wrap(describe_progress(summary), width)]
    for hole in [hole for hole in list_open_cells(summary) if hole["reason"] != NOT_RUN][:10]:
        hole_lines = wrap(f"{_cell(hole)}: {hole['reason']}", width - 2)
        lines += [f"  {part}" for part in hole_lines]
    return "\n".join(lines) + "\n"


def describe_progress(summary: Summary) -> str:
    """How far the grid is, in one sentence."""
    grid = summary.grid
    finished = grid.cells - len(grid.holes)
    waiting = sum(hole.waits for hole in grid.holes)
    sentence = f"{finished} of {grid.cells} cells finished"
    if len(grid.holes) > waiting:
        sentence += f", {len(grid.holes) - waiting} failed"
    if waiting:
        sentence += f", {waiting} {NOT_RUN}"
    if summary.stale:
        sentence += f"; numbers that are stale: {len(summary.stale)}"
    return sentence + "."


def list_protocols(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """How each column was measured: titles, and a line a column."""
    columns = [column for column in summary.columns if column.task is not None]
    stated = {k for usual in summary.protocols for k in usual if usual[k] is not None}
    keys = [key for key in PROTOCOL_TITLES if key in stated or key not in _LATER]
    lines = [
        [
            column.title,
            str(column.task),
            name_metric(column.metric, column.filter),
            *(describe_value(usual[k]) for k in keys),
        ]
        for column, usual in zip(columns, summary.protocols, strict=True)
    ]
    return ["Column", "Task", "Metric", *(PROTOCOL_TITLES[key] for key in keys)], lines


def _protocols(summary: Summary) -> str:
    head, lines = list_protocols(summary)
    table = [
        head,
        [":--"] * len(head),
        *([escape_markdown(cell) for cell in line] for line in lines),
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in table)


def describe_value(value: object) -> str:
    """A setting of a protocol in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)


def _holes(summary: Summary) -> str:
    lines = ["| Method | Settings | Seed | Why |", "| :-- | :-- | :-- | :-- |"]
    for hole in list_open_cells(summary):
        cells = [hole["label"], hole["settings"], hole["seed"], hole["reason"]]
        lines.append("| " + " | ".join(escape_markdown(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _cell(hole: dict[str, str]) -> str:
    seed = f"seed {hole['seed']}" if hole["seed"] != "–" else ""
    return ", ".join(part for part in [hole["label"], hole["settings"], seed] if part)


def list_open_cells(summary: Summary) -> list[dict[str, str]]:
    """The cells without a full set of scores, as words, in the grid's order."""
    wording = Wording(summary.grid.report.names)
    return [
        {
            "label": hole.label,
            "settings": ", ".join(
                wording.name_setting(key, format_setting(value))
                for key, value in hole.settings.items()
                if key != "seed"
            ),
            "seed": describe_value(hole.seed),
            "reason": hole.reason,
        }
        for hole in summary.grid.holes
    ]
