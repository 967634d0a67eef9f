"""Attacks of a program on the sandbox: each is a program that ends only if it got what it wanted.

Attacks find their targets in variables: `private`, a file of the harness, in `folder`, with a
database; `closed`, a folder of it; `open_folder`, where everybody may write, as in `public` there;
`root_only`, a file, and `suid`, a copy of cat, of the user who set all this up; `port`, `path` and
`abstract`, sockets that listen; `harness`, a process with a file open that children inherit.
Not here: running them (`benchmarks.attacks`).
"""

from __future__ import annotations

from dataclasses import dataclass

SETUPS = (
    "all",
    "kernel",
    "guard",
    "limits",
)  # what confines a program, beside its user: see `Attack`


@dataclass(frozen=True)
class Attack:
    """`passes`: where it gets through, as "setup" or "setup user"; elsewhere it is held.

    Setups: "all" has every layer, "kernel" is namespaces and limits without the interpreter's
    guard, "guard" the guard and limits where the kernel grants no namespaces, "limits" is neither.
    Users are the harness's.
    """

    family: str
    name: str
    code: str
    passes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.family}: {self.name}"

    @property
    def setups(self) -> tuple[str, ...]:
        """Where it is tried: what only waits in one, what nothing counts not with limits alone."""
        return _WHERE.get(self.name, SETUPS) if self.family in ("exhaust", "signal") else SETUPS

    def is_open(self, setup: str, user: str) -> bool:
        return setup in self.passes or f"{setup} {user}" in self.passes


_NONE: tuple[str, ...] = ()
_LIMITS = ("limits",)  # what any program of that user may do
_SAME_USER = ("limits nobody",)  # the same, where the program's user is the harness's
_OWNER = (*_SAME_USER, "kernel nobody")  # the same: mounts are read-only, and not hidden
_LIBC = "import ctypes\nlibc = ctypes.CDLL(None)\n"
_TRY = "import os\nfor n in range({}):\n    {}"

