"""Runs generated Python code: the one place where text that a model wrote is executed.

Each program runs in an interpreter of its own (`python -I -S`), which confines itself before it
reads the program: limits on CPU time, memory, file size and processes; where the kernel allows it,
namespaces without a network, with their own process ids and with every file system read-only but
an empty temporary folder; an unprivileged user when started by root; and, everywhere, a guard in
the interpreter that refuses processes, sockets, writes outside the folder and reads outside it and
the standard library. A program passes if it and its tests run to their end, which is shown by a
secret that the parent sends after the program.

This stops accidents and ordinary mischief. It is no defence against a program written to break out
of CPython, nor against one that hunts for the secret in order to cheat its tests: it runs in the
process that will read the secret, so no frame or pipe there could be out of its reach.
"""

from __future__ import annotations

import contextlib
import fcntl
import inspect
import math
import os
import secrets
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

_NOBODY = 65_533  # unprivileged and, unlike 65534, not shared with network file systems
_PIPE = 60_000  # bytes that a pipe takes without a reader
_WIDE = 1_000_000  # and when widened, as any user may
_REPORT = 4_096  # bytes that we read back; a program's own output goes nowhere


@dataclass(frozen=True)
class Outcome:
    """Whether a program passed; the reason in words; the layers of confinement that held."""

    passed: bool
    reason: str
    layers: tuple[str, ...] = ()


