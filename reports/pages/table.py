"""A summary written down: as a sheet, for every form of text, and as CSV.

CSV has the numbers unrounded and in the rows' units, the sheet as a reader wants them. Not here:
which numbers (`summary`), how a sheet is written (`sheet`, `latex`).
"""

from __future__ import annotations

from collections.abc import Mapping

from reports.numbers.columns import format_bits, format_number, name_task
from reports.numbers.entries import Entry, Row
from reports.numbers.summary import Summary
from reports.pages.escape import write_csv as write_rows
from reports.pages.published import Theirs
from reports.pages.sheet import MISSING, Cell, Sheet

RANKED = ("rank_low", "rank_high", "p", "untested")  # columns of the CSV


def make_sheet(summary: Summary) -> Sheet:
    """Methods grouped by bits, and by what is rounded as they run; tasks as columns."""
    groups = [
        tuple((*_stub(summary, row), *_numbers(summary, row)) for row in group)
        for group in summary.groups()
    ]
    return Sheet(
        name=summary.grid.name,
        caption=make_caption(summary),
        short=_make_title(summary),
        head=tuple(_head(summary)),
        groups=tuple(groups),
        notes=summary.notes,
    )


def make_ranks(summary: Summary) -> Sheet | None:
    """The ranks that each number may have in its group; None where nothing was tested."""
    if not summary.comparisons:
        return None
    marks: dict[str, str] = {}

    def show(entry: Entry | None) -> Cell:
        if entry is None:
            return Cell()
        if entry.rank is None:
            why = entry.untested or "not compared"
            mark = marks.setdefault(why, chr(ord("a") + len(marks)))
            return Cell("untested", marks=(mark,))
        return Cell("–".join(dict.fromkeys(map(str, entry.rank))), best=entry.best)

    groups = [
        tuple(
            (Cell(row.width), Cell(row.name), *(show(entry) for entry in row.entries))
            for row in group
        )
        for group in summary.groups()
        if len(group) > 1
    ]
    return Sheet(
        name=f"{summary.grid.name}-ranks",
        caption="Ranks in the group of equal bits: all that the tests under the table leave open, "
        "1 the best. Those of all tasks hold together with 95 %, those of all averages too. A wide "
        "range does not say equal, and what is untested may have any rank.",
        head=("Bits", "Method", *(column.title for column in summary.columns)),
        groups=tuple(groups),
        notes=tuple((mark, f"untested: {why}") for why, mark in marks.items()),
    )


def write_csv(summary: Summary, theirs: Mapping[tuple[int, int], Theirs] | None = None) -> str:
    """One line a row of the table.

    Of each column the number; `.sd` over models, `.se` over items, `.low` and `.high` of the 95 %
    interval over items, `.n` models, `.rank_low` and `.rank_high` in the group, `.p` the smallest
    against a better number of the group, corrected, `.untested` why there is no rank, and `.note`;
    where a paper prints figures `.published` and `.difference`, in the printed unit. Text has an
    apostrophe before what a spreadsheet would run as a formula (`escape.escape_formula`).
    """
    head = ["bits", "method", "label", "bits_per_weight", "models"]
    head += [each.column.name for each in summary.model_facts]
    note_texts = dict(summary.notes)
    for column in summary.columns:
        parts = ("sd", "se", "low", "high", "n", *RANKED, "note")
        name = column.name
        head += [name, *(f"{name}.{part}" for part in parts)]
        head += [f"{name}.published", f"{name}.difference"] if theirs else []
    lines: list[list[object]] = [[*head]]
    for at, row in enumerate(summary.rows):
        cells: list[object] = [format_bits(row.bits), row.name, row.label]
        cells += [row.bits_per_weight, row.models]
        cells += [_exact(value) for value in row.facts]
        for place, entry in enumerate(row.entries):
            if entry is None:
                cells += ["", "", "", "", "", 0, *["" for _ in RANKED], ""]
            else:
                low, high = entry.interval or (None, None)
                cells += [_exact(value) for value in (entry.mean, entry.sd, entry.se, low, high)]
                cells += [
                    entry.n,
                    *(entry.rank or ("", "")),
                    _exact(entry.p),
                    entry.untested,
                    "; ".join(note_texts[mark] for mark in entry.marks),
                ]
            if theirs:
                printed = theirs.get((at, place))
                cells += [printed.printed, _exact(printed.difference)] if printed else ["", ""]
        lines.append(cells)
    return write_rows(lines)


def make_caption(summary: Summary) -> str:
    """The grid's caption, or one that explains the table; caveats are always told."""
    title = _make_title(summary)
    remarks = [remark.text for remark in summary.remarks if remark.of_rows]
    caveats = [f"{caveat}." for caveat in summary.caveats]
    return " ".join([title, *list_explanations(summary), *remarks, *caveats])


def _make_title(summary: Summary) -> str:
    return summary.grid.report.caption or f"{summary.grid.model}: methods grouped by bits."


