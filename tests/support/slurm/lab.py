"""A real SLURM on this host for the tests: two nodes, fake GPUs, accounting, all on loopback.

    eval $(python -m tests.support.slurm.lab /tmp/lab)    # by hand: sbatch, squeue, sacct
    python -m tests.support.slurm.lab /tmp/lab --stop

The configuration is in the three .conf files beside this one. Several labs may run at once, each
in its own folder and with its own ports; no service of the system is touched. Every process of a
lab has the lab's SLURM_CONF in its environment and is found by it, so no note of a process can be
out of date.

Users other than root may submit too. Not here: several hosts, real GPUs.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from string import Template

import psutil

NODES = ("node1", "node2")
_HERE = Path(__file__).parent
_DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")
_OURS = (*_DAEMONS, "slurmscriptd", "slurmstepd")
_PROGRAMS = (*_DAEMONS, "mariadb-install-db", "mariadb", "munge", "sbatch", "sacctmgr")
_PORTS = ("controller", "accounting", "database", *NODES)
# Below those that Linux gives to outgoing connections, so that a dead node's port stays free.
_FIRST_PORT, _BLOCKS = 26800, 40
# What every user's commands and jobs reach: munge's socket, jobs' scripts, devices.
_OPEN = {".": 0o755, "slurm.conf": 0o644, "munge": 0o711, "spool": 0o755, "dev": 0o755}
_LONGEST_FOLDER = 70  # characters: a Unix socket's whole path has 107


class LabError(Exception):
    """A lab that cannot start, or a command in it that failed."""


def missing() -> str | None:
    """Why SLURM cannot run here, as the reason of a skipped test; None where it can."""
    if absent := [name for name in _PROGRAMS if not _which(name)]:
        return f"no SLURM: {', '.join(absent)} not installed (.ci/run installs them)"
    if os.geteuid() != 0:
        return "no SLURM: its daemons need root"
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return f"no SLURM: the host's name {name!r} does not resolve (add it to /etc/hosts)"
    if not address.startswith("127."):
        return f"no SLURM: the host's name {name!r} is {address}, not 127.x (see /etc/hosts)"
    return None


class Lab:
    """A cluster in `folder`: node1 and node2 (4 CPUs, 8000 MB, 2 GPUs), partitions main and low.

    `with Lab(folder) as lab:` ends with this process, however that ends. `start()` alone leaves
    the cluster up until `stop()`, from whatever process. `folder` has a short path and is new,
    empty or an earlier lab's; it is removed in the end, logs included.
    """

    def __init__(self, folder: Path, max_array_size: int = 1001) -> None:
        self.folder = folder.resolve()
        self.max_array_size = max_array_size
        self._ports: dict[str, int] = {}
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """What SLURM's commands, and processes that submit jobs, need in their environment."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> Lab:
        # A shell that waits for the end of its input: that comes when this process is gone.
        stop = [sys.executable, "-m", "tests.support.slurm.lab", str(self.folder), "--stop"]
        self._guard = subprocess.Popen(
            ["sh", "-c", 'read _; exec "$@"', "guard", *stop],
            stdin=subprocess.PIPE,
            cwd=_HERE.parents[2],
            start_new_session=True,
        )
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._guard.communicate()
        for child in self._children:
            child.wait()

    def start(self) -> None:
        """From nothing to idle nodes in about 6 s; remains of an earlier lab are removed first.

        Raises:
            LabError: what `missing()` says; a folder that is not a lab's; ports that are in use; a
                daemon that did not come up, with the end of its log.
        """
        if reason := missing():
            raise LabError(reason)
        if len(str(self.folder)) > _LONGEST_FOLDER:
            raise LabError(f"{self.folder}: sockets need a path of at most {_LONGEST_FOLDER}")
        if self.folder.exists() and any(self.folder.iterdir()) and not self._is_lab():
            raise LabError(f"{self.folder}: not empty, and not an earlier lab's")
        self.stop()
        with _one_at_a_time():
            password = self._configure()
            self._start_munge()
            self._start_accounting(password)
            for name in NODES:
                self._launch(name, "slurmd", "-D", "-N", name)
            self.start_controller()
            self._until(lambda: self._states() == {"idle"}, "slurmctld")

    def stop(self) -> None:
        """Ends every process of this lab, jobs too, and removes its folder; twice is fine."""
        self._kill(self._processes)
        if self._is_lab():
            shutil.rmtree(self.folder)

    def run(self, *command: str) -> str:
        """What a command prints, without blanks around it.

        Raises:
            LabError: it failed; with what it said.
        """
        environment = os.environ | self.environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())
            raise LabError(f"{shlex.join(command)}: exit status {done.returncode}: {said}")
        return done.stdout.strip()

    def squeue(self, *arguments: str) -> str:
        """`squeue` without its header: jobs that wait, run or are ending."""
        return self.run("squeue", "--noheader", *arguments)

    def idle(self) -> bool:
        """Whether every daemon is up, every node idle, and there is no job."""
        up = self._daemon("slurmctld") and all(self._daemon("slurmd", name) for name in NODES)
        with suppress(LabError):
            return bool(up) and self._states() == {"idle"} and not self.squeue()
        return False

    def wait_idle(self, seconds: float = 120) -> None:
        """Returns when the lab is idle."""
        self._until(self.idle, "slurmctld", seconds)

    def repair(self) -> None:
        """Makes the lab idle again: starts what was killed, cancels every job."""
        if self.idle():
            return
        if not self._daemon("slurmctld"):
            self.start_controller()
        self.run("scancel", "--user=root")
        for name in NODES:
            if not self._daemon("slurmd", name):
                self.restart_node(name)
            if any(state.startswith("dr") for state in self._states(name)):
                self.run("scontrol", "update", f"NodeName={name}", "State=RESUME")
        self.wait_idle()

    def kill_node(self, name: str, steps: bool = False) -> None:
        """Kills a node's slurmd; with `steps` its jobs' processes too, as if the host had gone."""
        self._kill(lambda: self._daemon("slurmd", name) + (self._steps(name) if steps else []))

    def restart_node(self, name: str) -> None:
        """Starts a node's slurmd; returns when the controller has it up."""
        self._launch(name, "slurmd", "-D", "-N", name)
        self._until(lambda: all(s.isalpha() and s != "down" for s in self._states(name)), name)

    def stop_controller(self) -> None:
        """Kills slurmctld, as if its host had gone; jobs go on."""
        self._kill(lambda: self._daemon("slurmctld") + self._daemon("slurmscriptd"))

    def start_controller(self) -> None:
        """Starts slurmctld, which reads back what it saved; returns when it answers."""
        # -i: go on where nothing was saved yet, as in a new lab.
        self._launch("slurmctld", "slurmctld", "-D", "-i")
        self._until(lambda: " UP" in self.run("scontrol", "ping"), "slurmctld")

    def _is_lab(self) -> bool:
        first = (_HERE / "slurm.conf").read_text().splitlines()[0]
        configuration = self.folder / "slurm.conf"
        return configuration.is_file() and configuration.read_text().startswith(first)

    def _configure(self) -> str:
        """The folder and the files in it; the database's password."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._ports = _free_ports()
        values = self._ports | {
            "run": self.folder,
            "password": secrets.token_hex(),
            "max_array_size": self.max_array_size,
        }
        for name in ("slurm.conf", "slurmdbd.conf", "gres.conf"):
            text = Template((_HERE / name).read_text()).substitute(values)
            _write(self.folder / name, text.encode())
        for name in ("munge", "log", "state", "spool", "dev"):
            (self.folder / name).mkdir(mode=0o700)
        for name, mode in _OPEN.items():
            (self.folder / name).chmod(mode)
        for index in range(2):
            (self.folder / "dev" / f"gpu{index}").symlink_to("/dev/null")
        return str(values["password"])

    def _start_munge(self) -> None:
        home = self.folder / "munge"
        _write(home / "key", secrets.token_bytes(1024))
        files = [f"--{name}-file={home}/{name}" for name in ("key", "pid", "seed", "log")]
        # --force: its socket lies where only root can reach it, which munged takes for a mistake.
        options = ["--force", "-F", "--origin=127.0.0.1", "--num-threads=2"]
        self._launch("munged", "munged", *options, f"--socket={home}/socket", *files)
        self._until(lambda: self.run("munge", "-n", "-S", f"{home}/socket"), "munged")

    def _start_accounting(self, password: str) -> None:
        """The database, then slurmdbd, which makes its tables in it."""
        home, port = self.folder / "db", self._ports["database"]
        # Nothing here outlives the lab, so no write needs to reach a disk: seconds are saved.
        options = ["--no-defaults", "--user=root", "--basedir=/usr", f"--datadir={home}"]
        options += ["--innodb-log-file-size=4M", "--debug-no-sync"]
        rights = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        self.run("mariadb-install-db", *options, *rights)
        setup = self.folder / "setup.sql"
        user = "slurm@127.0.0.1"
        statements = [
            "CREATE DATABASE slurm_acct",
            f"CREATE USER {user} IDENTIFIED BY '{password}'",
            f"GRANT ALL ON slurm_acct.* TO {user}",
        ]
        _write(setup, "".join(f"{line};\n" for line in statements).encode())
        options += ["--bind-address=127.0.0.1", f"--port={port}", "--skip-name-resolve"]
        options += [f"--socket={home}/socket", f"--pid-file={home}/pid", f"--init-file={setup}"]
        options += ["--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"]
        self._launch("mariadbd", "mariadbd", *options)
        ask = ["mariadb", "--no-defaults", "--user=root", f"--socket={home}/socket"]
        self._until(lambda: self.run(*ask, "--execute=SELECT 1"), "mariadbd")
        self._launch("slurmdbd", "slurmdbd", "-D")
        self._until(lambda: self.run("sacctmgr", "-n", "show", "user"), "slurmdbd")

    def _launch(self, log: str, program: str, *arguments: str) -> None:
        with open(self.folder / "log" / f"{log}.out", "ab") as output:
            child = subprocess.Popen(
                [_which(program) or program, *arguments],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._children.append(child)

    def _until(self, ready: Callable[[], object], log: str, seconds: float = 120) -> None:
        """Waits for `ready` to be true; generously, since the host may be busy."""
        end, said = time.monotonic() + seconds, ""
        while time.monotonic() < end:
            try:
                if ready():
                    return
            except LabError as error:
                said = f"; {error}"
            time.sleep(0.1)
        last = (self.folder / "log" / f"{log}.out").read_text().splitlines()[-3:]
        raise LabError(f"{log} is not ready after {seconds:.0f} s{said}; log: {' | '.join(last)}")

    def _states(self, *nodes: str) -> set[str]:
        """The nodes' states in sinfo's short words: idle, mix, alloc, down*, …"""
        names = f"--nodes={','.join(nodes or NODES)}"
        return set(self.run("sinfo", "-h", "-N", "-p", "main", names, "-o", "%t").split())

    def _processes(self) -> list[psutil.Process]:
        """This lab's daemons, steps and jobs; what a user started with SLURM_CONF is not."""
        return [p for p in psutil.process_iter() if self._is_ours(p)]

    def _is_ours(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            environment = _environment(process)
            ours = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode() in environment
            return ours and (
                process.name() in _OURS
                or any(v.startswith(b"SLURMD_NODENAME=") for v in environment)
            )
        return False

    def _daemon(self, program: str, node: str = "") -> list[psutil.Process]:
        """The running processes of a daemon, at most one where all is well."""
        found = []
        for process in self._processes():
            with suppress(psutil.Error):
                if process.name() == program and (not node or node in process.cmdline()):
                    found.append(process)
        return found

    def _steps(self, node: str) -> list[psutil.Process]:
        """A node's slurmstepd, known by the sockets that they hold, and the jobs under them."""
        spool = str(self.folder / "spool" / node) + "/"
        found = []
        for process in self._processes():
            with suppress(psutil.Error, OSError):
                job = f"SLURMD_NODENAME={node}".encode() in _environment(process)
                if job or any(
                    str(c.laddr).startswith(spool) for c in process.net_connections("unix")
                ):
                    found.append(process)
        return found

    def _kill(self, find: Callable[[], list[psutil.Process]]) -> None:
        end = time.monotonic() + 60
        while found := find():
            if time.monotonic() > end:
                raise LabError(f"{self.folder}: {found} cannot be killed")
            for process in found:
                with suppress(psutil.Error):
                    process.kill()
            time.sleep(0.05)


def _which(program: str) -> str | None:
    """Where a program is; daemons are in /usr/sbin, which a user's PATH may lack."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def _environment(process: psutil.Process) -> set[bytes]:
    """As psutil has it, but not cut at a gap, which a changed title leaves."""
    return set(Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"))


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _free_ports() -> dict[str, int]:
    """A port for each of a lab's daemons: the first block of which none is in use."""
    for block in range(_BLOCKS):
        first = _FIRST_PORT + 10 * block
        ports = {name: first + index for index, name in enumerate(_PORTS)}
        if all(_is_free(port) for port in ports.values()):
            return ports
    last = _FIRST_PORT + 10 * _BLOCKS - 1
    raise LabError(f"no free ports for a lab in {_FIRST_PORT}-{last}: `ss -lptn` says who has them")


def _is_free(port: int) -> bool:
    with socket.socket() as tried, suppress(OSError):
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tried.bind(("127.0.0.1", port))
        return True
    return False


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Labs that start together would find the same ports free."""
    with open(Path(tempfile.gettempdir()) / "bitgrid-lab.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> None:
    """Starts a lab that stays up, and prints what to export; or stops it."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.slurm.lab", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, help="the lab's folder, with a short path")
    parser.add_argument("--stop", action="store_true", help="end it and remove the folder")
    arguments = parser.parse_args()
    lab = Lab(arguments.folder)
    try:
        if arguments.stop:
            lab.stop()
            return
        try:
            lab.start()
        except BaseException:
            lab.stop()
            raise
    except LabError as error:
        sys.exit(f"error: {error}")
    for name, value in lab.environment.items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
