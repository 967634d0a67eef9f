"""The child's half of the sandbox: confines itself, and judges a program that its own child runs.

The functions' source is the child's program, so they use nothing of this module, and import what
they need themselves. Not here: starting a child and judging what it says (`sandbox`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def confine(wall_s: float, nobody: int, libraries: list[str], harness: int) -> list[str]:
    """Goes on in a child that is in every layer which the machine grants: those it has.

    `libraries`: the folders that a program may import from.
    """
    import ctypes
    import os

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: killed when the harness is
    if os.getppid() != harness:  # which it was before we asked
        os._exit(137)
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
        if isolate_files(libc, libraries, root):
            layers.append("files")
    die_with_parent(libc, wall_s)
    if "files" in layers:  # /proc shows other processes' environments, which may hold tokens
        for kind in (b"proc", b"tmpfs"):  # its own, or where that is refused nothing
            if libc.mount(kind, b"/proc", kind, ctypes.c_ulong(1), None) == 0:
                break
    if drop_rights(libc, root, nobody, libraries):
        layers.append("user")
    libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, which a change of user takes away
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: closed to programs of the same user
    return layers


def isolate_files(libc: Any, libraries: list[str], root: bool) -> bool:
    """Private mounts, all of them read-only (mount_setattr, Linux 5.12), then a small tmpfs.

    It lies on the working folder, which is all that stays writable. Whether this was granted.
    """
    import ctypes
    import os

    private, recursive, read_only = 1 << 18, 0x8000, (ctypes.c_uint64 * 4)(1, 0, 0, 0)
    here = os.getcwd()
    alone = libc.mount(b"none", b"/", None, ctypes.c_ulong(0x4000 | private), None) == 0
    # Where libraries lie in a folder that is root's own, they alone are seen there.
    hidden: dict[str, list[str]] = {}
    for library in libraries:
        above = [library[:n] for n, letter in enumerate(library) if letter == os.sep and n]
        closed = next((path for path in above if not os.stat(path).st_mode & 1), None)
        if alone and root and closed and not here.startswith(closed):
            hidden.setdefault(closed, []).append(library)
    for closed, seen in hidden.items():
        held = {library: os.open(library, os.O_PATH) for library in seen}
        if libc.mount(b"tmpfs", closed.encode(), b"tmpfs", 0, b"size=1m,mode=755") == 0:
            for library, folder in held.items():
                os.makedirs(library, exist_ok=True)
                bound = f"/proc/self/fd/{folder}".encode()
                if libc.mount(bound, library.encode(), None, ctypes.c_ulong(0x1000), None):
                    libc.umount2(closed.encode(), 2)
                    break
        for folder in held.values():
            os.close(folder)
    small = b"size=4m,nr_inodes=1000,mode=777"
    if (
        not alone
        or libc.syscall(442, -100, b"/", recursive, ctypes.byref(read_only), 32) != 0
        or libc.mount(b"tmpfs", here.encode(), b"tmpfs", 0, small) != 0
    ):
        return False
    os.chdir(here)
    return True


def die_with_parent(libc: Any, wall_s: float) -> None:
    """Goes on in a child. This process waits for it, at most `wall_s`, and ends as it did.

    Where a parent dies its child is killed, and with the first process of a namespace all others.
    """
    import os

    parent, ready = os.pipe()
    child = os.fork()
    if child:
        os.close(parent)
        os._exit(wait_for(child, wall_s) & 255)
    libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG
    os.close(ready)
    # Readable only if the parent has died already: the number of a parent outside is always 0.
    os.set_blocking(parent, False)
    try:
        os.read(parent, 1)
        os._exit(137)
    except BlockingIOError:
        os.close(parent)


def wait_for(child: int, wall_s: float) -> int:
    """The exit status of a child, minus a signal's number; SIGALRM's if it took over `wall_s`."""
    import os
    import signal

    late = []

    def stop(*_: object) -> None:
        late.append(True)
        os.kill(child, signal.SIGKILL)

    # A handler, since the first process of a namespace ignores signals that have none.
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, wall_s)
    _, status = os.waitpid(child, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    return -signal.SIGALRM if late else os.waitstatus_to_exitcode(status)


def drop_rights(libc: Any, root: bool, nobody: int, libraries: list[str]) -> bool:
    """Gives up root's user and all capabilities. Whether the user has changed."""
    import ctypes
    import os

    kept_capabilities, changed = 0, False
    if root:
        try:
            os.setgroups([])
            os.setgid(nobody)
            libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS, for the line after next
            os.setuid(nobody)
            changed = True
            # Where a library is still out of reach, reading (only) stays allowed: then
            # the guard alone keeps the program from other files.
            readable = all(os.access(library, os.R_OK | os.X_OK) for library in libraries)
            kept_capabilities = 0 if readable else 1 << 2  # CAP_DAC_READ_SEARCH
        except OSError:
            pass
    # Root's capabilities, or those that a user namespace gave us: given up.
    libc.capset(
        (ctypes.c_uint32 * 2)(0x20080522, 0),
        (ctypes.c_uint32 * 6)(kept_capabilities, kept_capabilities),
    )
    return changed


