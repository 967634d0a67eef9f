"""What becomes of hostile and clumsy grids: each is refused in one line, or valid, and cheap.

    python -m benchmarks.hostile_grids --grids 2000 --out benchmarks/hostile_grids.csv

Each grid is planned (`bitgrid plan`) in a process of its own, a child of one that has imported what
planning imports and planned a valid grid, so that what is measured is what the grid costs: seconds,
and MB above what the process held at its start. One that is taken is checked to mean what it says
(`tests.support.hostile_grids.check_accepted`). A grid is refused well with exit code 2 and one line
that begins with a file of its folder. The table that was measured is beside this file.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random

SECONDS, MEGABYTES = 2.0, 300.0
KILLED_AFTER = 20.0  # seconds


@dataclass(frozen=True)
class Outcome:
    """What became of one grid: accepted, refused, or a fault in words."""

    kind: str
    what: str
    seconds: float
    megabytes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--grids", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    from tests.support.hostile_grids import KINDS, write_grid

    root = Path(tempfile.mkdtemp(prefix="hostile-"))
    os.chdir(root)
    _warm_up(root)
    outcomes = []
    for number in range(arguments.grids):
        kind, seed = KINDS[number % len(KINDS)], arguments.first + number // len(KINDS)
        folder = root / f"{number}"
        path = write_grid(kind, Random(seed), folder)
        outcome = _try_in_child(kind, path)
        outcomes.append(outcome)
        slow = outcome.seconds > SECONDS or outcome.megabytes > MEGABYTES
        if slow or outcome.what not in ("accepted", "refused"):
            print(kind, seed, outcome, file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    rows = [["kind", *_COLUMNS], *_list_rows(outcomes)]
    file = arguments.out.open("w", newline="") if arguments.out else sys.stdout
    csv.writer(file, lineterminator="\n").writerows(rows)
    file.flush()
    print(f"{platform.machine()}, Python {platform.python_version()}", file=sys.stderr)


_COLUMNS = (
    *("grids", "accepted", "refused in one line", "accepted and wrong", "traceback or other"),
    *("over 2 s", "over 300 MB", "slowest (s)", "largest (MB)"),
)


def _list_rows(outcomes: list[Outcome]) -> list[list[str]]:
    kinds: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        kinds[outcome.kind].append(outcome)
    return [_make_row(kind, each) for kind, each in [*kinds.items(), ("all", outcomes)]]


def _make_row(kind: str, outcomes: list[Outcome]) -> list[str]:
    words = [each.what for each in outcomes]
    wrong = sum(each.startswith("wrong") for each in words)
    numbers = [len(words), words.count("accepted"), words.count("refused"), wrong]
    numbers.append(len(words) - sum(numbers[1:]))
    numbers.append(sum(each.seconds > SECONDS for each in outcomes))
    numbers.append(sum(each.megabytes > MEGABYTES for each in outcomes))
    slowest = max(each.seconds for each in outcomes)
    largest = max(each.megabytes for each in outcomes)
    return [kind, *map(str, numbers), f"{slowest:.2f}", f"{largest:.0f}"]


def _warm_up(root: Path) -> None:
    """Import and read once what any valid grid needs: torch, the library, lm-eval's index."""
    import torch

    from harness.cli.main import main as run
    from tests.support.hostile_grids import BASE, EXPERIMENTS, check_accepted

    torch.set_num_threads(1)
    path = root / "valid.yaml"
    path.write_text(BASE.replace("[testbed-ppl,", "[testbed-ppl, arc_easy,"))
    run(["plan", str(path), "--store", str(root / "store")])  # arc_easy is not here: refused
    path.write_text(BASE)
    for grid in (EXPERIMENTS / "quickstart.yaml", path):
        assert run(["plan", str(grid), "--store", str(root / "store")]) == 0
    check_accepted(path)


def _try_in_child(kind: str, path: Path) -> Outcome:
    report, errors = path.parent / "report.json", path.parent / "errors.txt"
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _plan(path, report, errors)
        os._exit(0)
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        time.sleep(0.005)
        if time.monotonic() - start > KILLED_AFTER:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Outcome(kind, "killed", KILLED_AFTER, 0.0)
    if not report.exists():
        return Outcome(kind, "died", time.monotonic() - start, 0.0)
    facts = json.loads(report.read_text())
    return Outcome(kind, facts["what"], facts["seconds"], facts["megabytes"])


def _plan(path: Path, report: Path, errors: Path) -> None:
    """In the child: plan the grid, and write down what became of it."""
    from harness.cli.main import main as run
    from tests.support.hostile_grids import check_accepted

    for stream, name in ((1, os.devnull), (2, str(errors))):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = _read_memory("VmRSS"), time.monotonic()
    try:
        status = run(["plan", str(path), "--store", str(path.parent / "store")])
    except BaseException:
        status, what = -1, f"traceback: {traceback.format_exc(limit=-3)}"
    seconds, megabytes = time.monotonic() - start, _read_memory("VmHWM") - before
    sys.stderr.flush()
    lines = errors.read_text(errors="replace").splitlines()
    said = [line for line in lines if line.startswith("bitgrid: ")]
    if status == 0:
        what = "accepted"
        try:
            check_accepted(path)
        except Exception:
            what = f"wrong: {traceback.format_exc(limit=-2)}"
    elif status == 2:
        is_placed = len(said) == 1 and said[0].startswith(f"bitgrid: {path.parent}")
        is_plain = len(said) == 1 and said[0].isprintable() and len(said[0]) < 3000
        what = "refused" if is_placed and is_plain else f"said: {lines[-3:]}"
    report.write_text(json.dumps({"what": what, "seconds": seconds, "megabytes": megabytes}))


def _read_memory(name: str) -> float:
    """MB of this process, by a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(name)


if __name__ == "__main__":
    main()
