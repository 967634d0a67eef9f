"""Faults at rest: what lies in a store is not what was written."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults.trial import Ground, Result, Trial, join
from harness.core.store import Store

Damage = Callable[[Store, str], None]  # to the value of a key


def _remove(name: str) -> Damage:
    return lambda store, key: (store.path(key) / name).unlink()


def _write(name: str, content: bytes) -> Damage:
    return lambda store, key: _put(store.path(key) / name, content)


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _shorten(name: str, by: int = 9) -> Damage:
    def damage(store: Store, key: str) -> None:
        path = store.path(key) / name
        path.write_bytes(path.read_bytes()[:-by])

    return damage


def _flip(name: str, place: int, bit: int = 0x40) -> Damage:
    """One bit of a byte that is `place` from the end; the file's times stay as they were."""

    def damage(store: Store, key: str) -> None:
        path = store.path(key) / name
        times, content = path.stat(), bytearray(path.read_bytes())
        content[-place] ^= bit
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    return damage


def _change_fact(store: Store, key: str) -> None:
    """Another digit in the row of a score."""
    path = store.path(key) / "manifest.json"
    manifest = json.loads(path.read_text())
    text = path.read_text()
    number = repr(manifest["value"]["rows"][0]["value"])
    digit = str((int(number[2]) + 1) % 10)
    path.write_text(text.replace(number, number[:2] + digit + number[3:]))


def _change_schema(store: Store, key: str) -> None:
    path = store.path(key) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))


def _leave_folder(store: Store, key: str) -> None:
    """A folder without a manifest, as an old version or a copy that broke off leaves it."""
    path = store.path(key)
    shutil.rmtree(path)
    _put(path / "model.safetensors", b"half")


def _replace_by_file(store: Store, key: str) -> None:
    shutil.rmtree(store.path(key))
    store.path(key).write_text("")


MODEL, SCORE = "train 0", "score one 0"
# fault -> the stage whose value is damaged, and how
VALUES: dict[str, tuple[str, Damage]] = {
    "manifest gone": (MODEL, _remove("manifest.json")),
    "weights file gone": (MODEL, _remove("model.safetensors")),
    "weights file short by 9 bytes": (MODEL, _shorten("model.safetensors")),
    "weights file of 0 bytes": (MODEL, _write("model.safetensors", b"")),
    "one exponent bit of a weight flipped, same time and size": (
        MODEL,
        _flip("model.safetensors", 1),
    ),
    "a digit of a score in its manifest changed": (SCORE, _change_fact),
    "manifest is no JSON": (SCORE, _write("manifest.json", b'{"schema": 1, "key')),
    "manifest of 0 bytes": (SCORE, _write("manifest.json", b"")),
    "manifest is a list": (SCORE, _write("manifest.json", b"[]")),
    "manifest is {}": (SCORE, _write("manifest.json", b"{}")),
    "manifest is not UTF-8": (SCORE, _write("manifest.json", b"\xff\xfe\x00")),
    "manifest of another schema": (SCORE, _change_schema),
    "folder without a manifest": (MODEL, _leave_folder),
    "a file where a value's folder was": (SCORE, _replace_by_file),
    "code.json broken": (MODEL, _write("code.json", b"{")),
    "code.json gone": (MODEL, _remove("code.json")),
    "metrics.jsonl broken": (MODEL, _write("metrics.jsonl", b'{"step": 1, \xff')),
    "items.jsonl.gz cut": (SCORE, _shorten("items.jsonl.gz")),
    "items.jsonl.gz: a bit flipped, same size (zlib)": (SCORE, _flip("items.jsonl.gz", 30)),
    "items.jsonl.gz: other numbers": (
        SCORE,
        lambda store, key: _change_items(store, key),
    ),
    "config.json broken": (MODEL, _write("config.json", b"{")),
    "tokenizer.json: a bit flipped": (MODEL, _flip("tokenizer.json", 40, 1)),
}