_READ = {
    "a file": ("assert open(private).read() == 'kept'", _OWNER),
    "its descriptor": ("import os\nos.read(os.open(private, 0), 4)", _OWNER),
    "through a symbolic link": (
        "import os\nos.symlink(private, 'x')\nopen('x').read()",
        _OWNER,
    ),
    "through a hard link": ("import os\nos.link(private, 'x')\nopen('x').read()", _SAME_USER),
    "by a relative path": ("open('../' * 30 + private[1:]).read()", _OWNER),
    "below /proc/self/root": ("open('/proc/self/root' + private).read()", _OWNER),
    "below /proc/1/root": ("open('/proc/1/root' + private).read()", _NONE),
    "below a folder's descriptor": (
        "import os\nfolder = os.open(folder, 0)\nos.open('private', 0, dir_fd=folder)",
        _OWNER,
    ),
    "as a script": ("import runpy\ntry: runpy.run_path(private)\nexcept NameError: pass", _OWNER),
    "as a module": ("import sys\nsys.path.insert(0, closed)\nimport kept_module", _OWNER),
    "in a closed folder": ("import os\nassert os.listdir(closed)", _OWNER),
    "as a database": (
        "import sqlite3\nbase = sqlite3.connect('')\nbase.execute('ATTACH ? AS x', (database,))\n"
        "assert base.execute('SELECT * FROM x.t').fetchall()",
        _OWNER,
    ),
    "that everybody may read": ("assert open(public).read() == 'kept'", ("limits", "kernel")),
    "the harness's environment": (
        "assert b'PATH' in open(f'/proc/{harness}/environ', 'rb').read()",
        _SAME_USER,
    ),
    "the harness's command": ("assert open(f'/proc/{harness}/cmdline').read()", _LIMITS),
    "the harness's descriptors": (
        "import os\nassert os.listdir(f'/proc/{harness}/fd')",
        _SAME_USER,
    ),
    "the judge's memory": ("import os\nopen(f'/proc/{os.getppid()}/mem', 'rb')", _NONE),
    "the judge's descriptors": ("import os\nos.listdir(f'/proc/{os.getppid()}/fd')", _NONE),
    "a descriptor of the harness": (
        "import os\nfor n in range(3, 256):\n    try: text = os.pread(n, 4, 0)\n"
        "    except OSError: text = b''\n    if text == b'kept': break\nelse: raise OSError",
        _NONE,
    ),
    "a disk": ("import os, glob\nopen((glob.glob('/dev/[svn]d*') + ['/dev/mem'])[0], 'rb')", _NONE),
    "the kernel's log": ("open('/dev/kmsg').read(1)", _NONE),
}
_WRITE = {
    "a file": ("open(public, 'w').write('lost')", _LIMITS),
    "at its end": ("open(public, 'a').write('lost')", _LIMITS),
    "through a symbolic link": ("import os\nos.symlink(public, 'x')\nopen('x', 'w')", _LIMITS),
    "a shorter file": ("import os\nos.truncate(public, 0)", _LIMITS),
    "a file away": ("import os\nos.remove(public)", _LIMITS),
    "another name": ("import os\nos.rename(public, public + 'x')", _LIMITS),
    "other rights": ("import os\nos.chmod(private, 0o777)", _SAME_USER),
    "another owner": ("import os\nos.chown(root_only, os.getuid(), -1)", _NONE),
    "another time": ("import os\nos.utime(public)", _LIMITS),
    "an attribute": ("import os\nos.setxattr(public, 'user.x', b'x')", _LIMITS),
    "a new file": ("open(open_folder + '/new', 'x')", _LIMITS),
    "a new folder": ("import os\nos.mkdir(open_folder + '/new')", _LIMITS),
    "a database": (
        "import sqlite3\nbase = sqlite3.connect('')\n"
        "base.execute('ATTACH ? AS x', (open_folder + '/new',))\n"
        "base.execute('CREATE TABLE x.t (a)')",
        _LIMITS,
    ),
    "a folder away": ("import shutil\nshutil.rmtree(open_folder + '/inner')", _LIMITS),
    "shared memory": (
        "import os\nopen('/dev/shm/bitgrid-attack', 'x')\nos.remove('/dev/shm/bitgrid-attack')",
        _LIMITS,
    ),
    "a device": ("import os, stat\nos.mknod('x', 0o600 | stat.S_IFBLK, os.makedev(8, 0))", _NONE),
    "the kernel's settings": ("open('/proc/sys/kernel/core_pattern', 'a')", _NONE),
    "a control group": ("open('/sys/fs/cgroup/cgroup.procs', 'a')", _NONE),
}
_RIGHTS = {
    "root's user": ("import os\nos.setuid(0)\nopen(root_only).read()", _NONE),
    "root's group": ("import os\nos.setgid(0)\nos.setgroups([0])", _NONE),
    "a setuid program": (
        "import subprocess\nassert subprocess.check_output([suid, root_only]) == b'kept'",
        _NONE,
    ),
    "mounts of its own namespace": (
        _LIBC + "libc.unshare(0x10020000)\nlibc.mount(None, b'/', None, 0x1020, None)\n"
        "open(public, 'a').write('lost')",
        _LIMITS,
    ),
    "writable mounts": (
        _LIBC + "assert libc.mount(None, open_folder.encode(), None, 0x1020, None) == 0",
        _NONE,
    ),
    "a mount less": (_LIBC + "import os\nassert libc.umount2(os.getcwd().encode(), 2) == 0", _NONE),
    "another root folder": ("import os\nos.chroot('.')", _NONE),
    "the harness's namespaces": (
        _LIBC + "import os\nassert libc.setns(os.open(f'/proc/{harness}/ns/net', 0), 0) == 0",
        _NONE,
    ),
    "another host name": ("import socket\nsocket.sethostname(socket.gethostname())", _NONE),
    "another time of day": ("import time\ntime.clock_settime(0, time.clock_gettime(0))", _NONE),
    "precedence": ("import os\nos.nice(-5)", _NONE),
    "higher limits": (
        "import sys\ndel sys.modules['resource']\nimport resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        _NONE,
    ),
    "raw packets": ("import socket\nsocket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", _NONE),
}
_NETWORK = {
    "TCP": ("import socket\nsocket.create_connection(('127.0.0.1', port), 1)", _LIMITS),
    "TCP by IPv6": (
        "import socket\nsocket.socket(socket.AF_INET6).connect(('::ffff:127.0.0.1', port))",
        _LIMITS,
    ),
    "UDP": (
        "import socket\nsocket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', port))",
        _LIMITS,
    ),
    "HTTP": (
        "import urllib.error, urllib.request, http.client\n"
        "try: urllib.request.urlopen(f'http://127.0.0.1:{port}', timeout=0.1)\n"
        "except TimeoutError: pass",
        _LIMITS,
    ),
    "asyncio": (
        "import asyncio\nasyncio.run(asyncio.open_connection('127.0.0.1', port))",
        _LIMITS,
    ),
    "a unix socket": ("import socket\nsocket.socket(1).connect(path)", ("limits", "kernel")),
    "an abstract unix socket": ("import socket\nsocket.socket(1).connect(abstract)", _LIMITS),
}
_SIGNAL = {
    "the harness": ("import os\nos.kill(harness, 0)", _SAME_USER),
    "its group": ("import os\nos.killpg(os.getpgid(harness), 0)", _SAME_USER),
    "through a descriptor": (
        "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(harness), 0)",
        _SAME_USER,
    ),
    "its scheduling": (
        "import os\nos.setpriority(0, harness, os.getpriority(0, harness))",
        _SAME_USER,
    ),
    "its processors": (
        "import os\nos.sched_setaffinity(harness, os.sched_getaffinity(harness))",
        _SAME_USER,
    ),
    "the judge, to death": ("import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(9)", _NONE),
    "the judge, to a stop": ("import os, time\nos.kill(os.getppid(), 19)\ntime.sleep(9)", _NONE),
    "the judge's alarm": ("import os, time\nos.kill(os.getppid(), 14)\ntime.sleep(9)", _NONE),
    "itself, to a stop": ("import os\nos.kill(os.getpid(), 19)\nos.abort()", _NONE),
    "past its limit": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        _NONE,
    ),
}
_EXHAUST = {
    "100 processes": (
        _TRY.format(100, "os.fork() or os.execv('/bin/sleep', ['sleep', '9'])"),
        _NONE,
    ),
    "a fork bomb": ("import os\nwhile True: os.fork()", _NONE),
    "100 programs": (
        "import subprocess\nfor n in range(100): subprocess.Popen(['/bin/sleep', '9'])",
        _NONE,
    ),
    "100 threads": (
        "import threading, time\nfor n in range(100):\n"
        "    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        _NONE,
    ),
    "10 GB": ("bytearray(10 << 30)", _NONE),
    "10 GB in a map": ("import mmap\nmmap.mmap(-1, 10 << 30)", _NONE),
    "memory bit by bit": ("rest = []\nwhile True: rest.append(bytes(1 << 20))", _NONE),
    "a file in memory": ("import os\nos.truncate(os.memfd_create('x'), 1 << 30)", _NONE),
    "a big file": ("open('x', 'wb').write(bytes(2 << 20))", _NONE),
    "a sparse file": ("open('x', 'wb').truncate(1 << 40)", _NONE),
    "a byte far away": ("import os\nos.pwrite(os.open('x', 65), b'x', 1 << 40)", _NONE),
    "40 MB in 40 files": (
        "for n in range(40): open(f'{n}', 'wb').write(bytes(1 << 20))",
        ("limits", "guard"),
    ),
    "empty files": (_TRY.format(100_000, "os.close(os.open(f'{n}', 65))"), _NONE),
    "folders": (_TRY.format(1100, "os.mkdir(f'{n}')"), _NONE),
    "folders in folders": (_TRY.format(1100, "os.mkdir('x')\n    os.chdir('x')"), _NONE),
    "symbolic links": (_TRY.format(1100, "os.symlink('x', f'{n}')"), _NONE),
    "pipes in the folder": (_TRY.format(1100, "os.mkfifo(f'{n}')"), _NONE),
    "closed folders": ("import os\nos.umask(0o777)\nos.mkdir('x')\nopen('x/y', 'w')", _NONE),
    "a name of 100,000 letters": ("open('x' * 100_000, 'w')", _NONE),
    "100 descriptors": ("files = [open('x', 'w') for n in range(100)]", _NONE),
    "100 pipes": ("import os\npipes = [os.pipe() for n in range(100)]", _NONE),
    "the report's pipe": (
        "import os, sys\nos.write(sys._getframe(1).f_locals['report'], bytes(1 << 20))",
        _NONE,
    ),
    "a message of 10 MB": ("raise ValueError('x' * (10 << 20))", _NONE),
    "a message that fails": (
        "class Odd(Exception):\n    def __str__(self): raise self\nraise Odd",
        _NONE,
    ),
    "endless work": ("while True: pass", _NONE),
    "endless waiting": ("import time\ntime.sleep(1000)", _NONE),
    "the stack": ("import sys\nsys.setrecursionlimit(1 << 30)\nf = lambda: f()\nf()", _NONE),
    "an address": ("import ctypes\nctypes.string_at(0)", _NONE),
}
_COUNTED = ("empty files", "folders", "folders in folders", "symbolic links", "pipes in the folder")
_WHERE = {
    **dict.fromkeys(_COUNTED, ("all", "kernel", "guard")),
    "itself, to a stop": ("kernel",),
    "past its limit": ("limits",),
    "the report's pipe": ("kernel",),
    "endless work": ("guard",),
    "endless waiting": ("kernel",),
    "the stack": ("kernel",),
    "the judge, to a stop": ("kernel", "guard"),
}
_FAMILIES = {
    "read": _READ,
    "write": _WRITE,
    "rights": _RIGHTS,
    "network": _NETWORK,
    "signal": _SIGNAL,
    "exhaust": _EXHAUST,
}
ATTACKS = tuple(
    Attack(family, name, code, passes)
    for family, rows in _FAMILIES.items()
    for name, (code, passes) in rows.items()
)
