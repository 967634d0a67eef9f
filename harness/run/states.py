"""How far a plan's stages are, as the store has it: done, stale, failed, to compute; and why.

Imports no torch. Not here: what a plan is (`harness.run.plan`), the queue (`harness.cluster`).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Container, Iterable
from typing import Any

from harness.core import provenance
from harness.core.errors import StoreError
from harness.core.found import Found
from harness.core.store import Store
from harness.run.plan import Node, Plan

STATES = ("done", "stale", "running", "failed", "blocked", "queued")


def find_states(plan: Plan, store: Store) -> dict[str, str]:
    """The state of every kept stage, a word of `STATES`."""
    state_of: dict[str, str] = {}
    failed, owners = store.failed(), store.owners()
    for key, node in plan.nodes.items():
        above = [state_of[key] for key in node.inputs]
        found = store.look(key) if node.stored else None
        if found is not None and found.fault is None:
            state_of[key] = "stale" if _explain(plan, key, store, found) else "done"
        elif key in failed and standing_failure(node, key, store):
            state_of[key] = "failed"
        elif any(state in ("failed", "blocked") for state in above):
            state_of[key] = "blocked"
        elif node.stored and key in owners:
            state_of[key] = "running"
        else:
            state_of[key] = "queued"
    store.index.save()
    return state_of


def explain_staleness(plan: Plan, key: str, store: Store) -> str | None:
    """Why a kept value is stale: which code or package changed since. None where it is not."""
    found = store.look(key)
    return None if found is None or found.fault is not None else _explain(plan, key, store, found)


def _explain(plan: Plan, key: str, store: Store, found: Found) -> str | None:
    digest = plan.nodes[key].code
    old = store.definitions(key) if found.code != digest else None
    recorded = {"code": found.code, "packages": found.packages}
    return provenance.explain_staleness(recorded, digest, old, plan.code.get(digest))


def list_stale(plan: Plan, store: Store) -> list[str]:
    """Why kept values of a plan are stale, a line a reason, with how many stages have it."""
    reasons = [(plan.nodes[key].kind, explain_staleness(plan, key, store)) for key in plan.stored()]
    return _counted([f"{kind}: {reason}" for kind, reason in reasons if reason])


def list_new(plan: Plan, store: Store) -> list[str]:
    """Why stages that are to be computed are new, a line a reason, with how many have it."""
    missing = [plan.nodes[key] for key in needed(plan, store)]
    return _counted([f"{node.kind}: {node.why}" for node in missing if node.stored and node.why])


def check_scores(plan: Plan, store: Store) -> dict[str, dict[str, Any]]:
    """Read what a report needs, so that the store knows which of it is damaged; the manifests of
    what is whole, by key."""
    manifests = {}
    for key in dict.fromkeys(key for cell in plan.cells for key in cell.roots):
        with contextlib.suppress(StoreError):
            manifests[key] = store.check_files(key)
    return manifests


def list_damaged(plan: Plan, store: Store, whole: Container[str] = ()) -> list[str]:
    """What is wrong with values of a plan that are there and will be computed again.

    whole: keys of those that were looked at just now.
    """
    faults = {key: store.find_fault(key) for key in plan.stored() if key not in whole}
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
