"""The child's half of the sandbox: confines itself, then runs a program as published checkers do.

The functions' source is the child's program, so they use nothing of this module, and import what
they need themselves. Not here: starting a child and judging what it says (`sandbox`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def confine(
    memory_mib: int, timeout_s: float, nobody: int, threads: int, libraries: list[str], harness: int
) -> list[str]:
    """Puts a grandchild of this process into every layer that the machine grants.

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
    # Twice: the first process of a namespace ignores the signal that ends a CPU limit.
    for _ in range(2):
        die_with_parent(libc, round(3 * timeout_s) + 2)
    if drop_rights(libc, root, nobody, libraries):
        layers.append("user")
    libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, which a change of user takes away
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    return layers + limit_resources(memory_mib, timeout_s, threads)


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


def die_with_parent(libc: Any, wall_s: int) -> None:
    """Goes on in a child. This process waits for it, at most `wall_s`, and ends as it did.

    Where a parent dies its child is killed, and with the first process of a namespace all others.
    """
    import os
    import signal

    parent, ready = os.pipe()
    child = os.fork()
    if child:
        os.close(parent)

        def stop(*_: object) -> None:
            os.kill(child, 9)
            os._exit(137)

        # A handler, since the first process of a namespace ignores signals that have none.
        signal.signal(signal.SIGALRM, stop)
        signal.alarm(wall_s)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 255)
    libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG
    os.close(ready)
    # Readable only if the parent has died already: the number of a parent outside is always 0.
    os.set_blocking(parent, False)
    try:
        os.read(parent, 1)
        os._exit(137)
    except BlockingIOError:
        os.close(parent)


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


def limit_resources(memory_mib: int, timeout_s: float, threads: int) -> list[str]:
    """Limits of CPU time, memory, file size, processes and files; those that count as layers."""
    import resource

    layers = []
    seconds = max(1, round(timeout_s))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    for kind, limit in (
        (resource.RLIMIT_AS, memory_mib << 20),
        (resource.RLIMIT_FSIZE, 1 << 20),
        (resource.RLIMIT_NPROC, threads),  # or processes, which the guard refuses
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):
            continue
        layers.append({resource.RLIMIT_AS: "memory", resource.RLIMIT_NPROC: "forks"}.get(kind, ""))
    return [layer for layer in layers if layer]


def install_guard(libraries: list[str]) -> None:
    """Refuses, inside the interpreter, what no solution of a task needs."""
    import os
    import sys

    here = os.getcwd() + os.sep
    readable = (here, *(os.path.realpath(library) + os.sep for library in libraries))
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
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.startfile",
        "os.symlink",
        "os.system",
        "os.truncate",
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
        if event == "os.mkdir" and not os.path.realpath(str(arguments[0])).startswith(here):
            raise PermissionError("os.mkdir outside the folder is refused in the sandbox")

    sys.addaudithook(hook)


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


def run_child(nobody: int, threads: int) -> None:
    """Confines itself, then reads the program, with its tests, and the secret."""
    import os
    import sys

    # Bound before the program runs, which may replace them where they come from.
    take, write, leave, count = os.read, os.write, os._exit, len

    def read(size: int) -> bytes:
        data = b""
        while count(data) < size:
            more = take(0, size - count(data))
            if not more:
                break
            data += more
        return data

    report, harness, packages = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    memory, seconds, guard, program, secret = read(80).split()
    libraries = [os.path.dirname(os.__file__), *packages]
    layers = confine(int(memory), float(seconds), nobody, threads, libraries, harness)
    sys.path += packages
    if int(guard):
        layers.append("guard")
        install_guard(libraries)
    os.write(report, (" ".join(layers) + "\n").encode())
    imitate_checkers()
    code = read(int(program))
    is_genuine = remember_originals()
    try:
        exec(compile(code, "<string>", "exec", dont_inherit=True), {})
    except SystemExit:
        leave(0)
    except BaseException as error:
        verdict = f"raised {type(error).__name__}: {error}".replace("\n", " ")
        write(report, verdict[:300].encode(errors="replace"))
        leave(0)
    if is_genuine():
        write(report, b"end " + read(int(secret)))
    else:
        write(report, b"raised PermissionError: the program changed what its tests rest on")
    leave(0)
