"""The keys of a wide grid are pinned: a refactoring that changes one fails here.

A key that is meant to change (another number, a bumped version) is pinned anew, on purpose:

    python -m tests.harness.grid.test_golden_keys
"""

from __future__ import annotations

import json
from pathlib import Path

from harness.grid.expand import load
from harness.run.plan import build

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parent / "golden_keys.json"


def _keys() -> dict[str, list[str]]:
    """Of all stages of the grid, kept or rebuilt: kind and first cell -> keys."""
    plan = build(load(ROOT / "tests/support/wide_grid.yaml", allow_code_execution=True))
    keys: dict[str, list[str]] = {}
    for key, node in plan.nodes.items():
        keys.setdefault(f"{node.kind} {node.title}", []).append(key)
    return {name: sorted(same) for name, same in keys.items()}


def test_the_keys_of_a_wide_grid_are_what_they_were() -> None:
    golden, keys = json.loads(GOLDEN.read_text()), _keys()
    changed = sorted(
        name for name in golden.keys() | keys.keys() if golden.get(name) != keys.get(name)
    )
    assert not changed, "these stages would be computed anew by everybody"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(_keys(), indent=1, sort_keys=True) + "\n")