def _change_items(store: Store, key: str) -> None:
    path = store.path(key) / "items.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    lines[0]["scores"] = [0.0 for _ in lines[0]["scores"]]
    path.write_bytes(gzip.compress("".join(json.dumps(x) + "\n" for x in lines).encode(), mtime=0))


def try_values(ground: Ground) -> Iterator[Result]:
    """Each fault of a value: looked at, run, reported."""
    for fault, (name, damage) in VALUES.items():
        yield try_value(ground, fault, name, damage)


def try_value(ground: Ground, fault: str, name: str, damage: Damage) -> Result:
    key = ground.world.names()[name]
    with ground.trial() as trial:
        damage(trial.store, key)
        if name == MODEL:  # a score of it is still to come, so that the model is read
            shutil.rmtree(trial.store.path(ground.world.names()["score two 0"]))
        trial.look()
        trial.run()
        # A score that was to come is not the fault's.
        result = trial.judge(fault, [key])
        computed = trial.computed()
        scores = computed.count(ground.world.names()["score two 0"]) if name == MODEL else 0
        return result._replace(again=result.again - min(scores, 1))


def _break_plan(trial: Trial) -> None:
    for path in (trial.store.root / "plans").glob("*.json"):
        path.write_text('{"schema": 6, "cells": 3')


def _empty_plan(trial: Trial) -> None:
    for path in (trial.store.root / "plans").glob("*.json"):
        path.write_bytes(b"")


def _list_as_plan(trial: Trial) -> None:
    for path in (trial.store.root / "plans").glob("*.json"):
        path.write_text("[1]")


def _add_broken_plan(trial: Trial) -> None:
    _put(trial.store.root / "plans/other-12345678.json", b"\x00\x01")


def _add_broken_launch(trial: Trial) -> None:
    _put(trial.store.root / "launches/1126-abcd/launch.json", b'{"schema": 2')


def _add_empty_launch(trial: Trial) -> None:
    _put(trial.store.root / "launches/1126-abcd/launch.json", b"")
    (trial.store.root / "launches/1126-efgh").mkdir()


def _add_broken_failure(trial: Trial) -> None:
    """Of a stage that is still to come."""
    key = trial.world.names()[SCORE]
    shutil.rmtree(trial.store.path(key))
    _put(trial.store.root / "failures" / f"{key}.json", b'{"schema"')


def _add_odd_failure(trial: Trial) -> None:
    key = trial.world.names()[SCORE]
    shutil.rmtree(trial.store.path(key))
    _put(trial.store.root / "failures" / f"{key}.json", b"[1, 2]")


def _add_odd_claims(trial: Trial) -> None:
    """Claims that no version writes, of a stage that is still to come and of none."""
    key = trial.world.names()[SCORE]
    shutil.rmtree(trial.store.path(key))
    claims = trial.store.root / "claims"
    for name, content in ((f"{key}.0", b"{}"), (f"{key}.x", b""), ("odd", b""), ("o.dd.", b"1")):
        _put(claims / name, content)
        old = time.time() - 1000
        os.utime(claims / name, (old, old))


def _add_strangers(trial: Trial) -> None:
    """Files that somebody's file manager or editor left."""
    for kind in ("values", "failures", "plans", "claims", "work", "launches"):
        _put(trial.store.root / kind / ".DS_Store", b"\x00")
        _put(trial.store.root / kind / "notes.txt~", b"mine")


# fault -> what is done, and the stage that is computed because of it
RECORDS: dict[str, tuple[Callable[[Trial], None], str | None]] = {
    "plan broken": (_break_plan, None),
    "plan of 0 bytes": (_empty_plan, None),
    "plan is a list": (_list_as_plan, None),
    "another grid's plan broken": (_add_broken_plan, None),
    "launch file broken": (_add_broken_launch, None),
    "launch file empty, another gone": (_add_empty_launch, None),
    "failure record broken": (_add_broken_failure, SCORE),
    "failure record is a list": (_add_odd_failure, SCORE),
    "claims that cannot be read, old": (_add_odd_claims, SCORE),
    "files of nobody's in every folder": (_add_strangers, None),
}


