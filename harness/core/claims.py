"""Who computes what: a claim per key, numbered, kept alive by a heartbeat.

    <root>/claims/<key>.<n>     JSON: host, place, process, token; touched while its owner lives

A claim whose owner died is not removed but outbid by the next number, created exclusively: of
several that find the same dead claim just one gets it. Atomic steps are exclusive create and
rename, which hold on NFS; there is no lock.
Not here: what an owner may write, and what of one that was outbid (`harness.core.scratch`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from harness.core.errors import StoreError
from harness.core.files import describe, explained, read_json, write_json
from harness.core.scratch import Scratch

HEARTBEAT_S = 10.0
EXPIRY_S = 60.0  # a claim that nobody touched for so long has lost its owner
ABANDONED_S = 3600.0  # a draft or probe of a claim that is older was left by a kill


@dataclass(frozen=True)
class Claims:
    """The claims of a store."""

    folder: Path

    def take(self, key: str, is_done: Callable[[], bool]) -> Claim | None:
        """The right to compute a value, or None while somebody alive has it, or it is done.

        Raises StoreError where nothing can be written.
        """
        number = 0
        for path in self._list(key):
            if self.read_owner(path):
                return None
            number = _number(path) + 1
        path, token = self.folder / f"{key}.{number}", secrets.token_hex(4)
        draft = self.folder / f".{key}.{token}"
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                write_json(draft, {**asdict(_owner()), "token": token})
                os.link(draft, path)  # unlike O_EXCL and a write: never seen half written
            except FileExistsError:
                return None
            finally:
                draft.unlink(missing_ok=True)
        claim = Claim(path, token, [other for other in self._list(key) if other != path])
        rival = any(_number(other) < number and self.read_owner(other) for other in claim.outbid)
        if rival or is_done():  # somebody began, or even ended, between our look and our claim
            claim.give_up()
            return None
        return claim

    def find_owner(self, key: str) -> dict[str, Any] | None:
        """Who is computing a value now, or None."""
        owners = (self.read_owner(path) for path in reversed(self._list(key)))
        return next((owner for owner in owners if owner), None)

    def list_owners(self) -> dict[str, dict[str, Any]]:
        """Who is computing what now, by key, from one look at the folder."""
        paths = sorted(self.folder.glob("[!.]*.*"), key=_number)
        now = self.now() if paths else 0.0
        return {path.stem: owner for path in paths if (owner := self.read_owner(path, now))}

    def tidy(self) -> None:
        """Remove what dead owners left: their claims, and drafts of claims."""
        with contextlib.suppress(StoreError, OSError):
            now = self.check()
            for path in self.folder.glob(".*"):
                if now - path.stat().st_mtime > ABANDONED_S:
                    path.unlink(missing_ok=True)
            alive = self.list_owners()
            for key in {path.stem for path in self.folder.glob("[!.]*.*")} - alive.keys():
                # Not merely unlinked: between a look at a dead claim and its removal somebody may
                # outbid it, and a third begin anew with its number.
                if claim := self.take(key, lambda: False):
                    claim.release()

    def read_owner(self, path: Path, now: float | None = None) -> dict[str, Any] | None:
        """A claim's owner, if it lives: by its process on this host, elsewhere by its heartbeat.

        One that cannot be read counts by its heartbeat: it may be of another version.
        """
        try:
            beat = path.stat().st_mtime
        except OSError:
            return None
        try:
            owner = read_json(path)
            here = owner["place"] == _place()
            pid, started = int(owner["pid"]), float(owner["started"])
        except FileNotFoundError:
            return None
        except (OSError, StoreError, KeyError, TypeError, ValueError):
            owner, here, pid, started = {"host": "unknown", "pid": 0}, False, 0, 0.0
        if here:
            alive = _is_process(pid, started)
        else:
            alive = (self.now() if now is None else now) - beat < EXPIRY_S
        return owner if alive else None

    def now(self) -> float:
        """The file system's clock, so that hosts whose clocks differ agree on what has expired."""
        try:
            return self.check()
        except StoreError:
            return time.time()  # it can only be read: nobody claims anything by this

    def check(self) -> float:
        """The file system's clock. Raises StoreError where nothing can be written."""
        probe = self.folder / f".now.{secrets.token_hex(4)}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            return probe.stat().st_mtime
        except OSError as error:
            # Of the folder: nobody knows the probe.
            why = describe(OSError(error.errno, error.strerror), self.folder)
            raise StoreError(f"the store {self.folder.parent} cannot be written: {why}") from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    def _list(self, key: str) -> list[Path]:
        return sorted(self.folder.glob(f"{key}.*"), key=_number)


@dataclass
class Claim:
    """The right to compute one value, kept alive by a heartbeat while the `with` block lasts."""

    path: Path
    token: str  # tells this attempt from all others
    outbid: list[Path]
    scratch: Scratch | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def key(self) -> str:
        return self.path.stem

    def fence(self, scratch: Scratch) -> Scratch:
        """From now on the right lasts as long as the scratch folder is its owner's."""
        self.scratch = scratch
        return scratch

    @property
    def stands(self) -> bool:
        """Whether nobody has outbid it."""
        return self.scratch is None or self.scratch.stands

    def __enter__(self) -> typing.Self:
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the right back, and remove the claims that were outbid."""
        self._ended.set()
        # The dead ones first: while ours stands nobody else can begin.
        with contextlib.suppress(OSError):
            for path in self.outbid:
                path.unlink(missing_ok=True)
        self.give_up()

    def give_up(self) -> None:
        """Remove this claim alone. Numbers begin anew: one that was outbid may have a namesake."""
        with contextlib.suppress(OSError, StoreError):
            if read_json(self.path).get("token") == self.token:
                self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        # Once outbid, a claim of this name may be somebody else's.
        while not self._ended.wait(HEARTBEAT_S) and self.stands:
            with contextlib.suppress(OSError):
                os.utime(self.path)


@dataclass(frozen=True)
class _Owner:
    host: str
    place: str
    pid: int
    started: float


def _owner() -> _Owner:
    import psutil

    pid = os.getpid()
    return _Owner(socket.gethostname(), _place(), pid, psutil.Process(pid).create_time())


def _number(claim: Path) -> int:
    number = claim.suffix[1:]
    return int(number) if number.isdecimal() else 0


@cache
def _place() -> str:
    """Where process numbers mean the same: host, boot and, in containers, process namespace."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _is_process(pid: int, started: float) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 2.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
