"""Rows that were written before they said which texts are behind them, with what their provenance
says of that.

Nothing else of a row changes, and what a row says already stays. Where a stage that decides it is
missing, the row stays without: null is unknown. Not here: how texts follow from stages
(`harness.core.lineage`).
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from harness.core.errors import ReportError
from harness.core.lineage import Lineage
from harness.core.record_lines import from_json
from harness.core.records import Row
from reports.reading.lines import read_objects

_DECIDES = "trained_on"  # a row that has it was written with all that follows from its stages


def complete_rows(folder: Path) -> bytes:
    """rows.jsonl of an exported grid with `text`, `trained_on` and `calibrated_on` in every row
    that lacks them and whose stages are in provenance.jsonl. Raises ReportError for lines that are
    no records."""
    path = folder / "rows.jsonl"
    data = path.read_bytes()
    lines = dict(read_objects(path))
    lacking = [n for n, row in lines.items() if isinstance(row, dict) and row.get(_DECIDES) is None]
    if not lacking:
        return data
    from reports.reading.export import Export  # which loads pandas

    lineage = Lineage({key: each.stage for key, each in Export(folder).stages.items()})
    texts = data.decode().splitlines()
    for number in lacking:
        row = from_json(Row, lines[number], f"{path}:{number}")
        texts[number - 1] = json.dumps({**lines[number], **_find_texts(row, lineage)})
    return "".join(f"{text}\n" for text in texts).encode()


def _find_texts(row: Row, lineage: Lineage) -> dict[str, Any]:
    """Fields of a row, those whose stages are known."""
    facts: dict[str, Any] = {}
    with contextlib.suppress(ReportError, KeyError):
        facts["text"] = lineage.find_text(row.key)
        trained = lineage.list_trained(row.model_key)
        facts |= {_DECIDES: trained, "calibrated_on": lineage.list_calibrated(row.model_key)}
    return facts