def try_records(ground: Ground) -> Iterator[Result]:
    """What lies beside the values is broken."""
    for fault, (damage, name) in RECORDS.items():
        with ground.trial() as trial:
            damage(trial)
            trial.look()
            trial.run()
            hit = [] if name is None else [ground.world.names()[name]]
            yield trial.judge(fault, hit)


def try_verify(ground: Ground, each: int = 40) -> Iterator[Result]:
    """A bit or a digit anywhere in a value: `bitgrid verify` names the value and its cells."""
    chance = random.Random(0)

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)

    def change_digit(path: Path) -> None:
        text = path.read_text()
        place = chance.choice([n for n, letter in enumerate(text) if letter.isdigit()])
        digit = chance.choice([other for other in "0123456789" if other != text[place]])
        path.write_text(text[:place] + digit + text[place + 1 :])

    with ground.trial() as trial:
        manifests = sorted(trial.store.root.glob("values/*/manifest.json"))
        files = sorted(set(trial.store.root.glob("values/*/*")) - set(manifests))
        for fault, paths, damage in (
            ("a bit anywhere in a file of a value: verify alone", files, flip),
            ("a digit anywhere in a manifest: verify alone", manifests, change_digit),
        ):
            yield join(_verify(trial, fault, chance.choice(paths), damage) for _ in range(each))


def _verify(trial: Trial, fault: str, path: Path, damage: Callable[[Path], None]) -> Result:
    """Damages a file, looks, and puts the file back."""
    whole, times = path.read_bytes(), path.stat()
    damage(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    spoken = trial.say("verify", str(trial.world.path))
    path.write_bytes(whole)
    lines = [line for line in spoken.text.splitlines() if path.parent.name in line]
    named = len(lines) == 1 and "it touches faults: A seed=" in lines[0]
    outcome = "found" if named and spoken.status == 1 else "silent"
    said = trial.shorten(lines[0] if lines else spoken.text)
    return Result(fault, 1, outcome, 1, 0, 0, said)


def try_purge(ground: Ground) -> Iterator[Result]:
    """Scratch that is purged by age: the oldest half of all files goes, wherever they are."""
    for fault, order in (
        ("the oldest half of the files purged", lambda path: path.stat().st_mtime_ns),
        ("every second file purged", lambda path: zlib.crc32(path.name.encode())),
    ):
        with ground.trial() as trial:
            files = [path for path in trial.store.root.rglob("*") if path.is_file()]
            for path in sorted(files, key=order)[: len(files) // 2]:
                path.unlink()
            hit = trial.wrong()
            trial.look()
            trial.run()
            yield trial.judge(fault, hit)


def try_copies(ground: Ground, cuts: int = 12) -> Iterator[Result]:
    """A copy, in the order in which rsync goes, that breaks off: inside a file, or between two."""

    def copy(trial: Trial, share: float) -> None:
        source = ground.whole.store.root
        files = sorted(path for path in source.rglob("*") if path.is_file())
        left = int(share * sum(path.stat().st_size for path in files))
        for path in files:
            content = path.read_bytes()
            target = trial.store.root / path.relative_to(source)
            if len(content) > left:  # rsync writes it beside its place first
                _put(target.with_name(f".{target.name}.Xy12Ab"), content[:left])
                return
            _put(target, content)
            left -= len(content)

    results = []
    for number in range(cuts):
        with ground.trial(empty=True) as trial:
            copy(trial, number / cuts)
            hit = trial.wrong()
            trial.look()
            trial.run()
            results.append(trial.judge("a copy by rsync that broke off", hit))
    yield join(results)
