"""Published figures held against what their grid measures, for `bitgrid verify NAME`.

Not here: the verb (`values`), how a grid is run (`running`), what is compared (`reports`).
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.running import compute
from harness.cli.terminal import print_line
from harness.cli.verb import RUNS, open_store
from harness.core.errors import BitgridError
from harness.grid import published

if TYPE_CHECKING:
    from reports.pages.verdicts import Verdict

_MARKS = {"within": "✓", "outside": "✗"}


def verify_figures(arguments: argparse.Namespace) -> int:
    """Run the grid behind the figures of a file, and say of each whether it is what was measured.

    1 where one is outside its tolerance, or none could be compared. Where there is no such grid, or
    it cannot be run, as without its model, none was run, and the reason is said.
    """
    file: Path = arguments.grid
    try:
        grid = published.find_grid(file)
        print(f"{file.stem}: {grid}", flush=True)
        return _show(_measure(arguments, grid))
    except BitgridError as error:
        from reports.pages.verdicts import Verdict

        return _show([Verdict(each, "not run") for each in published.figures(file)], str(error))


def _measure(arguments: argparse.Namespace, grid: Path) -> list[Verdict]:
    """Run what the grid still needs, write its rows beneath runs/, and compare them."""
    store = open_store(arguments)
    plan, _ = compute(store, grid)
    from harness.run import export

    folder = RUNS / plan.name
    export.export(plan, store, folder)
    import reports

    return reports.judge(folder)


def _show(verdicts: list[Verdict], reason: str = "") -> int:
    """A line each, how many there are of each kind, the reason for all; the exit status."""
    for each in verdicts:
        limit = "" if each.limit is None else f" ±{each.limit:.3g}"
        found = f"{each.ours or each.state}, printed {each.figure['value']}{limit}"
        why = f": {each.why}" if each.why else ""
        told = f" ({each.state})" if each.ours and each.state not in _MARKS else ""
        source = f"  [{each.figure['source']}]"
        print_line(f"  {_MARKS.get(each.state, '–')} {each.describe()} {found}{told}{why}{source}")
    counts = Counter(each.state for each in verdicts)
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    print_line(f"{told}: {reason}" if reason else told)
    return 1 if counts["outside"] or not counts["within"] else 0
