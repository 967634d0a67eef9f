"""A model's files on the disk of the node that reads them: copied once, checked, then used by all.

    BITGRID_NODE_SCRATCH/bitgrid-<user's number>/<digest of the model>/…       mode 0700
                                                /<digest of the model>.lock

    with staged(source, pin) as place:          # arguments of transformers' `from_pretrained`
        ...

Nothing of a result depends on where a model is read from, so no key does. Copying is under a lock
of the kernel's, which ends with its process, however that ends. What is copied is read back and
compared with the digest that the stage has; later uses look at sizes and times of change, which
tell what a purge by age, or a hand, did to it. Where there is no room the model is read from where
it lies, and that is said.
Not here: where a model lies (`sources`), its digest (the sources themselves).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import ModelError
from harness.core.paths import NODE_SCRATCH
from harness.models.registry import ModelSource, Pin

_MARK = ".whole.json"  # sizes and times of the copies, written last
_SPARE = 2**28  # bytes that are left to others


@contextlib.contextmanager
def staged(source: ModelSource, pin: Pin) -> Iterator[dict[str, Any]]:
    """Where to read a model's weights while the block lasts: the node's own copy, if there is a
    folder for it and room, else where the model lies.

    Raises ModelError where the files that it lies in are not what the digest says.
    """
    place = source.place(pin.digest)
    scratch, paths = os.environ.get(NODE_SCRATCH), source.files(pin)
    if not scratch:
        yield place
        return
    if not paths:
        _say(pin, "its files are not all here, or have no digest to check a copy by", place)
        yield place
        return
    with contextlib.ExitStack() as held:
        try:
            folder = _make_home(Path(scratch)) / pin.digest
            lock = held.enter_context(folder.with_suffix(".lock").open("w"))
            whole = _obtain(source, pin, paths, folder, lock.fileno())
        except OSError as error:
            whole = False
            _say(pin, f"{error.filename or scratch}: {error.strerror}", place)
        else:
            if not whole:
                _say(pin, _describe_room(folder.parent, paths), place)
        yield {**place, "where": str(folder), "revision": None} if whole else place


def _obtain(source: ModelSource, pin: Pin, paths: Sequence[Path], folder: Path, lock: int) -> bool:
    """Whether the copy is there and whole, made if need be; then nobody replaces it while `lock`
    is open. Raises OSError, ModelError."""
    fcntl.flock(lock, fcntl.LOCK_SH)
    if _is_whole(folder):
        return True
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not _is_whole(folder):  # nobody was faster
        if not _has_room(folder.parent, paths):
            return False
        _copy(source, pin, paths, folder)
    # Taking the lock for reading again lets it go for a moment.
    fcntl.flock(lock, fcntl.LOCK_SH)
    return _is_whole(folder)


def _copy(source: ModelSource, pin: Pin, paths: Sequence[Path], folder: Path) -> None:
    draft = folder.with_suffix(".draft")  # whoever has the lock is alone with it
    for old in (draft, folder):
        shutil.rmtree(old, ignore_errors=True)
    try:
        draft.mkdir()
        for path in paths:
            shutil.copyfile(path, draft / path.name)
        if not source.holds(pin, [draft / path.name for path in paths]):
            if source.holds(pin, paths):
                raise OSError(0, "what was copied there reads otherwise", str(folder))
            raise ModelError(
                f"model {pin.name!r}: the files in {paths[0].parent} are not those that the grid "
                f"was planned with (digest {pin.digest}): they changed, or are damaged"
            )
        (draft / _MARK).write_text(json.dumps(_look(draft)))
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _make_home(scratch: Path) -> Path:
    """This user's own folder on the node's disk, which others may write to. Raises OSError."""
    home = scratch / f"bitgrid-{os.geteuid()}"
    scratch.mkdir(parents=True, exist_ok=True)
    home.mkdir(mode=0o700, exist_ok=True)
    seen = home.lstat()
    if seen.st_uid != os.geteuid() or not home.is_dir() or home.is_symlink():
        raise OSError(0, "it is another user's", str(home))
    home.chmod(0o700)
    return home


def _look(folder: Path) -> dict[str, list[int]]:
    """Size and time of change of each file of a copy."""
    seen = {path.name: path.stat() for path in folder.iterdir() if path.name != _MARK}
    return {name: [each.st_size, each.st_mtime_ns] for name, each in sorted(seen.items())}


def _is_whole(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / _MARK).read_text()) == _look(folder))
    except (OSError, ValueError):
        return False


def _measure(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _has_room(home: Path, paths: Sequence[Path]) -> bool:
    return shutil.disk_usage(home).free >= _measure(paths) + _SPARE


def _describe_room(home: Path, paths: Sequence[Path]) -> str:
    free = shutil.disk_usage(home).free / 2**30
    return f"{home}: {free:.2f} GiB are free, {(_measure(paths) + _SPARE) / 2**30:.2f} needed"


def _say(pin: Pin, why: str, place: dict[str, Any]) -> None:
    print(
        f"bitgrid: node_scratch: {why}; {pin.name} is read from {place['where']}",
        file=sys.stderr,
        flush=True,
    )
