"""What a change of code makes new or stale, of the quickstart's kept stages.

    python -m benchmarks.staleness

Each change is made in a copy of this project, whose plan of the quickstart is then held against a
store in which every stage is done with the code as it was. No stage is computed: values are
stand-ins with the manifest that they would have. New: it would be computed again. Stale: it is kept
and said to be of other code, with the definition that changed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
GRID = "experiments/quickstart.yaml"

PLAN = """
import json, sys
from pathlib import Path
from harness.core import provenance
from harness.core.store import Store
from harness.grid import expand
from harness.run import plan as plans
from harness.run import states

grid = expand.load(Path(sys.argv[1]), allow_code_execution=True)
plan, store = plans.build(grid), Store(Path(sys.argv[2]))
if sys.argv[3] == "fill":
    for key, stage in plan.stages().items():
        if stage.stored:
            node = plan.nodes[key]
            facts = {"stage": node.stage, "code": node.code, "packages": provenance.find_versions()}
            store.commit(stage, {}, facts, plan.code[node.code])
state = states.find_states(plan, store)
kept = plan.stored()
print(json.dumps({
    "stages": len(kept),
    "new": sum(not store.has(key) for key in kept),
    "stale": sum(state[key] == "stale" for key in kept),
    "why": states.list_stale(plan, store)[:3],
}))
"""

PLUGIN = """
from dataclasses import dataclass
from harness.method import Method, register
from ._rounding import round_all

@dataclass(frozen=True)
class Plugged(Method):
    bits: int = 2

    def apply(self, model, calibration, work):
        return round_all(model, self.bits)

register("plugged", Plugged(), title="Plugged", about="a plug-in with a helper module")
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy, store = Path(folder) / "copy", Path(folder) / "store"
        _copy(copy)
        first = _plan(copy, store, "fill")
        print(f"{first['stages']} kept stages; of these become")
        print(f"{'new':>5} {'stale':>6}  change")
        for words, change in CHANGES.items():
            shutil.rmtree(copy)
            _copy(copy)
            change(copy)
            counts = _plan(copy, store, "look")
            why = f"\n              {'; '.join(counts['why'])}" if counts["why"] else ""
            print(f"{counts['new']:>5} {counts['stale']:>6}  {words}{why}", flush=True)


def _copy(copy: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("harness", "methods", "reports", "experiments"):
        shutil.copytree(ROOT / part, copy / part, ignore=ignored)
    plugin = copy / "plugged"
    plugin.mkdir()
    (plugin / "__init__.py").write_text(PLUGIN)
    helper = "def round_all(model, bits):\n    return model.fork()\n"
    (plugin / "_rounding.py").write_text(helper)
    info = copy / "plugged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bitgrid.methods]\nplugged = plugged\n")
    grid = copy / GRID
    text, count = re.subn(r"^compare: \[", "compare: [plugged, ", grid.read_text(), flags=re.M)
    assert count == 1, "the quickstart has no list of compared methods"
    grid.write_text(text)


def _plan(copy: Path, store: Path, what: str) -> dict:
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", PLAN, str(copy / GRID), str(store), what]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _replace(path: str, old: str, new: str) -> Callable[[Path], None]:
    def change(copy: Path) -> None:
        text = (copy / path).read_text()
        assert old in text, f"{path} has no {old!r}"
        (copy / path).write_text(text.replace(old, new))

    return change


def _append(path: str, text: str) -> Callable[[Path], None]:
    def change(copy: Path) -> None:
        with (copy / path).open("a") as file:
            file.write(text)

    return change


def _move(old: str, new: str) -> Callable[[Path], None]:
    """A module to another place, and every import with it."""

    def change(copy: Path) -> None:
        old_file, new_file = (copy / f"{name.replace('.', '/')}.py" for name in (old, new))
        old_file.rename(new_file)
        package, _, leaf = old.rpartition(".")
        new_leaf = new.rpartition(".")[2]
        for file in [*copy.rglob("*.py"), *copy.rglob("*.yaml")]:
            text = file.read_text()
            moved = re.sub(rf"\b{re.escape(old)}\b", new, text)
            single = rf"^(\s*from {re.escape(package)} import ){leaf}$"
            moved = re.sub(single, rf"\1{new_leaf} as {leaf}", moved, flags=re.M)
            if moved != text:
                file.write_text(moved)

    return change


def _rename(old: str, new: str) -> Callable[[Path], None]:
    """A class, wherever it is named."""

    def change(copy: Path) -> None:
        for file in copy.rglob("*.py"):
            text = file.read_text()
            renamed = re.sub(rf"\b{old}\b(?!\")", new, text)
            if renamed != text:
                file.write_text(renamed)

    return change


CHANGES: dict[str, Callable[[Path], None]] = {
    "nothing": lambda copy: None,
    "the file of objectives is renamed": _move(
        "methods.training.objectives", "methods.training.losses"
    ),
    "the file of the published model's stage is renamed": _move(
        "harness.models.stage", "harness.models.published"
    ),
    "class KL is renamed (its name stays)": _rename("KL", "ForwardKL"),
    "class Train is renamed (its kind stays)": _rename("Train", "Training_"),
    "an unused function is added to data/tokens.py": _append(
        "harness/data/tokens.py", "\n\ndef unused() -> int:\n    return 1\n"
    ),
    "an error is reworded in data/tokens.py": _replace(
        "harness/data/tokens.py", "fewer than one block", "less than one block"
    ),
    "a protocol's prose is reworded": _replace(
        "harness/testbed/registration.py", "documents end to end, BOS", "documents in a row, BOS"
    ),
    "pack() is changed": _replace(
        "harness/data/tokens.py",
        "if len(stream) >= length * count",
        "if len(stream) > length * count",
    ),
    "how a format rounds is changed": _append(
        "methods/quantization/rounding.py", "\n\ndef quantize_model(*_: object) -> None: ...\n"
    ),
    "a constant of the sandbox is changed": _replace(
        "harness/evaluation/sandbox.py", "_REPORT = 4_096", "_REPORT = 8_192"
    ),
    "a plug-in's helper is changed": _append(
        "plugged/_rounding.py", "round_all = lambda model, bits: model\n"
    ),
}


if __name__ == "__main__":
    main()
