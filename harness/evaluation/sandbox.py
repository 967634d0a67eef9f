"""Runs generated Python code: the one place where text that a model wrote is executed.

A program and its tests are one text, run as the published checkers of HumanEval and MBPP run it
(openai/human-eval and the metric code_eval, which lm-eval uses): executed in an empty namespace, so
that `__name__` is "builtins" and a main block does not run; installed packages can be imported;
reading standard input raises OSError; what is printed goes nowhere; `sys.exit` fails. Where they
take a function out of a module (`os.remove = None`), the sandbox refuses the call. Unlike there,
time is that of the CPU, and memory has a limit.

Each program runs in an interpreter of its own (`python -I -S`), which confines itself before it
reads the program: limits on CPU time, memory, file size and processes; where the kernel allows it,
namespaces without a network, with their own process ids and with every file system read-only but
an empty temporary folder; an unprivileged user when started by root; and, everywhere, a guard in
the interpreter that refuses processes, sockets, writes outside the folder and reads outside it, the
standard library and installed packages.

A program passes if it and its tests run to their end. It runs in a child of the process that says
so to the harness, and that runs no foreign code. A program that passed is run once more, with a
last line that raises: if it is said to reach the end of that too, it told its end itself, and
fails. So does one that replaced what its tests rest on (builtins, math, operator, unittest's
assertions). Programs die with the harness, however it dies, and a later run removes their folders.

This stops accidents and ordinary mischief. It is no defence against a program written to break out
of CPython, nor against one that knows this sandbox and cheats its tests: it shares a process with
them, and may tell the two runs apart; and an object whose `__eq__` says that it equals everything
passes here as it does the published checkers.
"""

from __future__ import annotations

import contextlib
import fcntl
import inspect
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.evaluation.sandbox_child import (
    confine,
    die_with_parent,
    drop_rights,
    imitate_checkers,
    install_guard,
    isolate_files,
    limit_resources,
    refuse_silent_functions,
    remember_originals,
    run_child,
    run_program,
    wait_for,
)

_NOBODY = 65_533  # unprivileged and, unlike 65534, not shared with network file systems
_PREFIX, _NEW_S = "bitgrid-sandbox-", 60  # of folders; seconds in which one may not be locked yet
_NAMESPACES = ("network", "processes", "files")  # the layers that a weak sandbox lacks
_PIPE = 60_000  # bytes that a pipe takes without a reader
_WIDE = 1_000_000  # and when widened, as any user may
_REPORT = 4_096  # bytes that we read back; a program's own output goes nowhere
_MEMORY_MIB = 1024  # of addresses; to import pandas takes 500
_THREADS = 64  # at most, of all programs of one user


# Folders of installed packages. -S keeps them from the child, since code in `.pth` files would run.
_PACKAGES = [
    path
    for path in dict.fromkeys(map(os.path.abspath, sys.path))
    if os.path.basename(path) in ("site-packages", "dist-packages") and os.path.isdir(path)
]
# Libraries below NumPy start a thread a core, each with its share of memory.
_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}


@dataclass(frozen=True)
class Outcome:
    """Whether a program passed; the reason in words; the layers of confinement that held."""

    passed: bool
    reason: str
    layers: tuple[str, ...] = ()


def execute(
    code: str,
    timeout_s: float = 3.0,
    memory_mib: int = _MEMORY_MIB,
    tests: str = "",
    guard: bool = True,
) -> Outcome:
    """Runs `code` and, on the lines after it, `tests`; passes if both reach their end.

    `timeout_s` counts CPU seconds, so that a busy machine fails no program that a quiet one
    passes; a program that only waits is stopped after three times as long.
    `guard=False` leaves out the interpreter's own guard; it exists to test the kernel's layers.
    """
    header = f"{memory_mib} {timeout_s} {int(guard)}"
    payload = f"{header}\n{code}\n{tests}".encode(errors="replace")
    if len(payload) > _WIDE:
        return Outcome(False, f"program too long: {len(payload)} bytes")
    _sweep()
    folder = tempfile.mkdtemp(prefix=_PREFIX)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)  # let go when we die, however: see `_sweep`
        if os.geteuid() == 0:
            os.chown(folder, _NOBODY, _NOBODY)
        report, status = _run(payload, folder, 6 * timeout_s + 6)
    finally:
        _remove(folder)
        os.close(held)
    return _judge(report, status)


