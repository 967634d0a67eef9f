"""Faults of a training's checkpoints: torn, without their log, written by two owners at once."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults.calls import count_calls, die, strike
from benchmarks.faults.owners import estrange, pause, wait_until_paused
from benchmarks.faults.trial import Ground, Result, Trial, join
from methods.training.checkpoint import Checkpoints

Damage = Callable[[Path], None]  # to the scratch folder of a training that was killed
KILLED = 4  # the step after whose checkpoint the training was killed; the one before is of step 2


def _cut(step: int, left: int) -> Damage:
    return lambda folder: os.truncate(folder / f"checkpoint-{step}.safetensors", left)


def _flip(step: int, place: float) -> Damage:
    """One bit, so far into the file."""

    def damage(folder: Path) -> None:
        path = folder / f"checkpoint-{step}.safetensors"
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 0x10
        path.write_bytes(content)

    return damage


def _mix(folder: Path) -> None:
    """The first half of one step's checkpoint, the second of another's: two writers of one file."""
    first, second = (folder / f"checkpoint-{step}.safetensors" for step in (2, KILLED))
    half = second.stat().st_size // 2
    second.write_bytes(first.read_bytes()[:half] + second.read_bytes()[half:])


def _tear_all(folder: Path) -> None:
    _flip(2, 0.5)(folder)
    _flip(KILLED, 0.9)(folder)


def _cut_log(lines: int, more: bytes = b"") -> Damage:
    def damage(folder: Path) -> None:
        log = folder / "metrics.jsonl"
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:lines]) + more)

    return damage


def _leave_odd_files(folder: Path) -> None:
    (folder / "checkpoint-8.draft").write_bytes(b"half")
    (folder / "checkpoint-x.safetensors").write_bytes(b"")
    (folder / "checkpoint-6.safetensors").mkdir()


TORN: dict[str, Damage] = {
    "last checkpoint of 0 bytes": _cut(KILLED, 0),
    "last checkpoint cut": _cut(KILLED, 5000),
    "a bit of the last checkpoint's header flipped": _flip(KILLED, 0.01),
    "a bit of the last checkpoint's tensors flipped": _flip(KILLED, 0.6),
    "last checkpoint half of another step": _mix,
    "both checkpoints torn": _tear_all,
    "the log lacks the last checkpoint's steps": _cut_log(3),
    "the log ends in half a line": _cut_log(4, b'{"step": 5, "lo'),
    "the log has a line that is not UTF-8": _cut_log(4, b'{"step": 5, "\xff"}\n'),
    "the log is gone": lambda folder: (folder / "metrics.jsonl").unlink(),
    "drafts, folders and odd names among the checkpoints": _leave_odd_files,
}


def _die_after_save() -> None:
    save = Checkpoints.save

    def save_and_die(self: Checkpoints, step: int, *rest: object) -> None:
        save(self, step, *rest)  # type: ignore[arg-type]
        if step == KILLED:
            die()

    Checkpoints.save = save_and_die  # type: ignore[method-assign]


def try_checkpoints(ground: Ground) -> Iterator[Result]:
    """What a killed training left is damaged; then a run."""
    for fault, damage in TORN.items():
        with ground.trial(empty=True) as trial:
            trial.run(before=_die_after_save)
            (folder,) = (trial.store.root / "work").glob("*/*")
            damage(folder)
            trial.run()
            # The training began twice, which is not the fault's.
            result = trial.judge(fault)
            yield result._replace(again=len(trial.computed()) - len(trial.reference) - 1)
    yield join(_overlap(ground))


def _overlap(ground: Ground) -> Iterator[Result]:
    """Two owners, each at any call of a checkpoint; both go on, and one or both are killed."""
    fault = "two owners write checkpoints at once, and are killed"
    total = count_calls(ground, "checkpoint") // 2  # of the first of two trainings
    for number in range(1, total + 1):
        chance = random.Random(number)
        with ground.trial(empty=True) as trial:
            first = trial.start_run(lambda: strike(trial.store.root, number, pause, "checkpoint"))  # noqa: B023
            wait_until_paused(first)
            estrange(trial.store.root, first.pid)
            second = trial.start_run(
                lambda: strike(trial.store.root, 1 + number % 3, pause, "checkpoint")  # noqa: B023
            )
            wait_until_paused(second)
            for process in (first, second):
                if process.poll() is None:
                    os.kill(process.pid, signal.SIGCONT)
            time.sleep(chance.uniform(0.0, 0.4))
            killed = [first, second] if number % 2 else [second]
            for process in killed:
                process.kill()
            trial.spoken += [each.wait() for each in (first, second) if each not in killed]
            yield _run_and_judge(trial, fault)


def _run_and_judge(trial: Trial, fault: str) -> Result:
    records = list((trial.store.root / "failures").glob("*.json"))
    trial.run()
    result = trial.judge(fault)._replace(again=0)  # two owners of one stage: both computed it
    if records:
        return result._replace(outcome="stuck", said=f"{len(records)} failure records")
    return result