def limit_resources(memory_mib: int, timeout_s: float, threads: int) -> None:
    """Limits of CPU time, memory, file size, processes and files."""
    import resource

    seconds = max(1, round(timeout_s))
    for kind, limit, grace in (
        (resource.RLIMIT_CPU, seconds, 1),
        (resource.RLIMIT_AS, memory_mib << 20, 0),
        (resource.RLIMIT_FSIZE, 1 << 20, 0),
        (resource.RLIMIT_NPROC, threads, 0),  # or processes, which the guard refuses
        (resource.RLIMIT_NOFILE, 32, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        _, most = resource.getrlimit(kind)
        most = limit + grace if most == resource.RLIM_INFINITY else min(limit + grace, most)
        resource.setrlimit(kind, (min(limit, most), most))


def install_guard(libraries: list[str]) -> None:
    """Refuses, inside the interpreter, what no solution of a task needs."""
    import os
    import sys

    here = os.getcwd() + os.sep
    readable = (here, *(os.path.realpath(library) + os.sep for library in libraries))
    functions = (
        "chflags chmod chown exec fork kill killpg link posix_spawn remove "
        "rename rmdir startfile symlink system truncate"
    )
    refused = {f"os.{name}" for name in functions.split()}
    prefixes = (
        "ctypes.",
        "fcntl.",
        "pty.",
        "shutil.",
        "signal.",
        "socket.",
        "subprocess.",
        "syslog.",
    )
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    changing = ("os.mkdir", "os.removexattr", "os.setxattr", "os.utime")
    left = [1000]  # files and folders, as the temporary file system has

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "socket.__new__" and arguments[1] == 1:  # AF_UNIX: asyncio's pair of its own
            return
        if event in refused or event.startswith(prefixes):
            raise PermissionError(f"{event} is refused in the sandbox")
        if event in ("open", "os.listdir", "os.scandir") and not isinstance(arguments[0], int):
            flags = arguments[2] if event == "open" else 0
            writes = isinstance(flags, int) and flags & writing
            name = os.path.realpath(os.fsdecode(arguments[0] or ".")) + os.sep  # type: ignore[arg-type]
            if not name.startswith(here if writes else readable):
                done = "writing" if writes else "reading"
                raise PermissionError(f"{done} outside the folder is refused in the sandbox")
            left[0] -= bool(writes)
        if event in changing and not isinstance(arguments[0], int):
            if not os.path.realpath(os.fsdecode(arguments[0])).startswith(here):  # type: ignore[arg-type]
                raise PermissionError(f"{event} outside the folder is refused in the sandbox")
            left[0] -= 1
        if event == "sqlite3.connect":
            name = os.fsdecode(arguments[0])  # type: ignore[arg-type]
            is_inside = name[:5] != "file:" and os.path.realpath(name).startswith(here)
            if name not in ("", ":memory:") and not is_inside:
                raise PermissionError("a database outside the folder is refused in the sandbox")
        if event == "sqlite3.connect/handle":  # nor by a statement: SQLITE_LIMIT_ATTACHED
            arguments[0].setlimit(7, 0)  # type: ignore[attr-defined]
        if left[0] < 0:
            raise OSError(28, "more than 1000 files are refused in the sandbox")

    sys.addaudithook(hook)


def refuse_silent_functions() -> None:
    """Refuses what no solution needs and of which the interpreter raises no event."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("this function is refused in the sandbox")

    silent = {
        *("mkfifo", "mknod", "nice", "pidfd_open", "pidfd_send_signal"),
        *("sched_setaffinity", "sched_setparam", "sched_setscheduler", "setpriority"),
    }
    for name in ("os", "posix", "signal", "_signal"):
        module = __import__(name)
        for function in silent & vars(module).keys():
            setattr(module, function, refuse)


def imitate_checkers() -> None:
    """What a program sees of standard input and output, and cannot import, with them."""
    import io
    import sys

    class Nowhere(io.StringIO):
        def write(self, text: str) -> int:
            return len(text)

    class Nothing(io.StringIO):
        def read(self, *_: object) -> str:
            raise OSError("nothing can be read from standard input")

        readline = readlines = read  # type: ignore[assignment]

        def readable(self) -> bool:
            return False

    sys.stdin, sys.stdout, sys.stderr = Nothing(), Nowhere(), Nowhere()
    for name in ("ipdb", "joblib", "resource", "psutil", "tkinter"):
        sys.modules[name] = None  # type: ignore[assignment]


def remember_originals() -> Callable[[], bool]:
    """What tells, after a program ran, whether that on which tests rest is as it was before."""
    import builtins
    import math
    import operator
    import sys

    modules = [builtins, math, operator]
    kept = [(vars(module), dict(vars(module))) for module in modules]
    # Right programs replace these.
    unneeded = {"_", "input", "print", "open", "exit", "quit", "help"}
    missing, loaded, functions = object(), sys.modules, type(lambda: None)

    def is_genuine() -> bool:
        for now, before in kept:
            for name in before:
                if name not in unneeded and now.get(name, missing) is not before[name]:
                    return False
        case = loaded.get("unittest.case")
        if case is None:
            return True
        for name, method in vars(case.TestCase).items():
            if not (name.startswith("assert") or name in ("fail", "run")):
                continue
            if type(method) is not functions or method.__code__.co_filename != case.__file__:
                return False
        return True

    # `type` is the one name of builtins that is used within, after it was compared.
    return is_genuine


def run_program(program: bytes, report: int) -> None:
    """Runs a program with its tests and reports "end", or what it raised. Does not return."""
    import os

    # Bound before the program runs, which may replace them where they come from.
    write, leave = os.write, os._exit
    is_genuine = remember_originals()
    try:
        exec(compile(program, "<string>", "exec", dont_inherit=True), {})
    except SystemExit:
        leave(0)
    except BaseException as error:
        verdict = f"raised {type(error).__name__}: {error}".replace("\n", " ")
        write(report, verdict[:300].encode(errors="replace"))
        leave(0)
    if is_genuine():
        write(report, b"end")
    else:
        write(report, b"raised PermissionError: the program changed what its tests rest on")
    leave(0)


def run_child(nobody: int, threads: int) -> None:
    """Confines itself, and tells the harness what became of the program, run in children."""
    import ctypes
    import os
    import signal
    import sys

    report, harness, packages = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    with open(0, "rb", closefd=False) as file:
        memory, seconds, guard = file.readline().split()
        program = file.read()
    libraries = [os.path.dirname(os.__file__), *packages]
    wall_s = 3 * float(seconds) + 1  # for programs that wait
    layers = [*confine(2 * wall_s + 2, nobody, libraries, harness), "memory", "forks"]
    layers += ["guard"] * int(guard)
    sys.path += packages
    libc, here = ctypes.CDLL(None), os.getpid()

    def run(text: bytes) -> bytes:
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG
            if os.getppid() != here:
                os._exit(137)
            os.close(ours)
            os.dup2(1, report)  # nowhere: what the harness reads is out of the program's reach
            limit_resources(int(memory), float(seconds), threads)
            if int(guard):
                install_guard(libraries)
                refuse_silent_functions()
            imitate_checkers()
            run_program(text, theirs)
        os.close(theirs)
        status = wait_for(child, wall_s)
        os.set_blocking(ours, False)  # what the program started may still hold the other end
        try:
            verdict = os.read(ours, 400).replace(b"\n", b" ")
        except BlockingIOError:
            verdict = b""
        os.close(ours)
        if status in (-signal.SIGALRM, -signal.SIGXCPU):
            return b"timeout"
        if status:
            return b"killed with status %d" % status
        return verdict or b"ended before its tests did"

    verdict = run(program)
    # Nothing honest reaches the end of this. What does, said so without having run to its end.
    if verdict == b"end" and run(program + b"\nraise AssertionError") == b"end":
        verdict = b"raised PermissionError: the program reported its own end"
    os.write(report, " ".join(layers).encode() + b"\n" + verdict)
    os._exit(0)