def execute_all(
    programs: Sequence[tuple[str, str]],
    timeout_s: float = 3.0,
    memory_mib: int = _MEMORY_MIB,
    workers: int = 2,
) -> list[Outcome]:
    """`execute` for many (code, tests), `workers` at a time; each still has its own interpreter."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda p: execute(p[0], timeout_s, memory_mib, p[1]), programs))


def pass_at_k(
    references: Sequence[str],
    predictions: Sequence[Sequence[str]],
    k: Sequence[int] = (1,),
    **_: object,
) -> tuple[dict[str, float], list[list[Outcome]]]:
    """The unbiased estimate of HumanEval's paper: the share of problems that k samples solve.

    Called as `compute` of the package evaluate's metric `code_eval`, in whose place it stands; one
    list of predicted programs for each problem, whose tests are its reference.
    """
    outcomes = [
        execute_all([(program, tests) for program in programs])
        for tests, programs in zip(references, predictions, strict=True)
    ]
    rates: dict[str, list[float]] = {}
    for tried in outcomes:
        n, right = len(tried), sum(outcome.passed for outcome in tried)
        for size in k:
            if size <= n:
                unsolved = math.comb(n - right, size) / math.comb(n, size)
                rates.setdefault(f"pass@{size}", []).append(1 - unsolved)
    return {
        name: math.fsum(task_rates) / len(task_rates) for name, task_rates in rates.items()
    }, outcomes


@cache
def find_missing_layers() -> tuple[str, ...]:
    """The layers that this machine's kernel does not grant; found once, by a program."""
    held = execute("pass").layers
    return tuple(layer for layer in _NAMESPACES if layer not in held)


@cache
def _sweep() -> None:
    """Removes folders whose owner was killed: nobody holds their lock, and they are not new."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            held = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(held).st_mtime > _NEW_S:
                    _remove(str(folder))
            finally:
                os.close(held)


def _remove(folder: str) -> None:
    """Removes what a program wrote, also folders that are closed or nested past recursion."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.exists(folder):
        for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            if command[0] == "rm" or os.geteuid() != 0:  # who needs no rights changes none
                subprocess.run([*command, "--", folder], stderr=subprocess.DEVNULL, check=False)


def _run(payload: bytes, folder: str, wall_s: float) -> tuple[bytes, int | None]:
    """The child's report and exit status; None when it had to be killed for time."""
    ours, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _CHILD, str(theirs), str(os.getpid()), *_PACKAGES],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", **_ONE_THREAD},
        pass_fds=(theirs,),
        start_new_session=True,
    )
    os.close(theirs)
    report, late = b"", False
    try:
        assert process.stdin is not None
        if len(payload) > _PIPE:
            fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, len(payload))
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(payload)
            process.stdin.close()
        deadline = time.monotonic() + wall_s
        while len(report) < _REPORT:
            ready, _, _ = select.select([ours], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                late = True
                break
            read = os.read(ours, _REPORT)
            if not read:
                break
            report += read
        if not late:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                late = True
    finally:
        os.close(ours)
        # The whole group, also after a normal end: nothing that it started may live on.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return report, None if late else process.returncode


def _judge(report: bytes, status: int | None) -> Outcome:
    said, _, verdict = report.decode(errors="replace").partition("\n")
    layers = tuple(said.split())
    if verdict == "end":
        return Outcome(True, "passed", layers)
    if verdict:
        return Outcome(False, verdict.removeprefix("raised "), layers)
    return Outcome(False, "timeout" if status is None else f"killed with status {status}", layers)


_PARTS = (
    *(confine, isolate_files, die_with_parent, wait_for, drop_rights, limit_resources),
    *(
        install_guard,
        refuse_silent_functions,
        imitate_checkers,
        remember_originals,
        run_program,
        run_child,
    ),
)
_SOURCES = ["from __future__ import annotations", *(inspect.getsource(part) for part in _PARTS)]
_CHILD = "\n".join(_SOURCES) + f"\nrun_child({_NOBODY}, {_THREADS})\n"
