"""Published figures held against what their grid measures, for `bitgrid verify NAME`.

Not here: the verb (`values`), how a grid is run (`running`), what is compared (`reports`).
"""

from __future__ import annotations

import argparse
import sys
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

    1 where one is outside its tolerance, or none could be compared. Where the grid cannot be run,
    as without its model, none was run, and the reason is said.
    """
    file: Path = arguments.grid
    grid = published.find_grid(file)
    print(f"{file.stem}: {grid}", flush=True)
    try:
        verdicts = _measure(arguments, grid)
    except BitgridError as error:
        from reports.pages.verdicts import Verdict

        verdicts = [Verdict(each, "not run", why="") for each in published.figures(file)]
        print_line(f"bitgrid: {error}", file=sys.stderr)
    return _show(verdicts)


def _measure(arguments: argparse.Namespace, grid: Path) -> list[Verdict]:
    """Run what the grid still needs, write its rows beneath runs/, and compare them."""
    store = open_store(arguments)
    asked = {"grid": grid, "retry": None, "allow_code_execution": False, "out": None}
    plan, _ = compute(argparse.Namespace(**{**vars(arguments), **asked}), store)
    from harness.run import export

    folder = RUNS / plan.name
    export.export(plan, store, folder)
    import reports

    return reports.judge(folder)


def _show(verdicts: list[Verdict]) -> int:
    """A line each, and how many there are of each kind; the exit status."""
    for each in verdicts:
        limit = "" if each.limit is None else f" ±{each.limit:.3g}"
        found = f"{each.ours or each.state}, printed {each.figure['value']}{limit}"
        why = f": {each.why}" if each.why else ""
        told = f" ({each.state})" if each.ours and each.state not in _MARKS else ""
        source = f"  [{each.figure['source']}]"
        print_line(f"  {_MARKS.get(each.state, '–')} {each.describe()} {found}{told}{why}{source}")
    counts = Counter(each.state for each in verdicts)
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return 1 if counts["outside"] or not counts["within"] else 0
