"""One trial: a store, what is done to it, verbs in processes of their own, and a judgement.

Processes are forked from this one, which has imported everything: a verb takes a fraction of a
second. Not here: the faults (a module for each kind), the grid (`benchmarks.faults.world`).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.faults.world import JOURNAL, World, digest_values
from harness.cli import running, verb
from harness.cli.main import VERBS, main
from harness.core.store import Store
from reports import plots

LIMIT_S = 90.0  # for a verb


class Result(NamedTuple):
    """What became of a fault. Counts are of values, summed over `cases`."""

    fault: str
    cases: int
    outcome: (
        str  # healed, refused, found, silent, stuck, hangs or traceback: the worst of all cases
    )
    hit: int  # what the fault itself destroyed
    lost: int  # not there or not right in the end
    again: int  # computed again
    said: str  # the first lines that an undisturbed run does not say


# From good to bad.
OUTCOMES = ("healed", "refused", "found", "stuck", "hangs", "traceback", "silent")


class Skipped(Exception):
    """A fault that cannot be inflicted here, with the reason."""


@dataclass
class Spoken:
    """What a process said, and its end: the exit status, minus the signal, or None: no end."""

    status: int | None
    text: str


@dataclass
class Process:
    """A forked process that does one thing; its output lies in a file."""

    pid: int
    output: Path
    status: int | None = None

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, limit_s: float = LIMIT_S) -> Spoken:
        deadline = time.monotonic() + limit_s
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                return Spoken(None, self.output.read_text())
            time.sleep(0.005)
        return Spoken(self.status, self.output.read_text())

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)


def start(action: Callable[[], object], output: Path) -> Process:
    """Do something in a forked process; a result that is a number is its exit status."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Process(pid, output)
    status = 70
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        result = action()
        status = result if isinstance(result, int) else 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


@dataclass
class Trial:
    """A store of a world, in a folder of its own, and all that is said about it."""

    world: World
    folder: Path
    reference: dict[str, str | None]  # digests of an undisturbed run's values
    usual: frozenset[str]  # lines that an undisturbed run says too
    spoken: list[Spoken] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o777)  # some verbs run as another user

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    def start(self, *words: str, before: Callable[[], object] = lambda: None) -> Process:
        """A verb of the command in a process of its own; `before` is done there first."""

        def act() -> int:
            os.environ[JOURNAL] = str(self.journal)
            os.chdir(self.folder)
            before()
            use(self.world)
            return main([*words, "--store", str(self.store.root)])

        return start(act, self.folder / f"{len(self.spoken)}-{os.urandom(3).hex()}.txt")

    def say(
        self,
        *words: str,
        before: Callable[[], object] = lambda: None,
        limit_s: float = LIMIT_S,
    ) -> Spoken:
        spoken = self.start(*words, before=before).wait(limit_s)
        self.spoken.append(spoken)
        return spoken

    def run(self, before: Callable[[], object] = lambda: None, limit_s: float = LIMIT_S) -> Spoken:
        return self.say("run", str(self.world.path), before=before, limit_s=limit_s)

    def start_run(self, before: Callable[[], object] = lambda: None) -> Process:
        return self.start("run", str(self.world.path), before=before)

    def look(self) -> None:
        """All verbs that only look."""
        self.say("status", str(self.world.path))
        if knows("verify"):
            self.say("verify", str(self.world.path))
        self.say("report", str(self.world.path))
        self.say("gc")

    def computed(self) -> list[str]:
        """Keys of what was computed, in order, as often as it was."""
        names = self.world.names()
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [names[line] for line in lines if line in names]

    def wrong(self) -> list[str]:
        """Keys of values that are not as those of an undisturbed run."""
        seen = digest_values(self.store, list(self.reference))
        return [key for key, digest in seen.items() if digest != self.reference[key]]

    def judge(self, fault: str, hit: Collection[str] = ()) -> Result:
        """From what the last verb, a run, ended with, and what is in the store now."""
        lost, again, ended = self.wrong(), self.computed(), self.spoken[-1].status
        said = self.unusual()
        if any("Traceback (most recent" in each.text for each in self.spoken):
            outcome = "traceback"
        elif ended is None:
            outcome = "hangs"
        elif not lost and ended == 0:
            outcome = "healed"
        elif ended == 2:
            outcome = "refused"
        elif ended == 0 and knows("verify") and self._is_found(lost):
            outcome = "found"
        else:
            outcome = "silent" if ended == 0 else "stuck"
        return Result(fault, 1, outcome, len(hit), len(lost), len(again), " / ".join(said[:2]))

    def _is_found(self, lost: list[str]) -> bool:
        verified = self.say("verify", str(self.world.path))
        return all(key[:8] in verified.text for key in lost) and verified.status != 0

    def unusual(self) -> list[str]:
        """Lines that an undisturbed run does not say, the most telling ones first."""
        lines = [line for each in self.spoken for line in each.text.splitlines()]
        new = [
            line
            for line in dict.fromkeys(lines)
            if line.strip() and mask(line) not in self.usual and "it/s]" not in line  # a bar
        ]
        shown = [self.shorten(line) for line in new]
        telling = [line for line in shown if "STORE" in line or "bitgrid:" in line]
        ends = [line for line in shown if re.match(r"\w*(Error|Exception)\b", line)]
        return list(dict.fromkeys([*ends, *telling] or shown))

    def shorten(self, line: str) -> str:
        """A line of output without what differs from place to place, or is long."""
        line = line.strip().replace(str(self.store.root), "STORE")
        line = re.sub(r"^\S+\.py:\d+: \w*Warning: ", "warning: ", line)
        line = re.sub(r"\b([0-9a-f]{4})[0-9a-f]{20}\b", r"\1…", line)
        line = re.sub(r"(?<![0-9a-f])[0-9a-f]{8}(?![0-9a-f])", "…", line)  # differs each time
        return line.replace(str(self.folder), "…")[:200]


