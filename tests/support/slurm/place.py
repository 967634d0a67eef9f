"""A folder with a grid, a profile and a store, and the commands that a user would give in it."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.cluster import launches, scheduler
from harness.cluster.launches import Launch
from harness.core.store import Store
from tests.support.forked import ForkedPopen, run_forked

ROOT = Path(__file__).parents[3]
INSIDE = Path(__file__).parent / "inside"

# One model of a million weights that trains for seconds, in few stages, since each job imports for
# ten: what is tested is not what is computed.
GRID: dict[str, Any] = {
    "model": "testbed-small",
    "dtype": "float32",
    "method": {"name": "bitdistiller", "data": "ground-truth", "objective": "kl"},
    "defaults": {
        "format.bits": 2,
        "format.group_size": 64,
        # Through the range a code that two processes round otherwise moves its whole group.
        "format.gradient": "identity",
        "init.text": "testbed",
        "init.sequences": 4,
        "init.length": 64,
        "data.text": "testbed",
        "data.sequences": 32,
        "data.length": 64,
        "train.steps": 4,
        "train.batch_size": 4,
        "train.micro_batch": 4,
        "train.lr": 1e-4,
        "train.dtype": "float32",
        "train.checkpoint_every": 4,
    },
    "evaluate": [{"testbed-ppl": {"limit": 2}}],
}
WITHOUT_CLIP = {**GRID["method"], "init": "none"}
TRAINED: dict[str, Any] = {
    "method": WITHOUT_CLIP,
    "defaults": {"train.steps": 40, "train.checkpoint_every": 5},
}
PROFILE: dict[str, Any] = {"cpus": 1, "memory_gib": 2, "hours": 0.2, "visible_s": 3, "gpu": "none"}


def slow(step_s: float = 0.0, late_s: float = 0.0) -> dict[str, Any]:
    """A profile whose jobs wait at each step, or see values late."""
    setup = f"export PYTHONPATH={INSIDE} TEST_STEP_S={step_s} TEST_LATE_S={late_s}"
    return {"setup": [setup]}


@dataclass(frozen=True)
class User:
    """Another user than root, who is there."""

    name: str

    @property
    def process(self) -> dict[str, Any]:
        """Arguments of Popen that make a process this user's, who shares with his group."""
        entry = pwd.getpwnam(self.name)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "umask": 0o002}

    def give(self, folder: Path) -> None:
        """Have a folder, with all in it, be this user's and his group's, as what is made in it."""
        entry = pwd.getpwnam(self.name)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, entry.pw_uid, entry.pw_gid)
            path.chmod(0o2775 if path.is_dir() else 0o664)

    def find_python(self) -> str | None:
        """A Python like this one that the user may run, which may lie in a home folder."""
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        for program in (sys.executable, f"/usr/bin/python{version}"):
            with suppress(OSError, subprocess.CalledProcessError):
                subprocess.run([program, "-c", ""], check=True, cwd="/", **self.process)
                return program
        return None


