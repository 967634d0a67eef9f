"""Faults of the place where a store lies: full, read-only, another user's.

They need root: a disk is a small tmpfs in a mount namespace of its own, and root gives up what lets
it read what others may not.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults.trial import LIMIT_S, Ground, Result, Skipped, Trial, join, start

NOBODY = 65534
BESIDE = ("plans", "grids", "claims", "failures", "work", "launches", "trash")
NEW_MOUNTS = 0x00020000  # CLONE_NEWNS


def obey_rights() -> None:
    """From here on root, too, may only do what the rights of a file's owner or of others say."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the version of the interface, this process
    if libc.capset(header, (ctypes.c_uint32 * 6)()):  # no capability at all
        raise OSError(ctypes.get_errno(), "capset")


def part_mounts() -> None:
    """A mount namespace for this process and those that it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    _mount("--make-rprivate", "/")


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def _require_root() -> None:
    if os.geteuid():
        raise Skipped("it needs root, for other users and mounts")


def _make(name: str) -> Callable[[Trial], Path]:
    """A folder of the store, which is made where it is not there."""

    def find(trial: Trial) -> Path:
        path = trial.store.root / name
        path.mkdir(exist_ok=True)
        return path

    return find


def try_users(ground: Ground) -> Iterator[Result]:
    """Folders and files that whoever runs a verb may not read or write."""
    _require_root()
    values = ground.world.names()
    score = values["score one 0"]

    def close(path: Callable[[Trial], Path], mode: int = 0) -> Callable[[Trial], None]:
        return lambda trial: path(trial).chmod(mode)

    cases: dict[str, tuple[Callable[[Trial], None], set[str]]] = {
        "a value's folder unreadable": (close(lambda t: t.store.path(score)), {score}),
        "a manifest unreadable": (close(lambda t: t.store.path(score) / "manifest.json"), {score}),
        "weights unreadable": (
            close(lambda t: t.store.path(values["train 0"]) / "model.safetensors"),
            set(),
        ),
        **{f"{name} unreadable": (close(_make(name)), set()) for name in BESIDE},
        "values unreadable": (close(lambda t: t.store.root / "values"), set(values.values())),
        "the store unreadable": (close(lambda t: t.store.root), set(values.values())),
    }
    for fault, (damage, hit) in cases.items():
        with ground.trial() as trial:
            damage(trial)
            for words in (("status",), ("report",), ("gc",), ("run",)):
                grid = () if words == ("gc",) else (str(trial.world.path),)
                trial.say(*words, *grid, before=obey_rights)
            result = trial.judge(fault, hit)
            yield result
    yield from _try_read_only(ground)


def _try_read_only(ground: Ground) -> Iterator[Result]:
    """Finished and unfinished stores that can only be read, by rights and by mount."""

    def read_only_mount(trial: Trial) -> None:
        part_mounts()
        root = str(trial.store.root)
        _mount("--bind", root, root)
        _mount("-o", "remount,ro,bind", root)

    for finished in (True, False):
        for place in ("another user's", "mounted read-only"):
            with ground.trial() as trial:
                _lose(trial, finished)
                if place == "another user's":
                    _give_away(trial.store.root)
                    act: Callable[[], object] = obey_rights
                else:
                    act = lambda: read_only_mount(trial)  # noqa: E731
                for words in ("status", "report", "gc", "run"):
                    grid = () if words == "gc" else (str(trial.world.path),)
                    trial.say(words, *grid, before=act)
                what = "a finished" if finished else "an unfinished"
                result = trial.judge(f"{what} store, {place}")
                yield result


def _give_away(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)


def _lose(trial: Trial, finished: bool) -> None:
    if not finished:
        shutil.rmtree(trial.store.path(trial.world.names()["score one 0"]))


def try_full_disks(ground: Ground, sizes: int = 16) -> Iterator[Result]:
    """Disks that fill up while a run writes: at its claim, a checkpoint, a value, a failure.

    One tmpfs for each size from nothing to all that a run writes; then it gets larger and a second
    run goes on.
    """
    _require_root()
    needed = _measure(ground)
    results = []
    for number in range(sizes):
        with ground.trial(empty=True) as trial:
            kib = 4 + int(needed * number / (sizes - 1)) // 1024
            trial.store.root.mkdir()
            results.append(_fill(trial, kib))
    yield join(results)


def _measure(ground: Ground) -> int:
    """Bytes that a finished store takes."""
    files = [path for path in ground.whole.store.root.rglob("*") if path.is_file()]
    return sum(path.stat().st_size + 4096 for path in files)


def _fill(trial: Trial, kib: int) -> Result:
    """Both runs in one process, whose own mount the store is; a copy of it is judged."""
    kept = trial.folder / "kept"
    texts = trial.folder / "said.txt"

    def act() -> None:
        part_mounts()
        root = str(trial.store.root)
        _mount("-t", "tmpfs", "-o", f"size={kib}k", "none", root)
        first = trial.start_run().wait()
        _mount("-o", "remount,size=64m", root)
        shutil.copytree(root, kept)
        texts.write_text(f"{first.status}\n{first.text}")

    spoken = start(act, trial.folder / "outer.txt").wait(2 * LIMIT_S)
    if spoken.status != 0:
        raise RuntimeError(spoken.text)
    trial.store.root.rmdir()
    kept.rename(trial.store.root)
    status, _, text = texts.read_text().partition("\n")
    trial.spoken.append(type(spoken)(None if status == "None" else int(status), text))
    whole = set(trial.reference) - set(trial.wrong())
    before = len(trial.computed())
    trial.say("run", str(trial.world.path), "--retry", "failed")
    result = trial.judge("the disk fills up, at 16 sizes")
    again = sum(key in whole for key in trial.computed()[before:])
    return result._replace(again=again)
