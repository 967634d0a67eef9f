"""Where values lie: content-addressed by stage key, written once, never half.

    <root>/values/<key>/manifest.json    written last: its existence means the value is complete
                        code.json        the definitions behind it, each with its digest
                        *.safetensors …  what the value saved beside it
    <root>/claims/<key>.<n>              who is computing it, touched while it does
    <root>/failures/<key>.json           why it could not be computed
    <root>/work/<key>/                   a running stage's scratch and checkpoints

Atomic steps are exclusive create and rename, which hold on NFS; there is no lock and no database.
Not here: what to compute and when (`harness.run`). No torch is imported: reading rows is fast.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import threading
import time
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import StoreError, ValueChanged
from harness.core.fingerprint import find_change, fingerprint, recall_fingerprint

if TYPE_CHECKING:
    from harness.core.stage import Stage

SCHEMA = 1
HEARTBEAT_S = 10.0
LATE_S = 60.0  # how late a file may be seen that another host wrote
EXPIRY_S = 60.0  # a claim that nobody touched for so long has lost its owner


@dataclass(frozen=True)
class Store:
    """A folder of values by key. Any number of processes on any number of hosts may share it."""

    root: Path

    @classmethod
    def default(cls) -> Store:
        """BITGRID_STORE, else `.bitgrid` in the current folder."""
        return cls(Path(os.environ.get("BITGRID_STORE", ".bitgrid")).absolute())

    def check(self) -> None:
        """Raise StoreError where nothing can be kept here."""
        self._touched()

    # Values

    def has(self, key: str) -> bool:
        return (self._value(key) / "manifest.json").exists()

    def keys(self) -> list[str]:
        """Keys of all complete values."""
        manifests = (self.root / "values").glob("*/manifest.json")
        return sorted(path.parent.name for path in manifests)

    def manifest(self, key: str) -> dict[str, Any]:
        """The facts of a complete value. Raises StoreError where it is missing or unreadable."""
        path = self._value(key) / "manifest.json"
        try:
            manifest = json.loads(path.read_text())
        except FileNotFoundError:
            raise StoreError(f"{path} is missing: nothing is stored under {key}") from None
        except ValueError as error:
            raise StoreError(
                f"{path} is no JSON ({error}); remove the folder to compute it again"
            ) from None
        if manifest.get("schema") != SCHEMA:
            raise StoreError(
                f"{path}: schema {manifest.get('schema')!r}, this version reads {SCHEMA}"
            )
        return dict(manifest)

    def load(self, stage: Stage[Any]) -> Any:
        """The stored value of a stage."""
        kind, manifest = value_type(type(stage)), self.manifest(stage.key)
        folder, facts = self._value(stage.key), manifest["value"]
        _await(folder, manifest.get("files", {}))
        return kind.load(folder, facts) if hasattr(kind, "load") else facts

    def path(self, key: str) -> Path:
        """The folder of a complete value, for artifacts that lie beside it."""
        return self._value(key)

    def definitions(self, key: str) -> dict[str, str] | None:
        """The definitions behind a complete value, each with its digest; None where it has none."""
        try:
            return dict(json.loads((self._value(key) / "code.json").read_text()))
        except (OSError, ValueError):
            return None

    def commit(
        self,
        stage: Stage[Any],
        result: Any,
        facts: dict[str, Any],
        definitions: Mapping[str, str] | None = None,
    ) -> None:
        """Keep a value: files first, manifest last, then one rename. The first to commit wins.

        `definitions`: the code behind it, see `harness.core.definitions`.
        """
        draft = self._folder("drafts") / f"{stage.key}.{secrets.token_hex(4)}"
        draft.mkdir()
        try:
            saved = result.save(draft) if hasattr(result, "save") else result
            _check_written(stage, result, draft, saved)
            if definitions is not None:
                write_json(draft / "code.json", dict(definitions))
            metrics = self._work(stage.key) / "metrics.jsonl"
            if metrics.exists():
                shutil.copy(metrics, draft / metrics.name)
            files = {p.relative_to(draft).as_posix(): p.stat().st_size for p in _files(draft)}
            manifest = {"schema": SCHEMA, "key": stage.key, **facts, "files": files, "value": saved}
            write_json(draft / "manifest.json", manifest)
            self._folder("values")
            try:
                draft.rename(self._value(stage.key))
            except OSError:
                if not self.has(stage.key):
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(self._work(stage.key), ignore_errors=True)
        (self._folder("failures") / f"{stage.key}.json").unlink(missing_ok=True)

    def work(self, key: str) -> Path:
        """The scratch folder of a stage; it is kept until the value is committed."""
        return self._folder("work", key)

    def say_progress(self, key: str, facts: dict[str, Any]) -> None:
        """How far a running stage is; gone with its scratch folder. A full disk stops nothing."""
        with contextlib.suppress(OSError):
            write_json(self._folder("work", key) / "progress.json", {**facts, "when": time.time()})

    def progress(self, key: str) -> dict[str, Any] | None:
        """What the stage said last: done, total, metrics, when (seconds since the epoch)."""
        try:
            return dict(json.loads((self._work(key) / "progress.json").read_text()))
        except (OSError, ValueError):
            return None

    # Failures

    def fail(self, key: str, record: dict[str, Any]) -> None:
        write_json(
            self._folder("failures") / f"{key}.json", {"schema": SCHEMA, "key": key, **record}
        )

    def failure(self, key: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads((self.root / "failures" / f"{key}.json").read_text()))
        except (FileNotFoundError, ValueError):
            return None

    def failed(self) -> set[str]:
        """Keys with a failure on record, from one look at the folder."""
        return {path.stem for path in (self.root / "failures").glob("[!.]*.json")}

    def forget_failure(self, key: str) -> None:
        (self.root / "failures" / f"{key}.json").unlink(missing_ok=True)

    # Claims

    def claim(self, key: str) -> Claim | None:
        """The right to compute a value, or None while somebody alive has it.

        Claims are numbered. One that expired is not removed but outbid by the next number, created
        exclusively: of several that find the same dead claim just one gets it.
        """
        folder = self._folder("claims")
        number = 0
        for claim in self._claims(key):
            if self._alive(claim):
                return None
            number = self._number(claim) + 1
        path = folder / f"{key}.{number}"
        draft = folder / f".{key}.{secrets.token_hex(4)}"
        write_json(draft, asdict(_owner()))
        try:
            os.link(draft, path)  # unlike O_EXCL and a write, the file is never seen half written
        except FileExistsError:
            return None
        finally:
            draft.unlink()
        others = [claim for claim in self._claims(key) if claim != path]
        rival = any(
            self._number(claim) < self._number(path) and self._alive(claim) for claim in others
        )
        if rival or self.has(key):  # somebody began, or even ended, between our look and our claim
            path.unlink(missing_ok=True)
            return None
        return Claim(path, others)

    def claimed(self, key: str) -> dict[str, Any] | None:
        """Who is computing a value now, or None."""
        owners = (self._alive(path) for path in reversed(self._claims(key)))
        return next((owner for owner in owners if owner), None)

    def owners(self) -> dict[str, dict[str, Any]]:
        """Who is computing what now, by key, from one look at the folder."""
        claims = sorted((self.root / "claims").glob("[!.]*.*"), key=self._number)
        now = self._now() if claims else 0.0
        return {path.stem: owner for path in claims if (owner := self._alive(path, now))}

    def _claims(self, key: str) -> list[Path]:
        claims = (self.root / "claims").glob(f"{key}.*")
        return sorted(claims, key=self._number)

    @staticmethod
    def _number(claim: Path) -> int:
        return int(claim.suffix[1:])

    def _alive(self, claim: Path, now: float | None = None) -> dict[str, Any] | None:
        """A claim's owner, if it lives: by its process on this host, elsewhere by its heartbeat."""
        try:
            owner = _Owner(**json.loads(claim.read_text()))
            beat = claim.stat().st_mtime
        except (OSError, ValueError, TypeError):
            return None
        if owner.place == _place():
            alive = _is_process(owner.pid, owner.started)
        else:
            alive = (self._now() if now is None else now) - beat < EXPIRY_S
        return asdict(owner) if alive else None

    def _now(self) -> float:
        """The file system's clock, so that hosts whose clocks differ agree on what has expired."""
        try:
            return self._touched()
        except StoreError:
            return time.time()  # it can only be read: nobody claims anything by this

    def _touched(self) -> float:
        probe = self._folder("claims") / f".now.{secrets.token_hex(4)}"
        try:
            probe.touch()
            return probe.stat().st_mtime
        except OSError as error:
            raise StoreError(f"the store {self.root} cannot be written: {error}") from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    # Folders

    def _value(self, key: str) -> Path:
        return self.root / "values" / key

    def _work(self, key: str) -> Path:
        return self.root / "work" / key

    def _folder(self, *names: str) -> Path:
        folder = self.root.joinpath(*names)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the store {self.root} cannot be written: {error}") from error
        return folder


