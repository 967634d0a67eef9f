"""The scores of a grid's trials, as the store has them.

Not here: which trials there are, and how one is chosen (`harness.grid.tuning`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.core.errors import StoreError
from harness.core.store import Store
from harness.run.plan import CellInfo, Plan
from harness.run.states import standing_failure

if TYPE_CHECKING:
    from harness.core.stage import Stage
    from harness.evaluation.scores import Scores


def look_into(store: Store) -> Callable[[Stage[Scores]], float | None]:
    """What finds the score of a trial in a store: None before it has ended, infinite where it or
    what it is made of failed with this code, or where the score is no number."""

    from harness.core.stage import closure

    def look(stage: Stage[Scores]) -> float | None:
        if store.has(stage.key):
            try:
                rows = store.check_files(stage.key)["value"]["rows"]
            except StoreError:  # damaged, and to be computed again
                return None
            primary = next(row["value"] for row in rows if row["primary"])
            return math.inf if primary is None or math.isnan(primary) else float(primary)
        return math.inf if any(_failed(above, store) for above in closure([stage])) else None

    return look


def are_due(plan: Plan, store: Store) -> bool:
    """Whether trials have ended since a plan was made in such a way that it would choose now, or
    choose otherwise."""
    return any(_is_due(plan, cell, store) for cell in (*plan.awaiting, *plan.rows))


def _is_due(plan: Plan, cell: CellInfo, store: Store) -> bool:
    if cell.awaits:
        from harness.core.records import ALL_FAILED  # here, since most verbs need no record

        states = [_find_state(plan, key, store) for key in cell.scores]
        return None not in states and ("scored" in states or cell.awaits != ALL_FAILED)
    if cell.tuning is None or not cell.tuning["failed"]:
        return False
    models = set(cell.tuning["models"])
    keys = [key for c in plan.cells if c.is_trial and c.model in models for key in c.scores]
    return all(map(store.has, keys))


def _find_state(plan: Plan, key: str, store: Store) -> str | None:
    if store.has(key):
        return "scored"
    behind = plan.upstream(key)
    failed = any(standing_failure(plan.nodes[above], above, store) for above in behind)
    return "failed" if failed else None


def _failed(stage: Stage[Any], store: Store) -> bool:
    from harness.core.definitions import reach
    from harness.core.stage import find_code

    record = store.failure(stage.key)
    return record is not None and record.get("code") == reach(find_code(stage)).digest
