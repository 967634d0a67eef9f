"""Faults of single system calls on a store: the process is killed at the n-th, or it fails.

Every call that changes a store is numbered, and for every n there is a case. To open, rename, link,
make, remove and touch are seen through Python's audit events, also where C code does it; fsync is
replaced. Writing itself is not seen: it fails on disks that are full (`benchmarks.faults.places`).
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

from benchmarks.faults.trial import Ground, Result, Trial, join

EVENTS = {"os.rename", "os.mkdir", "os.link", "os.remove", "os.rmdir", "os.utime"}
Blow = Callable[[], object]


def strike(root: Path, number: int, blow: Blow, name: str = "", *, again: bool = False) -> None:
    """Have the n-th call below `root` that changes something meet `blow`, in this process.

    `name`: only calls with this in their path count. `again`: all after it too.
    """
    seen = 0

    def count(path: object) -> None:
        nonlocal seen
        if not isinstance(path, str | os.PathLike):
            return
        where = os.fspath(path)
        if not where.startswith(str(root)) or name not in where:
            return
        seen += 1
        if seen == number or (again and seen > number):
            blow()

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if event in EVENTS or (event == "open" and _writes(arguments[2])):
            count(arguments[0])

    sync = os.fsync

    def fsync(descriptor: int) -> None:
        count(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
    sys.addaudithook(hear)


def _writes(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_with(code: int) -> Blow:
    def blow() -> None:
        raise OSError(code, os.strerror(code))

    return blow


def count_calls(ground: Ground, name: str = "") -> int:
    """How many calls change the store in an undisturbed run into an empty one, with `name` in their
    path."""
    with ground.trial(empty=True) as trial:
        tally = trial.folder / "tally"
        tally.touch()

        def blow() -> None:
            with tally.open("a") as file:
                file.write(".")

        spoken = trial.run(before=lambda: strike(trial.store.root, 1, blow, name, again=True))
        assert spoken.status == 0, spoken.text
        return tally.stat().st_size


def try_kills(ground: Ground) -> Iterator[Result]:
    """kill -9 at each call, then a run."""
    results = []
    for number in range(1, count_calls(ground) + 1):
        with ground.trial(empty=True) as trial:
            trial.run(before=lambda: strike(trial.store.root, number, die))  # noqa: B023
            results.append(_go_on(trial, "kill -9 at every system call that changes the store"))
    yield join(results)


CODES = (errno.ENOSPC, errno.EIO, errno.ESTALE)


def try_errors(ground: Ground) -> Iterator[Result]:
    """A call fails, once or all after it too, then a run.

    Each way to fail has its share of the calls, all ways together have each call once.
    """
    total, ways = count_calls(ground), list(product(CODES, (False, True)))
    for place, (code, again) in enumerate(ways):
        often = "from a system call on" if again else "at a system call, once"
        results = []
        for number in range(1 + place, total + 1, len(ways)):
            with ground.trial(empty=True) as trial:
                blow = fail_with(code)
                trial.run(
                    before=lambda: strike(trial.store.root, number, blow, again=again)  # noqa: B023
                )
                results.append(_go_on(trial, f"{errno.errorcode[code]} {often}"))
        yield join(results)


def try_unrecorded(ground: Ground) -> Iterator[Result]:
    """A stage fails while its record cannot be written; then a run that may write."""
    for code in (errno.ENOSPC, errno.EROFS, errno.EIO):
        with ground.trial(empty=True) as trial:

            def before(code: int = code) -> None:
                os.environ["FAULTS_FAIL"] = "0"
                strike(trial.store.root, 1, fail_with(code), "failures", again=True)

            first = trial.run(before=before)
            kept = len(trial.reference) - len(trial.wrong())
            times = first.text.count("failures cannot be recorded")
            result = _go_on(trial, f"{errno.errorcode[code]} when a failure is recorded")
            if times != 1 or kept != 3 or first.status != 1:  # the other cell's
                why = f"said {times} times, {kept} values of the other cell, {first.status}"
                result = result._replace(outcome="stuck", said=why)
            yield result


def _go_on(trial: Trial, fault: str) -> Result:
    """The run after the fault: what was whole before it is not to be computed again."""
    whole = set(trial.reference) - set(trial.wrong())
    before = len(trial.computed())
    trial.say("run", str(trial.world.path), "--retry", "failed")
    result = trial.judge(fault)
    again = sum(key in whole for key in trial.computed()[before:])
    return result._replace(hit=0, again=again)
