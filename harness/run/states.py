"""How far a plan's stages are, as the store has it: done, stale, failed, to compute; and why.

Imports no torch. Not here: what a plan is (`harness.run.plan`), the queue (`harness.cluster`).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from harness.core import provenance
from harness.core.errors import StoreError
from harness.core.store import Store
from harness.run.plan import Node, Plan

STATES = ("done", "stale", "running", "failed", "blocked", "queued")


def find_states(plan: Plan, store: Store) -> dict[str, str]:
    """The state of every kept stage, a word of `STATES`."""
    state_of: dict[str, str] = {}
    failed, owners = store.failed(), store.owners()
    for key, node in plan.nodes.items():
        above = [state_of[key] for key in node.inputs]
        if node.stored and store.has(key):
            state_of[key] = "stale" if explain_staleness(plan, key, store) else "done"
        elif key in failed and standing_failure(node, key, store):
            state_of[key] = "failed"
        elif any(state in ("failed", "blocked") for state in above):
            state_of[key] = "blocked"
        elif node.stored and key in owners:
            state_of[key] = "running"
        else:
            state_of[key] = "queued"
    return state_of


def explain_staleness(plan: Plan, key: str, store: Store) -> str | None:
    """Why a kept value is stale: which code or package changed since. None where it is not."""
    digest, found = plan.nodes[key].code, store.look(key)
    if found is None or found.fault is not None:
        return None
    old = store.definitions(key) if found.code != digest else None
    recorded = {"code": found.code, "packages": found.packages}
    return provenance.explain_staleness(recorded, digest, old, plan.code.get(digest))


def list_stale(plan: Plan, store: Store) -> list[str]:
    """Why kept values of a plan are stale, a line a reason, with how many stages have it."""
    state = find_states(plan, store)
    reasons = [
        f"{plan.nodes[key].kind}: {explain_staleness(plan, key, store)}"
        for key in plan.nodes
        if state[key] == "stale"
    ]
    return _counted(reasons)


def list_new(plan: Plan, store: Store) -> list[str]:
    """Why stages that are to be computed are new, a line a reason, with how many have it."""
    missing = [plan.nodes[key] for key in needed(plan, store)]
    return _counted([f"{node.kind}: {node.why}" for node in missing if node.stored and node.why])


def check_scores(plan: Plan, store: Store) -> None:
    """Read what a report needs, so that the store knows which of it is damaged."""
    for key in {key for cell in plan.cells for key in cell.roots}:
        if store.has(key):
            with contextlib.suppress(StoreError):
                store.check_files(key)


def list_damaged(plan: Plan, store: Store) -> list[str]:
    """What is wrong with values of a plan that are there and will be computed again."""
    faults = {key: store.find_fault(key) for key in plan.stored()}
    return [f"{plan.nodes[key].kind}: {fault}" for key, fault in faults.items() if fault]


def _counted(lines: list[str]) -> list[str]:
    return [
        line if number == 1 else f"{line} ({number} stages)"
        for line, number in Counter(lines).items()
    ]


def standing_failure(node: Node, key: str, store: Store) -> dict[str, Any] | None:
    """A stage's failure record, while the code that failed is still the code."""
    record = store.failure(key)
    return record if record and record.get("code") == node.code else None


def needed(plan: Plan, store: Store, roots: Iterable[str] | None = None) -> list[str]:
    """Keys of the stages to compute or rebuild for `roots` (all), inputs first."""
    wanted: set[str] = set()

    def visit(key: str) -> None:
        node = plan.nodes[key]
        if key in wanted or (node.stored and store.has(key)):
            return
        wanted.add(key)
        for above in node.inputs:
            visit(above)

    for key in (k for cell in plan.cells for k in cell.roots) if roots is None else roots:
        visit(key)
    return [key for key in plan.nodes if key in wanted]