class Place:
    """`bitgrid` in a folder of its own; `grid` and `profile` say what differs from the above."""

    def __init__(
        self,
        folder: Path,
        grid: dict[str, Any] | None = None,
        profile: dict[str, Any] | None = None,
    ) -> None:
        self.folder, self.store = folder, Store(folder / "store")
        self.python = sys.executable  # of users other than root
        folder.mkdir(parents=True, exist_ok=True)
        said = {**GRID, **(grid or {})}
        said["defaults"] = {**GRID["defaults"], **(grid or {}).get("defaults", {})}
        (folder / "grid.yaml").write_text("# Does it come through?\n" + yaml.safe_dump(said))
        (folder / "cluster.yaml").write_text(yaml.safe_dump({**PROFILE, **(profile or {})}))

    def start(
        self, *words: str, inside: Sequence[str] = (), user: User | None = None
    ) -> subprocess.Popen[str]:
        """A verb, with its output as one text; `inside`: the words of what runs it."""
        command = [
            *inside,
            self.python if user else sys.executable,
            "-m",
            "harness.cli",
            *self._add_store(words),
        ]
        environment = self._environment
        if user:  # whose Python may be another one, without this one's packages
            packages = [path for path in sys.path if path.endswith("site-packages")]
            paths = os.pathsep.join([environment["PYTHONPATH"], *packages])
            who = {"HOME": str(self.folder), "USER": user.name, "LOGNAME": user.name}
            environment |= {"PYTHONPATH": paths, **who}
        start = subprocess.Popen if user else ForkedPopen
        return start(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **(user.process if user else {}),
        )

    def bitgrid(self, *words: str, status: int = 0, user: User | None = None) -> str:
        """A verb to its end; what it prints. Another user's runs in a process of its own."""
        if user is None:
            done = run_forked(self._add_store(words), self.folder, self._environment)
            ended, said = done.returncode, done.stdout + done.stderr
        else:
            process = self.start(*words, user=user)
            said, _ = process.communicate(timeout=900)  # a busy host
            ended = process.returncode
        assert ended == status, said
        return said

    def _add_store(self, words: Sequence[str]) -> list[str]:
        return [*words, "--store", str(self.store.root)]

    @property
    def _environment(self) -> dict[str, str]:
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}

    def launch(self, *words: str) -> str:
        return self.bitgrid("launch", "grid.yaml", "--cluster", "cluster.yaml", *words)

    def status(self) -> str:
        return self.bitgrid("status", "grid.yaml")

    @property
    def launches(self) -> list[Launch]:
        return launches.of_grid(self.store, self.folder / "grid.yaml", [])[0]

    def jobs(self) -> dict[tuple[str, int], scheduler.Queued]:
        """This place's jobs in the queue."""
        ids = {launch.id for launch in self.launches}
        found = scheduler.queue()
        return {at: job for at, job in found.items() if at[0].split(":")[1] in ids}

    def finish(self, seconds: float = 400) -> None:
        """Until no job of the place is left."""
        until(lambda: not self.jobs(), seconds, self.logs)

    def keys(self, kind: str) -> list[str]:
        """Of the kept plan: the stages of a kind."""
        (kept,) = (self.store.root / "plans").glob("*.json")
        nodes = json.loads(kept.read_text())["nodes"]
        return [key for key, node in nodes.items() if node["kind"] == kind]

    def logs(self) -> str:
        return "\n".join(
            path.read_text(errors="replace")
            for path in sorted(self.store.root.glob("launches/*/logs/*/*_log.out"))
        )

    def computed(self) -> Counter[str]:
        """How often each stage was computed to its end, by the first digits of its key."""
        return Counter(re.findall(r"^[\d:]+ done .*\((\w{8})\)", self.logs(), re.MULTILINE))

    def begun(self) -> Counter[str]:
        return Counter(re.findall(r"^[\d:]+ begin .*\((\w{8})\)", self.logs(), re.MULTILINE))

    def all_done_once(self) -> bool:
        """Whether every stage of the grid is there and was computed by exactly one job."""
        (kept,) = (self.store.root / "plans").glob("*.json")
        nodes = json.loads(kept.read_text())["nodes"]
        stored = {key[:8] for key, node in nodes.items() if node["stored"]}
        return self.computed() == Counter(stored)

    def rows(self) -> str:
        """The exported rows, which hold no time and no place."""
        self.bitgrid("report", "grid.yaml", "--out", "out")
        return (self.folder / "out" / "rows.jsonl").read_text()

    def step(self, key: str) -> int:
        """The step that a training stage last wrote, 0 before the first."""
        for path in (self.store.root / "work" / key).glob("*/metrics.jsonl"):
            if lines := path.read_text().splitlines():
                return int(json.loads(lines[-1])["step"])
        return 0


def until(ready: Callable[[], object], seconds: float, words: Callable[[], str] = str) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"waited in vain for {seconds} s\n{words()}"
        time.sleep(0.5)