@dataclass
class Claim:
    """The right to compute one value, kept alive by a heartbeat while the `with` block lasts."""

    path: Path
    outbid: list[Path]
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> typing.Self:
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        # The dead ones first: while ours stands nobody else can begin.
        for path in [*self.outbid, self.path]:
            path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
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


def value_type(cls: type[Stage[Any]]) -> type:
    """T of the `Stage[T]` that a stage class derives from."""
    from harness.core.stage import Stage  # here: verbs that only read manifests start without it

    for parent in cls.__mro__:
        for base in getattr(parent, "__orig_bases__", ()):
            if typing.get_origin(base) is Stage:
                (kind,) = typing.get_args(base)
                return typing.get_origin(kind) or kind
    raise StoreError(f"{cls.__name__} does not say what it computes: derive it from Stage[...]")


def _check_written(stage: Stage[Any], result: Any, folder: Path, facts: Any) -> None:
    """Raise ValueChanged, naming the part, where a value's files would give back another one."""
    kind = value_type(type(stage))
    if not hasattr(kind, "load") or not isinstance(result, kind):
        return
    options = {"on_host": True} if "on_host" in signature(kind.load).parameters else {}
    loaded = kind.load(folder, json.loads(json.dumps(facts)), **options)
    if (part := find_change(recall_fingerprint(result), fingerprint(loaded))) is not None:
        raise ValueChanged(
            f"{stage.subject}: {part} of its {kind.__name__.lower()} does not come back from its "
            "files as it is; nothing was stored"
        )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """JSON at `path`, whole or not at all."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with draft.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _await(folder: Path, files: dict[str, int]) -> None:
    """Wait for files of a value that another host wrote and this one does not see in full yet.

    Raises StoreError after LATE_S.
    """
    until = time.monotonic() + LATE_S
    for name, size in files.items():
        while (seen := _seen(folder / name)) != size:
            if time.monotonic() > until:
                has = "is missing" if seen is None else f"has {seen} of {size} bytes"
                raise StoreError(f"{folder / name} {has}; remove {folder} to compute it again")
            with contextlib.suppress(OSError):
                os.listdir(folder)  # has a network file system look again
            time.sleep(0.2)


def _seen(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