def list_explanations(summary: Summary, terminal: bool = False) -> list[str]:
    """What a reader must know to read the numbers."""
    entries = [entry for row in summary.rows for entry in row.entries if entry is not None]
    sentences = []
    if any(column.percent for column in summary.columns):
        sentences.append("Scores in percent.")
    sentences += _explain_best(summary, terminal)
    sentences.append("bpw: bits per weight, scales and zero points counted.")
    if any(row.attachments for row in summary.rows):
        sentences.append(_ATTACHMENTS)
    sentences += [each.description for each in summary.model_facts]
    names = summary.grid.report.names
    average = next((column for column in summary.columns if column.task is None), None)
    scores = [column for column in summary.columns if column.higher and column.task is not None]
    if average is not None and {column.task for column in scores} != set(average.tasks):
        sentences.append(
            f"Average over {', '.join(name_task(task, names) for task in average.tasks)}."
        )
    sentences += _explain_chance(summary)
    sentences += _spreads(summary)
    if any(entry.se is not None for entry in entries):
        sentences.append("Standard errors over items are in the CSV (.se).")
    if any(None in row.entries for row in summary.rows):
        sentences.append("– is not measured; an average needs every task.")
    return sentences


_ATTACHMENTS = (
    "In a name, what follows the bits of the weights (W) is done as the model runs: A8 rounds what "
    "layers read to 8 bits, KV4 keys and values to 4, H rotates what some layers read."
)


_ITEMS = (
    "In parentheses the 95 % interval over items, of the models as they are: other seeds may give "
    "others."
)


def _explain_best(summary: Summary, terminal: bool) -> list[str]:
    """What stands out, by which test, and what the test holds fixed."""
    entries = [entry for row in summary.rows for entry in row.entries if entry is not None]
    bold = "*" if terminal else "In bold"
    if not summary.comparisons:
        second = any(entry.second for entry in entries) and not terminal
        return [f"{bold}: best of each group{', second underlined' if second else ''}; untested."]
    sentences = [
        f"{bold}: all that cannot be told from the best of their group; where nothing can be told "
        "apart, none.",
        f"Each two numbers of a group were tested for equal expected scores by "
        f"{' or '.join(summary.tests)}; Holm-corrected for {summary.comparisons} comparisons, "
        "averages apart from tasks.",
    ]
    if summary.seeds_fixed:
        sentences.append("Seeds are held fixed: other seeds may tell otherwise.")
    return sentences


def _explain_chance(summary: Summary) -> list[str]:
    """Which tasks say nothing of methods, since the full-precision model but guesses."""
    reference = next((row for row in summary.rows if row.reference), None)
    if reference is None:
        return []
    guessed = [
        f"{column.title} ({100 * column.chance:.1f})"
        for column, entry in zip(summary.columns, reference.entries, strict=True)
        if column.chance is not None
        and column.task is not None
        and entry is not None
        and (entry.mean if entry.interval is None else entry.interval[0]) <= column.chance
    ]
    if not guessed:
        return []
    return [
        f"At chance: {', '.join(guessed)}. {reference.name} cannot be told from guessing there, so "
        "that no method can be judged by it."
    ]


def _spreads(summary: Summary) -> list[str]:
    """What ± is, and that a median has none."""
    options = summary.grid.report
    if options.spread == "items":
        return [_ITEMS, *(["Mean over models (column n)."] if summary.several else [])]
    if not summary.several:
        return []
    if options.aggregate == "median":
        return ["Medians over models (column n) of different seeds."]
    if options.spread == "interval":
        return ["± is half of Student's 95 % interval over models (column n) of different seeds."]
    return ["± is the standard deviation over models (column n) of different seeds."]


def _head(summary: Summary) -> list[str]:
    arrows = [f"{column.title} {'↑' if column.higher else '↓'}" for column in summary.columns]
    facts = [each.column.title for each in summary.model_facts]
    return ["Bits", "Method", "bpw", *(["n"] if summary.several else []), *facts, *arrows]


def _stub(summary: Summary, row: Row) -> list[Cell]:
    weight = MISSING if row.bits_per_weight is None else f"{row.bits_per_weight:.2f}"
    texts = [row.width, row.name, weight]
    texts += [_models(row)] if summary.several else []
    for each, value in zip(summary.model_facts, row.facts, strict=True):
        texts.append(MISSING if value is None else each.column.show(value))
    return [Cell(text) for text in texts]


def _models(row: Row) -> str:
    """How many models stand behind the row's numbers: 3, or 2–3 where some are still open."""
    counts = sorted({entry.n for entry in row.entries if entry is not None}) or [row.models]
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def _numbers(summary: Summary, row: Row) -> list[Cell]:
    cells = []
    for column, entry in zip(summary.columns, row.entries, strict=True):
        if entry is None:
            cells.append(Cell())
            continue
        known = entry.spread is not None and entry.spread == entry.spread
        spread = format_number(entry.spread or 0.0, column, summary.decimals)
        after = f"± {spread}" if known else ""
        if summary.grid.report.spread == "items" and entry.interval is not None:
            ends = (format_number(end, column, summary.decimals) for end in entry.interval)
            after = f"({'–'.join(ends)})"
        cells.append(
            Cell(
                text=format_number(entry.mean, column, summary.decimals),
                after=after,
                best=entry.best,
                second=entry.second,
                marks=entry.marks,
            )
        )
    return cells


def _exact(value: float | None) -> str:
    return "" if value is None else "NaN" if value != value else repr(value)
