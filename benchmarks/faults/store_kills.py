"""kill -9 and pauses at random moments of up to four runners that keep small values in one store.

    python -m benchmarks.faults.store_kills --kills 1000 --out benchmarks/store_kills.jsonl

A stage writes eight checkpoints, each from the one before, then its value. Every runner says that
it is on a host of its own and loses its claim by a heartbeat of 0.3 s, so that the dead are outbid
and so are those that are paused for longer: they go on later, with a claim that is another's. A
journal gets a line when a runner begins a stage, and when its value is kept. A line of JSON is
written a round; a second command goes on where the first ended.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.faults.kills import play_rounds
from harness.core import claims
from harness.core.errors import Outbid
from harness.core.stage import Stage
from harness.core.store import Store

STEPS, STAGES, SIZE = 8, 12, 100_000


@dataclass(frozen=True)
class Bytes:
    """A value of one file."""

    content: bytes

    def save(self, folder: Path) -> dict[str, Any]:
        (folder / "bytes.bin").write_bytes(self.content)
        return {"size": len(self.content)}

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any]) -> Bytes:
        return cls((folder / "bytes.bin").read_bytes())


@dataclass(frozen=True)
class Chained(Stage[Bytes]):
    """What eight steps make of a number, each from the one before."""

    kind: ClassVar[str] = "benchmark-chained"
    number: int

    def run(self, work: Path) -> Bytes:
        done, content = 0, b"begin"
        for path in work.glob("checkpoint-*"):
            if int(path.name.partition("-")[2]) > done:
                done, content = int(path.name.partition("-")[2]), path.read_bytes()
        for step in range(done + 1, STEPS + 1):
            content = make_step(self.number, step, content)
            time.sleep(0.004)
            draft = work / "checkpoint.draft"
            draft.write_bytes(content)
            draft.replace(work / f"checkpoint-{step}")
        return Bytes(content)


def make_step(number: int, step: int, content: bytes) -> bytes:
    digest = hashlib.sha256(f"{number} {step}".encode() + content).digest()
    return digest * (SIZE // len(digest))


def make_all(number: int) -> bytes:
    content = b"begin"
    for step in range(1, STEPS + 1):
        content = make_step(number, step, content)
    return content


def run_all(store: Store, journal: Path, order: list[int]) -> None:
    """What a runner does: every stage that nobody has computed or is computing."""
    stages = [Chained(number) for number in order]
    while stages := [stage for stage in stages if not store.has(stage.key)]:
        store.tidy()
        for stage in stages:
            claim = store.claim(stage.key)
            if claim is None:
                continue
            with claim:
                try:
                    scratch = store.take_over(claim)
                    if store.has(stage.key):  # kept just before its owner was outbid
                        continue
                    _write(journal, f"begin {stage.number}")
                    store.commit(stage, stage.run(scratch.path), {}, None, scratch)
                    _write(journal, f"kept {stage.number}")
                except Outbid:
                    _write(journal, f"outbid {stage.number}")
                except OSError:
                    if claim.stands:
                        raise
                    _write(journal, f"outbid {stage.number}")
        time.sleep(0.005)


def _write(journal: Path, line: str) -> None:
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (line + "\n").encode())
    os.close(file)


def start(store: Path, journal: Path, chance: random.Random, host: int) -> int:
    """A runner in a process of its own."""
    order = list(range(STAGES))
    chance.shuffle(order)
    if child := os.fork():
        return child
    status = 1
    try:
        claims._place.cache_clear()
        claims._place = lambda: f"host {host}"  # type: ignore[assignment]
        claims.EXPIRY_S, claims.HEARTBEAT_S = 0.3, 0.05
        run_all(Store(store), journal, order)
        status = 0
    finally:
        os._exit(status)


def play(folder: Path, number: int) -> dict[str, int]:
    """One store, from empty to finished under kills; counts of what went wrong."""
    chance, count = random.Random(number), 1 + number % 4
    root, journal = folder / f"store-{number}", folder / f"journal-{number}"
    store = Store(root)
    hosts = iter(range(10_000))
    runners = [start(root, journal, chance, next(hosts)) for _ in range(count)]
    kills = pauses = lost = failed = 0
    finished: set[int] = set()
    while len(finished) < STAGES:
        time.sleep(chance.uniform(0.005, 0.25))
        seen = {n for n in range(STAGES) if store.has(Chained(n).key)}
        lost += len(finished - seen)
        finished |= seen
        victim = chance.randrange(count)
        if chance.random() < 0.2:
            os.kill(runners[victim], signal.SIGSTOP)
            time.sleep(chance.uniform(0.0, 0.6))
            os.kill(runners[victim], signal.SIGCONT)
            pauses += 1
            continue
        os.kill(runners[victim], signal.SIGKILL)
        _, status = os.waitpid(runners[victim], 0)
        kills += os.WIFSIGNALED(status)
        failed += os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0
        runners[victim] = start(root, journal, chance, next(hosts))
    runners.append(start(root, journal, chance, next(hosts)))  # the last one tidies
    for runner in runners:
        _, status = os.waitpid(runner, 0)
        failed += status != 0
    time.sleep(0.35)  # the last claims expire
    claims.EXPIRY_S = 0.3
    store.tidy()
    left = [path.name for name in ("claims", "work") for path in (root / name).iterdir()]
    return {
        "round": number,
        "runners": count,
        "kills": kills,
        "pauses": pauses,
        "values": STAGES,
        "lost": lost,
        "failed": failed,
        "differing": _count_differing(store),
        **_read(journal),
        "left": len([name for name in left if not name.startswith(".")]),
        "drafts": len([name for name in left if name.startswith(".")]),  # of claims, for an hour
    }


def _count_differing(store: Store) -> int:
    return sum(store.load(Chained(n)).content != make_all(n) for n in range(STAGES))


def _read(journal: Path) -> dict[str, int]:
    """How often a value was computed again after it was kept, and how many owners were outbid.

    An owner that was paused between its claim and its first step begins late, and is outbid there.
    """
    kept: set[str] = set()
    late: Counter[str] = Counter()
    counts: Counter[str] = Counter(twice=0, outbid=0)
    for line in journal.read_text().splitlines():
        word, _, number = line.partition(" ")
        counts["outbid"] += word == "outbid"
        if number in kept:
            late[number] += {"begin": 1, "outbid": -1}.get(word, 0)
            counts["twice"] += word == "kept"
        if word == "kept":
            kept.add(number)
    counts["twice"] += sum(max(0, begun) for begun in late.values())
    return dict(counts)


def main() -> None:
    words = "kill -9 and pauses of runners of one store"
    play_rounds(words, lambda folder: partial(play, folder))


if __name__ == "__main__":
    main()
