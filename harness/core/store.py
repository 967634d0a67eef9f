"""Where values lie: content-addressed by stage key, written once, never half.

    <root>/values/<key>/manifest.json    written last: facts, and the digests of all files
                        code.json        the definitions behind it, each with its digest
                        *.safetensors …  what the value saved beside it
    <root>/claims/<key>.<n>              who is computing it (`harness.core.claims`)
    <root>/work/<key>/<token>/           its owner's scratch (`harness.core.scratch`)
    <root>/failures/<key>.json           why it could not be computed
    <root>/renewals/<key>.json           what it was before (`harness.run.renewal`)
    <root>/trash/…                       what was taken out (`harness.core.trash`)
    <root>/index.json                    what manifests say, in short (`harness.core.found`)

A value is there when its manifest is, and all its files with their sizes. One that lacks something
is computed again and replaces what is left. Atomic steps are exclusive create and rename, which
hold on NFS; there is no lock and no database.
Not here: what to compute and when (`harness.run`). No torch is imported: reading rows is fast.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.claims import Claim, Claims
from harness.core.errors import Damaged, StoreError
from harness.core.files import (
    describe,
    digest_file,
    digest_json,
    explained,
    list_files,
    read_json,
    share_files,
    write_json,
)
from harness.core.found import Found, Index
from harness.core.halting import hand_over
from harness.core.paths import read_path
from harness.core.scratch import Scratch, read_progress, take_over
from harness.core.trash import Trash
from harness.core.values import check_written, find_value_type

if TYPE_CHECKING:
    from harness.core.stage import Stage

SCHEMA = 1
MANIFEST = "manifest.json"
LATE_S = 60.0  # how late a file may be seen that another host wrote


@dataclass(frozen=True)
class Store:
    """A folder of values by key. Any number of processes on any number of hosts may share it."""

    root: Path
    _intact: set[tuple[str, int, int, int]] = field(default_factory=set, compare=False, repr=False)

    @classmethod
    def default(cls) -> Store:
        """BITGRID_STORE, else `.bitgrid` in the current folder."""
        return cls.at(os.environ.get("BITGRID_STORE", ".bitgrid"))

    @classmethod
    def at(cls, path: str) -> Store:
        """The one at a path as a user writes it. Raises StoreError where there can be none."""
        return cls(read_path(path, StoreError).absolute())

    def check(self) -> None:
        """Raise StoreError where nothing can be kept here, or what is kept cannot be read."""
        self._claims.check()
        values = self.root / "values"
        with explained(values):
            values.mkdir(exist_ok=True)
            os.listdir(values)

    def tidy(self) -> None:
        """Remove what owners left that are dead. Their checkpoints stay for whoever goes on."""
        self._claims.tidy()
        owners = self.owners()
        with contextlib.suppress(OSError):
            for key in os.listdir(self.root / "work"):
                if key not in owners and self.has(key):  # killed between its last two steps
                    shutil.rmtree(self._work(key), ignore_errors=True)

    # Values

    def has(self, key: str) -> bool:
        """Whether a value is there, and whole as far as sizes tell."""
        found = self.look(key)
        return found is not None and found.fault is None

    def look(self, key: str) -> Found | None:
        """What there is of a value, with its fault where it is not whole; None where nothing is."""
        found = self._read(key)
        if found is None or found.fault is not None:
            return found
        for name, size in found.files.items():
            seen = _look(self.file(key, name), size)
            if isinstance(seen, str):
                return Found(found.stamp, seen, found.files, found.host)
        return found

    def find_fault(self, key: str) -> str | None:
        """Why a value that is there is not whole and will be computed again; None where it is."""
        found = self.look(key)
        return None if found is None else found.fault

    def is_arriving(self, key: str) -> bool:
        """Whether another host has just written a value that this one does not see in full yet."""
        found = self.look(key)
        if found is None or found.fault is None or found.host in (None, socket.gethostname()):
            return False
        with contextlib.suppress(OSError):
            os.listdir(self.path(key))  # has a network file system look again
        return self._claims.now() - found.stamp[2] / 1e9 < LATE_S

    def keys(self) -> list[str]:
        """Keys of all values that have a manifest."""
        manifests = (self.root / "values").glob(f"*/{MANIFEST}")
        return sorted(path.parent.name for path in manifests)

    def manifest(self, key: str) -> dict[str, Any]:
        """The facts of a complete value.

        Raises StoreError where it is missing, unreadable or of another version, Damaged where it is
        not what was written.
        """
        path = self.file(key, MANIFEST)
        try:
            manifest = read_json(path)
        except FileNotFoundError:
            raise Damaged(f"{path} is missing: nothing is stored under {key}", key) from None
        except OSError as error:
            raise StoreError(describe(error, Path(path))) from None
        except StoreError as error:
            raise Damaged(f"{error}; it is computed again when it is needed", key) from None
        if manifest.get("schema") != SCHEMA:
            raise StoreError(
                f"{path}: schema {manifest.get('schema')!r}, this version reads {SCHEMA}"
            )
        digest = manifest.pop("digest", None)  # none: written before there were digests
        if digest is not None and digest != digest_json(manifest):
            raise Damaged(f"{path} is not what was written: its digest differs", key)
        return manifest

    def load(self, stage: Stage[Any], *, check: bool = True) -> Any:
        """The stored value of a stage.

        Its files are read once and compared with their digests, each once a process; `check=False`
        leaves that to another process that shares them. Raises Damaged, StoreError.
        """
        kind, manifest = find_value_type(type(stage)), self.manifest(stage.key)
        if check:
            self.check_files(stage.key, manifest)
        folder, facts = self.path(stage.key), manifest["value"]
        return kind.load(folder, facts) if hasattr(kind, "load") else facts

    def check_files(
        self, key: str, manifest: dict[str, Any] | None = None, only: str | None = None
    ) -> dict[str, Any]:
        """Its manifest. Raises Damaged where a file of a value (all, or one) is not the one that
        was written; from then on the value is not there."""
        try:
            manifest = manifest or self.manifest(key)
            self._check_files(key, manifest, only)
            return manifest
        except Damaged as error:
            if (found := self._read(key)) is not None:
                self.index.add(key, replace(found, fault=str(error)))
            raise

    def _check_files(self, key: str, manifest: Mapping[str, Any], only: str | None) -> None:
        digests = manifest.get("sha256", {})
        for name, size in manifest.get("files", {}).items():
            if only not in (None, name):
                continue
            path = Path(self.file(key, name))
            seen = _look(path, size)
            if isinstance(seen, str):
                raise Damaged(seen, key)
            known = (f"{key}/{name}", seen.st_ino, seen.st_size, seen.st_mtime_ns)
            if name not in digests or known in self._intact:
                continue
            with explained(path):
                if digest_file(path) != digests[name]:
                    raise Damaged(f"{path} is not what was written: its sha256 differs", key)
            self._intact.add(known)

    def discard(self, key: str, kind: str = "damaged") -> None:
        """Take a value out, to the trash. Raises StoreError where it cannot be moved."""
        self.index.forget(key)
        trash = Trash(self.root)
        with contextlib.suppress(OSError):
            self.path(key).chmod(0o700)  # else one that nobody may write in could not be moved
        with explained(self.path(key)), contextlib.suppress(FileNotFoundError):
            trash.discard(self.path(key), trash.open(), kind)  # it does not come back

    def path(self, key: str) -> Path:
        """The folder of a complete value, for artifacts that lie beside it."""
        return self.root / "values" / key

    def file(self, key: str, name: str) -> str:
        """The path of a file of a value; no Path, which of 15,000 values take a while."""
        return f"{self.root}/values/{key}/{name}"

    def definitions(self, key: str) -> dict[str, str] | None:
        """The definitions behind a complete value, each with its digest; None where it has none."""
        try:
            return dict(read_json(self.path(key) / "code.json"))
        except (OSError, StoreError):
            return None

    def commit(
        self,
        stage: Stage[Any],
        result: Any,
        facts: Mapping[str, Any],
        definitions: Mapping[str, str] | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        """Keep a value: files first, manifest last, then one rename. The first to commit wins.

        `definitions`: the code behind it, see `harness.core.definitions`. `scratch`: the owner's;
        without one, a new one for this alone. Raises Outbid where another owner has taken it over,
        StoreError where it cannot be written.
        """
        scratch = scratch or self.open_scratch(stage.key)
        scratch.require()
        draft = scratch.path / "value.draft"
        try:
            with explained(draft):
                draft.mkdir()
                saved = result.save(draft) if hasattr(result, "save") else result
                check_written(stage, result, draft, saved)
                if definitions is not None:
                    write_json(draft / "code.json", definitions)
                if (metrics := scratch.path / "metrics.jsonl").exists():
                    shutil.copy(metrics, draft / metrics.name)
                write_json(draft / MANIFEST, _describe(stage.key, facts, draft, saved))
                self._put(stage.key, draft)
        except StoreError:
            scratch.require()  # rather than what broke because it is gone
            raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        hand_over(stage, scratch, self._work)
        shutil.rmtree(self._work(stage.key), ignore_errors=True)
        self.forget_failure(stage.key)

    def _put(self, key: str, draft: Path) -> None:
        """Rename a draft to its place, and what is in it that is not whole to the trash."""
        self.path(key).parent.mkdir(parents=True, exist_ok=True)
        for _ in range(3):  # others may do the same
            try:
                draft.rename(self.path(key))
                return
            except OSError:
                if self.has(key) or self.is_arriving(key):
                    return
                if not self.path(key).exists():
                    raise
            self.discard(key)
        draft.rename(self.path(key))

    def _read(self, key: str) -> Found | None:
        """What a value's manifest says, read again only where its file has changed."""
        path = self.file(key, MANIFEST)
        try:
            seen = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            return Found((0, 0, 0), describe(error, Path(path)))
        stamp = (seen.st_ino, seen.st_size, seen.st_mtime_ns)
        if (found := self.index.get(key, stamp)) is None:
            found = self._summarize(key, stamp)
            self.index.add(key, found)
        return found

    @cached_property
    def index(self) -> Index:
        """What is known of manifests without reading them."""
        return Index(self.root / "index.json")

    def _summarize(self, key: str, stamp: tuple[int, int, int]) -> Found:
        try:
            manifest = self.manifest(key)
            return Found(
                stamp,
                None,
                dict(manifest.get("files", {})),
                manifest.get("host"),
                manifest.get("code"),
                dict(manifest.get("packages") or {}),
            )
        except StoreError as error:
            return Found(stamp, str(error))
        except (TypeError, ValueError, AttributeError):
            return Found(stamp, f"{self.path(key) / MANIFEST} is not a manifest")

    # A stage that is being computed

    def claim(self, key: str) -> Claim | None:
        """The right to compute a value, or None while somebody alive has it, or it is there."""
        return self._claims.take(key, lambda: self.has(key))

    def claimed(self, key: str) -> dict[str, Any] | None:
        """Who is computing a value now, or None."""
        return self._claims.find_owner(key)

    def owners(self) -> dict[str, dict[str, Any]]:
        """Who is computing what now, by key, from one look at the folder."""
        return self._claims.list_owners()

    def take_over(self, claim: Claim) -> Scratch:
        """The scratch folder of a claim's owner, with what the owner before left in it.

        It is kept until the value is committed. Raises StoreError.
        """
        return claim.fence(take_over(self._work(claim.key), claim.token))

    def open_scratch(self, key: str) -> Scratch:
        """A scratch folder without a claim, where nobody else computes the same. Raises
        StoreError."""
        return take_over(self._work(key), secrets.token_hex(4))

    def progress(self, key: str) -> dict[str, Any] | None:
        """What a running stage said last: done, total, metrics, when (seconds since the epoch)."""
        return read_progress(self._work(key))

    @property
    def _claims(self) -> Claims:
        return Claims(self.root / "claims")

    def _work(self, key: str) -> Path:
        return self.root / "work" / key

    # Failures

    def fail(self, key: str, record: Mapping[str, Any]) -> None:
        """Keep why a value could not be computed. Raises StoreError where that cannot be kept."""
        path = self._failure(key)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"schema": SCHEMA, "key": key, **record})

    def failure(self, key: str) -> dict[str, Any] | None:
        """The record of a failure; None where there is none that can be read."""
        try:
            return read_json(self._failure(key))
        except (OSError, StoreError):
            return None

    def failed(self) -> set[str]:
        """Keys with a failure on record, from one look at the folder."""
        return {path.stem for path in (self.root / "failures").glob("[!.]*.json")}

    def forget_failure(self, key: str) -> None:
        with contextlib.suppress(OSError):  # it is about a value that is there, or run again
            self._failure(key).unlink(missing_ok=True)

    def _failure(self, key: str) -> Path:
        return self.root / "failures" / f"{key}.json"


def _describe(key: str, facts: Mapping[str, Any], folder: Path, saved: Any) -> dict[str, Any]:
    """The manifest of a draft; when this returns the draft's files are on the disk."""
    share_files(folder)
    files = {path.relative_to(folder).as_posix(): path for path in list_files(folder)}
    manifest = {
        "schema": SCHEMA,
        "key": key,
        **facts,
        "files": {name: path.stat().st_size for name, path in files.items()},
        "sha256": {name: digest_file(path, durable=True) for name, path in files.items()},
        "value": saved,
    }
    as_read: dict[str, Any] = json.loads(json.dumps(manifest))
    return {**as_read, "digest": digest_json(as_read)}


def _look(path: Path | str, size: int) -> os.stat_result | str:
    """A file of a value, or what is wrong with it as far as one look tells."""
    try:
        seen = os.stat(path)
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return describe(error, Path(path))
    return seen if seen.st_size == size else f"{path} has {seen.st_size} of {size} bytes"