def knows(name: str) -> bool:
    """Whether the command has a verb."""
    return any(each.name == name for each in VERBS)


def mask(line: str) -> str:
    """A line without what differs from run to run."""
    return re.sub(r"[0-9a-f]{8,}|[\d.:]+", "#", re.sub(r"/\S+", "/", line)).strip()


class Ground:
    """An undisturbed store, of which each trial gets a copy."""

    def __init__(self, folder: Path, world: World | None = None) -> None:
        torch.set_num_threads(1)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        self.world = world or World(folder / "faults.yaml")
        warm_up(self.world, folder)
        whole = Trial(self.world, folder / "undisturbed", {}, frozenset())
        for _ in range(2):
            spoken = whole.run()
            assert spoken.status == 0, spoken.text
        whole.look()
        self.whole = whole
        self.reference = digest_values(whole.store, list(self.world.names().values()))
        assert None not in self.reference.values(), spoken.text
        lines = (line for each in whole.spoken for line in each.text.splitlines())
        self.usual = frozenset(map(mask, lines))
        self._count = 0

    @contextlib.contextmanager
    def trial(self, *, empty: bool = False) -> Iterator[Trial]:
        """A copy of the undisturbed store, or an empty one; removed afterwards."""
        self._count += 1
        folder = self.folder / f"trial-{os.getpid()}-{self._count}"
        trial = Trial(self.world, folder, self.reference, self.usual)
        try:
            if not empty:
                shutil.copytree(self.whole.store.root, trial.store.root)
            yield trial
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def keys(self) -> list[str]:
        return list(self.reference)


def use(world: World) -> None:
    """Have the verbs of this process take a world for the grid, and draw nothing.

    Drawing is most of a run's time, and reads nothing more of a store than tables do.
    """
    for module in (running, verb):
        module.load_grid = lambda *_, **__: world.grid()  # type: ignore[attr-defined]
    plots.encode_figure = lambda figure: {"png": b""}


def warm_up(world: World, folder: Path) -> None:
    """Do once, in this process, what verbs do: forked ones find it imported and compiled."""
    here = Path.cwd()
    world.grid()  # its file is there
    (folder / "warm").mkdir()
    os.chdir(folder / "warm")
    try:
        use(world)
        for words in (["run", str(world.path)], ["status", str(world.path)], ["gc"]):
            with contextlib.redirect_stdout(io.StringIO()):
                assert main([*words, "--store", "store"]) == 0
    finally:
        os.chdir(here)


def join(results: Iterable[Result], fault: str | None = None) -> Result:
    """Several cases of a fault as one: the worst outcome, what was said there, sums."""
    cases = list(results)
    worst = max(cases, key=lambda each: OUTCOMES.index(each.outcome))
    return Result(
        fault or worst.fault,
        sum(each.cases for each in cases),
        worst.outcome,
        sum(each.hit for each in cases),
        sum(each.lost for each in cases),
        sum(each.again for each in cases),
        worst.said or next((each.said for each in cases if each.said), ""),
    )
