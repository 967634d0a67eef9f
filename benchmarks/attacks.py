"""What the sandbox holds: each attack of a table, for a harness of root and of another user.

    python -m benchmarks.attacks --out benchmarks/attacks.csv

Root sets up what is attacked, and becomes the other user for the second half; where another user
than root calls it, that half alone is measured. Setups (`tests.support.attacks.Attack`) that this
machine's kernel does not grant are left out; an empty field was not tried. The table that was
measured is beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from harness.evaluation import sandbox
from tests.support.attacks import ATTACKS, SETUPS, Attack

OTHER_USER = 65_534  # of a harness that is not root's; not the one of root's programs
MEMORY_MIB, TIMEOUT_S = 256, 0.1  # of each attack
Outcomes: TypeAlias = dict[str, dict[str, tuple[bool, str]]]  # setup, attack: passed, reason


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--user", choices=("root", "nobody"), help="print one half as JSON")
    parser.add_argument("--setups", help="of that half")
    parser.add_argument("--folder", type=Path, help="an empty one, for that half")
    arguments = parser.parse_args()
    if arguments.user:
        setups = arguments.setups.split(",")
        json.dump(_try_all(arguments.user, setups, arguments.folder), sys.stdout)
        return
    columns = {
        f"{setup}, {user}": outcomes
        for user in list_users()
        for setup, outcomes in measure(user).items()
    }
    rows = [["family", "attack", *columns]]
    for attack in ATTACKS:
        tried = [outcomes.get(str(attack)) for outcomes in columns.values()]
        words = ["" if each is None else "open" if each[0] else "held" for each in tried]
        rows.append([attack.family, attack.name, *words])
    file = arguments.out.open("w", newline="") if arguments.out else sys.stdout
    csv.writer(file, lineterminator="\n").writerows(rows)


def list_users() -> tuple[str, ...]:
    """Whose harness can be tried: root's by root alone."""
    return ("root", "nobody") if os.geteuid() == 0 else ("nobody",)


@cache
def find_interpreter() -> str | None:
    """One that every user may run, which installed packages do not matter to."""
    for name in (sys._base_executable, "/usr/bin/python3", "/usr/local/bin/python3"):  # type: ignore[attr-defined]
        code = "import sys; sys.version_info >= (3, 11) or 1/0"
        test = [os.path.realpath(name), "-I", "-S", "-c", code]
        user = {"user": OTHER_USER, "group": OTHER_USER} if os.geteuid() == 0 else {}
        with contextlib.suppress(OSError):
            if subprocess.run(test, **user, stderr=subprocess.DEVNULL).returncode == 0:
                return test[0]
    return None


def measure(user: str, setups: Sequence[str] = SETUPS) -> Outcomes:
    """What became of every attack on a harness of `user`, tried in a process of its own."""
    folder = tempfile.mkdtemp(prefix="attacks-")
    command = [sys.executable, "-m", "benchmarks.attacks", "--user", user]
    command += ["--setups", ",".join(setups), "--folder", folder]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    finally:
        shutil.rmtree(folder)
    outcomes: Outcomes = json.loads(done.stdout)
    return outcomes


def _try_all(user: str, setups: Sequence[str], folder: Path) -> Outcomes:
    """Raises RuntimeError where a program left something in the folder for temporary files."""
    uid = OTHER_USER if user == "nobody" and os.geteuid() == 0 else os.geteuid()
    sandbox.sys.executable = find_interpreter() or sys.executable  # type: ignore[attr-defined]
    sandbox._PACKAGES.clear()
    folder.chmod(0o755)
    (temporary := folder / "temporary").mkdir()
    os.chown(temporary, uid, uid)
    tempfile.tempdir = str(temporary)
    strong = sandbox._CHILD
    outcomes: Outcomes = {}
    with _listen(folder) as sockets, (folder / "held").open("w+") as held:
        held.write("kept")
        held.flush()
        os.set_inheritable(held.fileno(), True)
        worlds = {
            s: [_make_world(folder / f"{s}-{n}", uid) | sockets for n, _ in enumerate(ATTACKS)]
            for s in setups
        }
        if uid != os.geteuid():
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as any other harness is
        for setup in setups:
            is_strong = setup in ("all", "kernel")
            if not is_strong or not sandbox.find_missing_layers():
                sandbox._CHILD = strong if is_strong else _weaken(strong)
                outcomes[setup] = _try_setup(setup, worlds[setup])
    if left := os.listdir(temporary):
        raise RuntimeError(f"{len(left)} folders are left: {left[:3]}")
    return outcomes


def _try_setup(setup: str, worlds: Sequence[dict[str, Any]]) -> dict[str, tuple[bool, str]]:
    def attack(trial: tuple[Attack, dict[str, Any]]) -> tuple[bool, str]:
        targets = "".join(f"{name} = {value!r}\n" for name, value in trial[1].items())
        guard = setup in ("all", "guard")
        done = sandbox.execute(targets + trial[0].code, TIMEOUT_S, MEMORY_MIB, guard=guard)
        return done.passed, done.reason

    trials = [each for each in zip(ATTACKS, worlds, strict=True) if setup in each[0].setups]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(attack, trials))
    return {str(attack): outcome for (attack, _), outcome in zip(trials, done, strict=True)}


def _weaken(child: str) -> str:
    """The child's program where the kernel grants no namespaces."""
    granted = "libc.unshare(wanted) == 0"
    if child.count(granted) != 1:
        raise ValueError(f"not once in the child's program: {granted}")
    return child.replace(granted, "not wanted")


def _make_world(folder: Path, uid: int) -> dict[str, Any]:
    """What one attack is aimed at, by name."""
    folder.mkdir(mode=0o755)
    for name, mode in (("closed", 0o700), ("open_folder", 0o777)):
        (folder / name).mkdir()
        (folder / name).chmod(mode)
        (folder / name / "kept_module.py").write_text("kept = 1")
    (folder / "open_folder" / "inner").mkdir()
    for name, mode in (("private", 0o600), ("open_folder/public", 0o666), ("root_only", 0o600)):
        (folder / name).write_text("kept")
        (folder / name).chmod(mode)
    with sqlite3.connect(folder / "database") as base:
        base.executescript("CREATE TABLE t (a); INSERT INTO t VALUES (1)")
    base.close()
    (folder / "database").chmod(0o600)
    for name in ("private", "database", "closed"):
        os.chown(folder / name, uid, uid)
    names = ("private", "database", "closed", "open_folder", "open_folder/public", "root_only")
    targets = {Path(name).name: str(folder / name) for name in names}
    return {"folder": str(folder), "harness": os.getpid(), **targets}


@contextmanager
def _listen(folder: Path) -> Iterator[dict[str, Any]]:
    """Sockets for every attack, and a program that runs as who made it."""
    suid, path, abstract = folder / "cat", str(folder / "socket"), f"\0attack-{os.getpid()}"
    shutil.copy("/bin/cat", suid)
    suid.chmod(0o4755)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=100) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as hidden,
    ):
        for listener, address in ((unix, path), (hidden, abstract)):
            listener.bind(address)
            listener.listen(100)
        os.chmod(path, 0o777)
        port = tcp.getsockname()[1]
        yield {"port": port, "path": path, "abstract": abstract, "suid": str(suid)}


if __name__ == "__main__":
    main()
