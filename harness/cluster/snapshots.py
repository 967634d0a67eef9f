"""The code as it was at a launch: copied into the store, and checked before a job runs it.

    <store>/code/<digest>-<commit>/harness/…, methods/…, COMMIT, SHA256SUMS

The sums are for the job's script, which has no Python of the snapshot yet.
Not here: what keeps snapshots from `gc` (`harness.cluster.garbage`).
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from harness.core import provenance
from harness.core.definitions import ROOT
from harness.core.errors import ClusterError
from harness.core.files import explained
from harness.core.store import Store

PACKAGES = ("harness", "methods")
COMMIT = "COMMIT"
SUMS = "SHA256SUMS"


def take_snapshot(store: Store) -> Path:
    """A copy of the code in the store, named by its digest, so that equal code is copied once.

    Raises StoreError where it cannot be written.
    """
    files = [file for part in PACKAGES for file in _list_files(ROOT / part)]
    commit = provenance.find_commit(files) or ""
    folder = store.root / "code" / f"{_digest(ROOT, files)}-{commit[:8]}"
    with contextlib.suppress(ClusterError):
        check_snapshot(folder)
        return folder
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    with explained(folder):
        for path in files:
            copy = draft / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        (draft / COMMIT).write_text(commit + "\n")
        (draft / SUMS).write_text(_sum_up(draft, [draft / f.relative_to(ROOT) for f in files]))
        try:
            draft.rename(folder)
        except OSError:  # it is there: another launch's, or what a purge left of it
            shutil.copytree(draft, folder, dirs_exist_ok=True)
            shutil.rmtree(draft)
    return folder


def check_snapshot(folder: Path) -> None:
    """Raise ClusterError where a snapshot is not the code that was launched.

    What it lacks would be imported from elsewhere, unseen.
    """
    try:
        there = [file for file in _list_files(folder) if file.name not in (COMMIT, SUMS)]
        found = _digest(folder, there)
        whole = (folder / SUMS).read_text() == _sum_up(folder, there)
    except FileNotFoundError:
        whole = False
    except OSError as error:
        raise ClusterError(f"the snapshot {folder} cannot be read: {error.strerror}") from None
    if not whole or found != folder.name.partition("-")[0]:
        raise ClusterError(
            f"the snapshot {folder} is not the code that was launched: files are missing or "
            "changed, as where scratch is purged by age; launch again"
        )


def _digest(root: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in files):
        digest.update(f"{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _sum_up(root: Path, files: Iterable[Path]) -> str:
    """What `sha256sum --check` reads."""
    names = sorted((path.relative_to(root).as_posix(), path) for path in files)
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n" for name, path in names
    )


def _list_files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts[len(folder.parts) :]
    ]
