"""Whatever happens to grids, launches and gc itself, gc never removes what somebody needs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from harness.cluster import garbage, launches, scheduler
from harness.core.errors import ClusterError, StoreError
from harness.core.store import Claim, Store, write_json
from harness.core.trash import Trash
from harness.run import plan as plans
from harness.run import remembering
from tests.support.fakeslurm import launched
from tests.support.plans import fill, plan_of, values

GRIDS = ("here/a.yaml", "here/b.yaml", "away/a.yaml")
NUMBERS = st.sets(st.integers(1, 7), min_size=1, max_size=2)
DEAD = json.dumps({"host": "far", "place": "far", "pid": 1, "started": 0.0})
WEEK_S = 7 * 24 * 3600.0


class Crash(BaseException):
    """The end of a process, as far as `finally` allows."""


class Histories(RuleBasedStateMachine):
    """A store, its users, and what they know that they need."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="gc-"))
        self.store = Store(self.root / "store")
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(scheduler, "slurm", self._slurm)
        self.queue: dict[str, set[str]] = {}  # id of a launch in the queue -> keys
        self.launched: dict[str, set[str]] = {}
        self.down = False
        self.claims: dict[str, Claim] = {}
        self.versions: dict[Path, dict[str, Any]] = {}  # file of the memory -> path, keys, order
        self.order = 0

    @initialize()
    def begin(self) -> None:
        for folder in ("here", "away"):
            (self.root / folder).mkdir()

    def teardown(self) -> None:
        for claim in self.claims.values():
            claim.__exit__()
        self.patches.undo()
        shutil.rmtree(self.root)

    def _slurm(self, *command: str) -> str:
        if self.down:
            raise ClusterError("squeue does not answer")
        return "".join(f"bitgrid|7|0|PENDING|None|||toy:{id}:0\n" for id in self.queue)

    # Grids

    @rule(grid=st.sampled_from(GRIDS), numbers=NUMBERS)
    def plan(self, grid: str, numbers: set[int]) -> None:
        """Write a grid, or edit it, and run it."""
        path = self.root / grid
        if path.parent.exists():
            path.write_text(f"{sorted(numbers)}")
            self.remember(path, numbers)
            fill(self.store, plan_of(path, numbers).nodes)

    def remember(self, path: Path, numbers: set[int]) -> None:
        plan = plan_of(path, numbers)
        remembering.remember(plan, self.store, required=True)
        memory = [each for each in self.list_memory() if each["path"] == str(path)]
        for file, version in list(self.versions.items()):
            if file.parent.name == "plans" and version["path"] == str(path):  # it is replaced
                del self.versions[file]
                (known,) = (each for each in memory if each["keys"] == version["keys"])
                self.versions.setdefault(known["file"], {**version, "file": known["file"]})
        (known,) = (each for each in memory if each["keys"] == set(plan.nodes))
        self.order += 1
        self.versions[known["file"]] = {**known, "order": self.order}

    def list_memory(self) -> Iterator[dict[str, Any]]:
        for file in sorted((self.store.root / "grids").glob("[!.]*.json")):
            with suppress(ValueError, TypeError, KeyError):
                facts = json.loads(file.read_text())
                yield {"file": file, "path": facts["path"], "keys": set(facts["keys"])}

    @rule(grid=st.sampled_from(GRIDS), to=st.sampled_from(GRIDS))
    def rename(self, grid: str, to: str) -> None:
        path, target = self.root / grid, self.root / to
        if path.exists() and target.parent.exists() and not target.exists():
            path.rename(target)

    @rule(grid=st.sampled_from(GRIDS))
    def delete(self, grid: str) -> None:
        (self.root / grid).unlink(missing_ok=True)

    @rule()
    def mount_or_unmount(self) -> None:
        away, hidden = self.root / "away", self.root / "unmounted"
        away.rename(hidden) if away.exists() else hidden.rename(away)

    @rule(grid=st.sampled_from(GRIDS), numbers=NUMBERS, schema=st.integers(1, plans.SCHEMA))
    def plan_with_an_older_program(self, grid: str, numbers: set[int], schema: int) -> None:
        """It knows of no memory: only the plan is there, of its own schema."""
        path = self.root / grid
        if not path.parent.exists():
            return
        path.write_text("old")
        remembering.remember(plan_of(path, numbers), Store(self.root / "aside"))
        (made,) = (self.root / "aside" / "plans").iterdir()
        plan = self.store.root / "plans" / made.name
        time.sleep(0.01)  # file systems' clocks tick
        plan.parent.mkdir(parents=True, exist_ok=True)
        write_json(plan, {**json.loads(made.read_text()), "schema": schema})
        shutil.rmtree(self.root / "aside")
        self.order += 1
        keys = set(plan_of(path, numbers).nodes)
        self.versions[plan] = {"file": plan, "path": str(path), "keys": keys, "order": self.order}

    @precondition(lambda self: any((self.store.root / "grids").glob("[!.]*.json")))
    @rule(
        data=st.data(),
        text=st.sampled_from(["{", '{"schema": 99}', "[]", '{"schema": 1, "keys": 3}']),
    )
    def ruin_and_mend_a_memory(self, data: st.DataObject, text: str) -> None:
        """A bad disk, or a later program: nothing is removed meanwhile."""
        files = sorted((self.store.root / "grids").glob("[!.]*.json"))
        file, before = data.draw(st.sampled_from(files)), values(self.store)
        sound, changed = file.read_text(), file.stat().st_mtime_ns
        file.write_text(text)
        with pytest.raises(StoreError, match="nothing is removed"):
            garbage.collect(self.store, lambda _: True, 0.0, lambda _: None)
        assert values(self.store) == before
        file.write_text(sound)
        os.utime(file, ns=(changed, changed))

    # Values

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        keys = sorted(set().union(*(version["keys"] for version in self.versions.values())))
        fill(self.store, data.draw(st.just(keys) | st.sets(st.sampled_from(keys), max_size=6)))

    @rule(key=st.integers(1, 7))
    def leave_scratch(self, key: int) -> None:
        """What killed processes leave."""
        for place in (f"work/k{key}/step", f"drafts/k{key}.ab12/part", "code/abc/x.py"):
            (self.store.root / place).parent.mkdir(parents=True, exist_ok=True)
            (self.store.root / place).write_text("x")
        claim = self.store.root / f"claims/k{key}.0"
        claim.parent.mkdir(exist_ok=True)
        if not list(claim.parent.glob(f"k{key}.*")):
            claim.write_text(DEAD)
            os.utime(claim, (0, 0))

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def begin_to_compute(self, data: st.DataObject) -> None:
        keys = sorted(set().union(*(version["keys"] for version in self.versions.values())))
        key = data.draw(st.sampled_from(keys))
        if key not in self.claims and (claim := self.store.claim(key)):
            self.claims[key] = claim

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def stop_computing(self, data: st.DataObject) -> None:
        self.claims.pop(data.draw(st.sampled_from(sorted(self.claims)))).__exit__()

    # Launches

    @precondition(lambda self: len(self.launched) < 3)
    @rule(grid=st.sampled_from(GRIDS), numbers=NUMBERS)
    def launch(self, grid: str, numbers: set[int]) -> None:
        path = self.root / grid
        if not path.parent.exists():
            return
        path.write_text(f"{sorted(numbers)}")
        self.remember(path, numbers)
        plan, id = plan_of(path, numbers), f"2026-{len(self.launched)}"
        record = launched(self.store.root, path, [tuple(plan.nodes)[-1:]], id)
        plans.write(plan, record.folder / launches.PLAN)
        self.queue[id] = self.launched[id] = set(plan.nodes)

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def end_jobs(self, data: st.DataObject) -> None:
        del self.queue[data.draw(st.sampled_from(sorted(self.queue)))]

    @rule()
    def lose_or_find_the_controller(self) -> None:
        self.down = not self.down

    # Collections

    def needed(self) -> set[str]:
        """As the users have it."""
        jobs = self.launched if self.down else self.queue
        alive = {id: keys for id, keys in jobs.items() if (self._folder(id)).exists()}
        return set(self.claims).union(
            *(version["keys"] for version in self.versions.values()), *alive.values()
        )

    def _folder(self, id: str) -> Path:
        return self.store.root / "launches" / id

    def may_forget(self, version: dict[str, Any], lost: bool, earlier: bool) -> bool:
        path = Path(version["path"])
        if version["keys"] & set(self.claims) or not path.parent.exists():
            return False
        if not path.exists():
            return lost
        of_path = [v["order"] for v in self.versions.values() if v["path"] == version["path"]]
        return earlier and version["order"] < max(of_path)

    @rule()
    def collect_all(self) -> None:
        self.collect(True, True, 0.0, True, None, None)

    @rule(lost=st.booleans(), earlier=st.booleans())
    def collect_and_keep_the_trash(self, lost: bool, earlier: bool) -> None:
        self.collect(lost, earlier, WEEK_S, True, None, None)

    @rule(
        lost=st.booleans(),
        earlier=st.booleans(),
        older=st.sampled_from([0.0, WEEK_S]),
        yes=st.booleans(),
        at=st.none() | st.integers(1, 60),
        numbers=st.none() | NUMBERS,
    )
    def collect(
        self,
        lost: bool,
        earlier: bool,
        older: float,
        yes: bool,
        at: int | None,
        numbers: set[int] | None,
    ) -> None:
        """gc; at its file-system step `at` it is killed, or a grid is planned beside it."""
        had, tree = values(self.store), self.list_files()
        expected, told = set[Path](), list[Path]()
        forget = garbage.choose(self.store, lost, earlier, ())
        allowed = {f for f, v in self.versions.items() if self.may_forget(v, lost, earlier)}
        refused = False
        try:
            view = garbage.look(self.store, forget)
            expected |= {*garbage.list_forgotten(self.store, view)}
            expected |= {*garbage.list_waste(self.store, view)}
            expected |= {each.path for each in Trash(self.store.root).contents()}
            assert self.list_files() == tree, "looking changes nothing"
            if not yes:
                return
        except StoreError:
            refused = True
        meanwhile = numbers if at and (self.root / "here").exists() else None
        try:
            with self.at_step(at, meanwhile):
                garbage.collect(self.store, forget, older, told.append)
        except (StoreError, ClusterError):
            assert self.claims
        except Crash:
            self.bury()
        else:
            assert not refused
        gone = {file for file in self.versions if not file.exists()}
        assert gone <= allowed | {
            f for f in self.versions if self.may_forget(self.versions[f], lost, earlier)
        }
        for file in gone:
            del self.versions[file]
        if refused:
            assert values(self.store) == had
        trashed = {each.key for each in Trash(self.store.root).contents()}
        here = values(self.store)
        lost_values = (had & self.needed()) - here
        assert lost_values <= trashed, f"{lost_values} removed"
        if at is None and not refused:
            assert not lost_values, f"{lost_values} in the trash"
        missing = {self.store.root / "values" / key for key in had - here}
        assert missing <= set(told)
        if not meanwhile:
            assert set(told) <= expected | {path for path in told if "trash" in path.parts}

    def bury(self) -> None:
        """Have the claims of a collection that was killed be those of a dead process."""
        held = {claim.path for claim in self.claims.values()}
        for path in (self.store.root / "claims").glob("[!.]*"):
            if path not in held:
                path.write_text(DEAD)
                os.utime(path, (0, 0))

    def list_files(self) -> dict[str, int]:
        return {
            str(path): path.lstat().st_mtime_ns
            for path in self.store.root.rglob("*")
            if "claims" not in path.parts  # whose folder has the file system's clock
        }

    @contextmanager
    def at_step(self, at: int | None, numbers: set[int] | None) -> Iterator[None]:
        """Have the step `at` of those that change the file system fail, or find a new plan."""
        steps = 0

        def counting(change: Callable[..., Any]) -> Callable[..., Any]:
            def step(*arguments: Any, **options: Any) -> Any:
                nonlocal steps
                steps += 1
                if steps == at and numbers is None:
                    raise Crash
                if steps == at and numbers is not None:
                    path = self.root / "here" / "meanwhile.yaml"
                    path.write_text("new")
                    self.remember(path, numbers)
                return change(*arguments, **options)

            return step

        with pytest.MonkeyPatch.context() as patches:
            if at is not None:
                for where, name in (
                    *((Path, name) for name in ("rename", "mkdir", "rmdir", "touch")),
                    (os, "link"),
                    (shutil, "rmtree"),
                ):
                    patches.setattr(where, name, counting(getattr(where, name)))
            yield


def test_no_history_makes_gc_remove_what_somebody_needs() -> None:
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=int(os.environ.get("BITGRID_HISTORIES", "30")),
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