def execute(
    code: str,
    timeout_s: float = 3.0,
    memory_mib: int = 512,
    tests: str = "",
    guard: bool = True,
) -> Outcome:
    """Runs `code`, then `tests` in the same namespace; passes if both reach their end.

    `timeout_s` counts CPU seconds, so that a busy machine fails no program that a quiet one
    passes; a program that only waits is stopped after three times as long.
    `guard=False` leaves out the interpreter's own guard; it exists to test the kernel's layers.
    """
    token = secrets.token_hex(16)
    parts = [code.encode(errors="replace"), tests.encode(errors="replace"), token.encode()]
    header = f"{memory_mib} {timeout_s} {int(guard)} {' '.join(str(len(p)) for p in parts)}"
    payload = header.ljust(80).encode() + b"".join(parts)
    if len(payload) > _WIDE:
        return Outcome(False, f"program too long: {len(payload)} bytes")
    folder = tempfile.mkdtemp(prefix="bitgrid-")
    try:
        if os.geteuid() == 0:
            os.chown(folder, _NOBODY, _NOBODY)
        report, status = _run(payload, folder, 3 * timeout_s + 1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _judge(report, status, token)


def execute_all(
    programs: Sequence[tuple[str, str]],
    timeout_s: float = 3.0,
    memory_mib: int = 512,
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


def _run(payload: bytes, folder: str, wall_s: float) -> tuple[bytes, int | None]:
    """The child's report and exit status; None when it had to be killed for time."""
    ours, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _CHILD, str(theirs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
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


def _judge(report: bytes, status: int | None, token: str) -> Outcome:
    lines = report.decode(errors="replace").split("\n")
    layers = tuple(lines[0].split())
    verdict = lines[1] if len(lines) > 1 else ""
    if status is None or status == 256 - signal.SIGXCPU:
        return Outcome(False, "timeout", layers)
    if verdict == f"end {token}":
        return Outcome(True, "passed", layers)
    if verdict.startswith("raised "):
        return Outcome(False, verdict.removeprefix("raised "), layers)
    if status != 0:
        return Outcome(False, f"killed with status {status}", layers)
    return Outcome(False, "ended before its tests did", layers)


# From here on: the child's half. The functions' source is the child's program, so they use nothing
# from this module and import what they need themselves.


def _confine(memory_mib: int, timeout_s: float, nobody: int) -> list[str]:
    """Puts a grandchild of this process into every layer that the machine grants."""
    import ctypes
    import os
    import resource

    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_ipc, new_user, new_pid, new_net = 0x20000, 0x8000000, 1 << 28, 1 << 29, 1 << 30
    layers = []
    root, uid, gid = os.geteuid() == 0, os.geteuid(), os.getegid()
    wanted = new_mounts | new_ipc | new_pid | new_net | (0 if root else new_user)
    if libc.unshare(wanted) == 0:
        layers += ["network", "processes"]
        if not root:
            try:
                for name, line in (
                    ("setgroups", "deny"),
                    ("uid_map", f"0 {uid} 1"),
                    ("gid_map", f"0 {gid} 1"),
                ):
                    with open(f"/proc/self/{name}", "w") as file:
                        file.write(line)
            except OSError:
                pass
        # Private mounts, all of them read-only (mount_setattr, Linux 5.12), then a small tmpfs on
        # the working folder, which is all that stays writable.
        private, recursive, read_only = 1 << 18, 0x8000, (ctypes.c_uint64 * 4)(1, 0, 0, 0)
        here = os.getcwd()
        alone = libc.mount(b"none", b"/", None, ctypes.c_ulong(0x4000 | private), None) == 0
        # Where the standard library lies in a folder that is root's own, it alone is seen there.
        library = os.path.dirname(os.__file__)
        above = [library[:n] for n, letter in enumerate(library) if letter == os.sep and n]
        closed = next((path for path in above if not os.stat(path).st_mode & 1), None)
        if alone and root and closed and not here.startswith(closed):
            held = os.open(library, os.O_PATH)
            if libc.mount(b"tmpfs", closed.encode(), b"tmpfs", 0, b"size=1m,mode=755") == 0:
                os.makedirs(library)
                bound = f"/proc/self/fd/{held}".encode()
                if libc.mount(bound, library.encode(), None, ctypes.c_ulong(0x1000), None):
                    libc.umount2(closed.encode(), 2)
            os.close(held)
        if (
            alone
            and libc.syscall(442, -100, b"/", recursive, ctypes.byref(read_only), 32) == 0
            and libc.mount(b"tmpfs", here.encode(), b"tmpfs", 0, b"size=4m,mode=777") == 0
        ):
            os.chdir(here)
            layers.append("files")
    # Twice: the first process of a namespace ignores the signal that ends a CPU limit.
    for _ in range(2):
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            os._exit(os.waitstatus_to_exitcode(status) & 255)
    kept_capabilities = 0
    if root:
        try:
            os.setgroups([])
            os.setgid(nobody)
            libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS, for the line after next
            os.setuid(nobody)
            layers.append("user")
            # Where the standard library is still out of reach, reading (only) stays allowed: then
            # the guard alone keeps the program from other files.
            kept_capabilities = (
                0 if os.access(os.__file__, os.R_OK) else 1 << 2
            )  # CAP_DAC_READ_SEARCH
        except OSError:
            pass
    # Root's capabilities, or those that a user namespace gave us: given up.
    libc.capset(
        (ctypes.c_uint32 * 2)(0x20080522, 0),
        (ctypes.c_uint32 * 6)(kept_capabilities, kept_capabilities),
    )
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    seconds = max(1, round(timeout_s))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    for kind, limit in (
        (resource.RLIMIT_AS, memory_mib << 20),
        (resource.RLIMIT_FSIZE, 1 << 20),
        (resource.RLIMIT_NPROC, 1),  # this process is the one: it cannot fork
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):
            continue
        layers.append({resource.RLIMIT_AS: "memory", resource.RLIMIT_NPROC: "forks"}.get(kind, ""))
    return [layer for layer in layers if layer]


def _install_guard() -> None:
    """Refuses, inside the interpreter, what no solution of a task needs."""
    import os
    import sys

    here = os.getcwd() + os.sep
    library = os.path.realpath(os.path.dirname(os.__file__)) + os.sep
    refused = [
        "ctypes.",
        "fcntl.",
        "os.chflags",
        "os.chmod",
        "os.chown",
        "os.exec",
        "os.fork",
        "os.kill",
        "os.link",
        "os.posix_spawn",
        "os.putenv",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.startfile",
        "os.symlink",
        "os.system",
        "os.truncate",
        "os.unsetenv",
        "pty.",
        "shutil.",
        "signal.",
        "socket.",
        "subprocess.",
        "syslog.",
    ]
    prefixes = tuple(name for name in refused if name.endswith("."))
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in refused or event.startswith(prefixes):
            raise PermissionError(f"{event} is refused in the sandbox")
        if event in ("open", "os.listdir", "os.scandir") and not isinstance(arguments[0], int):
            flags = arguments[2] if event == "open" else 0
            writes = isinstance(flags, int) and flags & writing
            name = os.path.realpath(os.fsdecode(arguments[0] or ".")) + os.sep  # type: ignore[arg-type]
            if not name.startswith(here if writes else (here, library)):
                done = "writing" if writes else "reading"
                raise PermissionError(f"{done} outside the folder is refused in the sandbox")
        if event == "os.mkdir" and not os.path.realpath(str(arguments[0])).startswith(here):
            raise PermissionError("os.mkdir outside the folder is refused in the sandbox")

    sys.addaudithook(hook)


def _child(nobody: int) -> None:
    """Confines itself, then reads program, tests and secret one after the other."""
    import os
    import sys

    def read(size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = os.read(0, size - len(data))
            if not more:
                break
            data += more
        return data

    report = int(sys.argv[1])
    memory, seconds, guard, *sizes = read(80).split()
    layers = _confine(int(memory), float(seconds), nobody)
    if int(guard):
        layers.append("guard")
        _install_guard()
    os.write(report, (" ".join(layers) + "\n").encode())
    scope: dict[str, object] = {"__name__": "__main__"}
    try:
        for size in sizes[:2]:
            exec(compile(read(int(size)), "<program>", "exec"), scope)
    except SystemExit:
        os._exit(0)
    except BaseException as error:
        verdict = f"raised {type(error).__name__}: {error}".replace("\n", " ")
        os.write(report, verdict[:300].encode(errors="replace"))
        os._exit(0)
    os.write(report, b"end " + read(int(sizes[2])))
    os._exit(0)


_CHILD = "\n".join(inspect.getsource(f) for f in (_confine, _install_guard, _child)) + (
    f"\n_child({_NOBODY})\n"
)
