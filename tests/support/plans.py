"""Plans and values without stages behind them, for tests of what the store keeps."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from harness.core.provenance import list_sources
from harness.core.store import Store, write_json
from harness.run.basis import Basis, describe_basis
from harness.run.plan import CellInfo, Node, Plan


def plan_of(path: Path, numbers: Iterable[int]) -> Plan:
    """A plan of stages `k<number>`, each needing the one of half its number, as of a grid file."""
    wanted = set[int]()
    for number in numbers:
        while number:
            wanted.add(number)
            number //= 2
    nodes = {
        f"k{n}": Node("toy", f"t{n}", True, (f"k{n // 2}",) if n > 1 else (), "c", {}, 0, 1.0, 1.0)
        for n in sorted(wanted)
    }
    cells = tuple(CellInfo(key, "toy", key, {}, 0, "toy", key, (key,)) for key in nodes)
    return Plan(
        path.stem, str(path.resolve()), "?", "toy", {}, None, cells, nodes, _describe_basis()
    )


@cache
def _describe_basis() -> Basis:
    return describe_basis((), {}, list_sources())


def fill(store: Store, keys: Iterable[str]) -> None:
    """A value of each of the keys."""
    for key in keys:
        folder = store.root / "values" / key
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights").write_text(f"of {key}")
        write_json(folder / "manifest.json", {"schema": 1, "key": key, "files": {}, "value": {}})


def values(store: Store) -> set[str]:
    """Keys of the values that are whole."""
    return {
        path.parent.name
        for path in (store.root / "values").glob("*/manifest.json")
        if (path.parent / "weights").read_text() == f"of {path.parent.name}"
    }
