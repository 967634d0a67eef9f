"""Two users of one store, on a real SLURM: what one computes the other sees, waits for and has.

Both are made for the case, with a group of theirs, and removed after it. The store's folder has the
group and hands it on (`chmod g+s`), and both work under `umask 002`, as docs/slurm.md says.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults.jobs import LAUNCH, Case, try_cases
from benchmarks.faults.trial import Ground, Result, Skipped
from tests.support.slurm.lab import Lab
from tests.support.slurm.place import INSIDE, Place, User, until

NAMES = ("bitgrid-a", "bitgrid-b")
GROUP = "bitgrid-lab"
NODES = ("scontrol", "update", "nodename=node[1-2]")


def try_colleagues(ground: Ground) -> Iterator[Result]:
    return try_cases(CASES)


def _share_a_store(lab: Lab, folder: Path) -> tuple[Place, str]:
    """A launches a training; B launches a cell that needs what A's job will compute."""
    with _users() as (a, b):
        python = a.find_python()
        if python is None:
            raise Skipped(f"no user but root may run {sys.executable}, and there is no other")
        setup = [f"export PYTHONPATH={INSIDE}:$PYTHONPATH TEST_STEP_S=1"]
        steps = {"train.steps": 30, "train.checkpoint_every": 4}
        grid = {"compare": ["awq-clip"], "defaults": steps}
        place = Place(folder, grid, {"python": python, "setup": setup})
        place.python = python
        a.give(folder)
        place.store.root.mkdir()
        a.give(place.store.root)
        # Nothing runs until both have launched.
        lab.run(*NODES, "state=drain", "reason=both launch first")
        place.bitgrid(*LAUNCH, "--only", "bitdistiller", user=a)
        launched = place.bitgrid(*LAUNCH, user=b)
        assert "queued by another launch: 5" in launched, launched
        lab.run(*NODES, "state=resume")
        (key,) = place.keys("train")
        until(lambda: place.step(key) >= 3, 300, place.logs)
        said = place.bitgrid("status", "grid.yaml", user=b)
        queue = lab.squeue("--format=%u %T %r %b")
        waiting = [line for line in queue.splitlines() if line.startswith(b.name)]
        assert len(waiting) == 1 and "PENDING Dependency" in waiting[0], queue
        until(lambda: not lab.squeue(), 400, place.logs)
        told = [line for line in said.splitlines() if line.startswith(("running:", "queued:"))]
        assert "nothing to submit" in place.bitgrid(*LAUNCH, user=b)
        owners = {path.owner() for path in (place.store.root / "values").iterdir()}
        assert owners == {a.name, b.name}, place.logs()
        return place, " / ".join(told)


@contextlib.contextmanager
def _users() -> Iterator[tuple[User, User]]:
    def call(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True)

    if not shutil.which("useradd") or os.geteuid() != 0:
        raise Skipped("users are made by root, with useradd")
    call("groupadd", "--force", GROUP)
    try:
        for name in NAMES:
            call("useradd", "--no-create-home", "--gid", GROUP, name)
        yield User(NAMES[0]), User(NAMES[1])
    finally:
        for name in NAMES:
            subprocess.run(["userdel", "--force", name], capture_output=True)
        subprocess.run(["groupdel", GROUP], capture_output=True)


CASES: dict[str, Case] = {"B launches what A's training holds up, and looks": _share_a_store}
