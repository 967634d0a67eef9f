"""Faults of owners: two at once, one that pauses and comes back, dead ones, clocks that are wrong.

Another host's owner is one whose claim names another place: a claim of this host's process is
rewritten so. Its heartbeat is set back where it is to have expired.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults.calls import count_calls, strike
from benchmarks.faults.trial import Ground, Process, Result, Trial, join

TOKEN = "0badcafe"
DEAD = {"host": "elsewhere", "place": "elsewhere", "pid": 1, "started": 1.0, "token": TOKEN}


def estrange(store: Path, pid: int | None = None, age_s: float = 1000.0) -> int:
    """Have claims (of a process) be another host's, untouched for so long; how many there were."""
    found = 0
    for path in (store / "claims").glob("[!.]*"):
        try:
            owner = json.loads(path.read_text())
            if pid is not None and owner["pid"] != pid:
                continue
            draft = path.with_name(f".estranged.{os.getpid()}")
            draft.write_text(json.dumps({**owner, "host": "elsewhere", "place": "elsewhere"}))
            then = time.time() - age_s
            os.utime(draft, (then, then))
            if path.exists():
                draft.replace(path)
                found += 1
            else:
                draft.unlink()
        except (OSError, ValueError, KeyError):
            continue
    return found


def pause() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def wait_until_paused(process: Process, limit_s: float = 60.0) -> bool:
    """Whether it paused rather than ended."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        pid, status = os.waitpid(process.pid, os.WNOHANG | os.WUNTRACED)
        if pid and os.WIFSTOPPED(status):
            return True
        if pid:
            process.status = os.waitstatus_to_exitcode(status)
            return False
        time.sleep(0.005)
    return False


PAUSES = (
    "owner paused, outbid, back when the other had ended",
    "owner paused, outbid, back while the other went on",
    "owner paused, outbid, back and one of the two killed",
)


def try_pauses(ground: Ground, every: int = 9) -> Iterator[Result]:
    """An owner pauses at a call that changes the store, is outbid, and comes back.

    Once after the other has ended, once while it goes on, and once it is killed then, in the middle
    of what it writes. Each has another part of every ninth call.
    """
    total = count_calls(ground)
    for place, fault in enumerate(PAUSES):
        results = []
        for number in range(1 + place * every // len(PAUSES), total + 1, every):
            with ground.trial(empty=True) as trial:
                results.append(_pause(trial, number, fault))
        yield join(results)


def _pause(trial: Trial, number: int, fault: str) -> Result:
    chance = random.Random(f"{fault} {number}")
    first = trial.start_run(before=lambda: strike(trial.store.root, number, pause))
    paused = wait_until_paused(first)
    estrange(trial.store.root, first.pid)
    second = trial.start_run()
    processes = [first, second]
    if "had ended" in fault:
        trial.spoken.append(second.wait())
    else:
        time.sleep(chance.uniform(0.1, 0.7))
    if paused:
        os.kill(first.pid, signal.SIGCONT)
    if "killed" in fault:
        time.sleep(chance.uniform(0.0, 0.2))
        victim = chance.choice(processes)
        victim.kill()
        if victim is second:  # of another host too: the first is told by its heartbeat
            estrange(trial.store.root, second.pid)
        processes.remove(victim)
    trial.spoken += [process.wait() for process in processes]
    statuses = [each.status for each in trial.spoken]
    records = list((trial.store.root / "failures").glob("*.json"))
    trial.run()
    result = trial.judge(fault)._replace(again=0)  # two owners of one stage: both computed it
    if result.outcome == "healed" and (records or any(statuses)):
        why = f"{len(records)} failure records, exit status {statuses}"
        return result._replace(outcome="stuck", said=why + " / " + result.said)
    return result


def _leave_dead(trial: Trial) -> None:
    """Claims, scratch and drafts of owners that are dead, of stages that are done and to come."""
    names = trial.world.names()
    shutil.rmtree(trial.store.path(names["score one 0"]))
    here = json.dumps({**DEAD, "host": os.uname().nodename})
    for number, key in enumerate(names.values()):
        draft = trial.store.root / "work" / key / TOKEN / "value.draft"
        draft.mkdir(parents=True)
        (draft / "model.safetensors").write_bytes(b"half")
        draft.with_name("checkpoint-2.draft").write_bytes(b"half")
        (trial.store.root / "claims").mkdir(exist_ok=True)
        claim = trial.store.root / "claims" / f"{key}.{number}"
        claim.write_text(here if number % 2 else json.dumps(DEAD))
        os.utime(claim, (time.time() - 1000,) * 2)


def count_left(store: Path) -> dict[str, int]:
    """What is neither a value nor a plan, by folder."""
    kinds = ("claims", "work", "failures")
    return {kind: len(list((store / kind).glob("*"))) for kind in kinds}


def try_dead(ground: Ground) -> Iterator[Result]:
    """What dead owners left: it is out of the way, and gone after the run."""
    with ground.trial() as trial:
        _leave_dead(trial)
        trial.look()
        trial.run()
        hit = [ground.world.names()["score one 0"]]
        result = trial.judge("claims, scratch and drafts of dead owners", hit)
        left = count_left(trial.store.root)
        said = f"left: {', '.join(f'{n} {kind}' for kind, n in left.items() if n) or 'nothing'}"
        yield result._replace(said=said)


def try_clocks(ground: Ground) -> Iterator[Result]:
    """Hosts whose clocks are hours apart: who lives is told by the file system's clock."""
    key = ground.world.names()["score one 0"]
    for fault, ahead_s in (
        ("this host's clock an hour ahead, another's owner alive", 3600.0),
        ("this host's clock an hour behind, another's owner dead", -3600.0),
    ):
        with ground.trial() as trial:
            shutil.rmtree(trial.store.path(key))
            claim = trial.store.root / "claims" / f"{key}.0"
            claim.parent.mkdir(exist_ok=True)
            claim.write_text(json.dumps(DEAD))
            alive = ahead_s > 0
            os.utime(claim, (time.time() - (0 if alive else 1000),) * 2)
            real = time.time

            def shift(ahead_s: float = ahead_s) -> None:
                time.time = lambda: real() + ahead_s  # noqa: B023

            ended = threading.Event()
            beat = threading.Thread(target=_beat, args=(claim, ended, alive))
            beat.start()
            running = trial.start_run(before=shift)
            time.sleep(6.0 if alive else 0.0)
            early = trial.computed()
            ended.set()
            beat.join()
            if alive:  # now it dies
                with contextlib.suppress(FileNotFoundError):
                    os.utime(claim, (time.time() - 1000,) * 2)
            trial.spoken.append(running.wait())
            result = trial.judge(fault, [key])
            if alive and early:
                result = result._replace(outcome="stuck", said="a living owner was outbid")
            yield result


def _beat(claim: Path, ended: threading.Event, alive: bool) -> None:
    with contextlib.suppress(FileNotFoundError):  # it was outbid, and is gone
        while alive and not ended.wait(1.0):
            os.utime(claim)


def try_late(ground: Ground) -> Iterator[Result]:
    """Files of another host's value that are seen late: missing, then short, then whole."""
    model, score = (ground.world.names()[name] for name in ("train 0", "score one 0"))

    def be_elsewhere() -> None:
        import socket

        socket.gethostname = lambda: "elsewhere"  # type: ignore[assignment]

    with ground.trial(empty=True) as trial:
        trial.run(before=be_elsewhere)
        trial.journal.unlink()
        shutil.rmtree(trial.store.path(score))
        path = trial.store.path(model) / "model.safetensors"
        content = path.read_bytes()
        path.unlink()
        for part in trial.store.path(model).iterdir():
            os.utime(part)

        def appear() -> None:
            for end in (1000, len(content)):
                time.sleep(2.0)
                path.write_bytes(content[:end])

        thread = threading.Thread(target=appear)
        thread.start()
        trial.run()
        thread.join()
        yield trial.judge("files of another host seen 4 s late", [score])
