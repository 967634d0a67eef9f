"""Launched grids on a real SLURM: what a user is promised, also when a job is lost."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.support.slurm.lab import Lab
from tests.support.slurm.place import TRAINED, WITHOUT_CLIP, Place, slow, until


def test_a_grid_gives_the_rows_of_a_run_here(lab: Lab, tmp_path: Path) -> None:
    grid = {
        "method": "bitdistiller",
        "vary": {"format.bits": [3, 2]},
        "compare": ["bf16", "awq-clip"],
        "evaluate": [{"testbed-ppl": {"limit": 2}}, {"testbed_knowledge": {"limit": 4}}],
    }
    here, there = Place(tmp_path / "here", grid), Place(tmp_path / "there", grid)
    said = there.launch()
    here.bitgrid("run", "grid.yaml", "--out", "out")
    there.finish()
    assert "done already: 0" in said
    assert there.all_done_once(), there.logs()
    assert there.rows() == (here.folder / "out" / "rows.jsonl").read_text()
    assert "nothing to submit" in there.launch()


def test_cancelling_one_job_leaves_the_others(lab: Lab, tmp_path: Path) -> None:
    # Each clip search is shared by two methods, so it is a job of its own.
    grid = {"vary": {"format.group_size": [32, 64]}, "compare": ["awq-clip"]}
    place = Place(tmp_path, grid)
    nodes = ("scontrol", "update", "nodename=node[1-2]")
    lab.run(*nodes, "state=drain", "reason=jobs wait for the cancellation")
    place.launch()
    (launch,) = place.launches
    searches = set(place.keys("clip-search"))
    array = next(job.array for job in launch.jobs if searches & set(job.keys))
    lab.run("scancel", f"{launch.submitted[array]}")
    lab.run(*nodes, "state=resume")
    place.finish()
    said = place.status()
    assert "lost: clip-search" in said and "cancelled" in said
    assert "an input is missing: clip-search" in place.logs()
    assert sum(place.store.has(key) for key in searches) == 1, said
    assert sum(place.store.has(key) for key in place.keys("perplexity")) == 2, said
    before = place.computed()
    place.launch("--retry", "failed")
    place.finish()
    assert place.all_done_once(), place.logs()
    assert sum(before.values()) < sum(place.computed().values())


def test_a_failing_cell_leaves_the_others(lab: Lab, tmp_path: Path) -> None:
    wild = {"lr": 10, "weight_decay": 10, "steps": 30, "checkpoint_every": 0}  # diverges
    grid = {"vary": {"train": [{"lr": 1e-4}, wild]}, "compare": ["rtn"]}
    place = Place(tmp_path, grid)
    place.launch()
    place.finish()
    said = place.status()
    assert "failed: train" in said and "diverged at step" in said, said
    assert sum(place.store.has(key) for key in place.keys("perplexity")) == 2
    again = place.launch()
    assert "2 stages failed before, or need one that did" in again and "nothing to submit" in again
    place.launch("--retry", "failed")
    place.finish()
    (failed,) = [key for key in place.keys("train") if not place.store.has(key)]
    assert place.begun()[failed[:8]] == 2  # run again, and it failed again
    assert max(place.computed().values()) == 1


def test_two_launches_at_once(lab: Lab, tmp_path: Path) -> None:
    grid = {"vary": {"seed": [0, 1]}, "compare": ["awq-clip"], "method": WITHOUT_CLIP}
    place = Place(tmp_path, grid)
    words = ("launch", "grid.yaml", "--cluster", "cluster.yaml")
    both = [place.start(*words) for _ in range(2)]
    said = [process.communicate(timeout=400)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    place.finish()
    assert place.all_done_once(), place.logs()
    assert sum("nothing to submit" in words for words in said) == 1, said


def test_the_launching_process_dies_after_submission(lab: Lab, tmp_path: Path) -> None:
    place = Place(tmp_path, {"compare": ["rtn", "awq-clip"]})
    process = place.start("launch", "grid.yaml", "--cluster", "cluster.yaml")
    until(lambda: any(launch.submitted for launch in place.launches), 300)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "clip-search" in place.status()
    place.finish()
    if not all(place.store.has(key) for key in place.keys("perplexity")):
        assert "never submitted" in place.status()
    place.launch("--retry", "failed")
    place.finish()
    assert place.all_done_once(), place.logs()
    assert place.rows().count('"testbed-ppl"') == 3


def test_values_that_are_seen_late(lab: Lab, tmp_path: Path) -> None:
    grid = {"compare": ["awq-clip"]}
    here = Place(tmp_path / "here", grid)
    there = Place(tmp_path / "there", grid, {**slow(late_s=4.0), "visible_s": 30})
    there.launch()
    here.bitgrid("run", "grid.yaml", "--out", "out")
    there.finish()
    assert there.all_done_once(), there.logs()
    assert there.rows() == (here.folder / "out" / "rows.jsonl").read_text()


def test_status_logs_and_cancel_while_it_runs(lab: Lab, tmp_path: Path) -> None:
    place = Place(tmp_path, TRAINED, slow(step_s=1.0))
    place.launch()
    (key,) = place.keys("train")
    until(lambda: place.step(key) >= 3, 300, place.logs)
    said = place.status()
    assert "running: train" in said and "/40 loss" in said and " left" in said, said
    assert "begin train" in place.bitgrid("logs", "grid.yaml", "bitdistiller")
    assert "cancelled 1 jobs" in place.bitgrid("cancel", "grid.yaml")
    place.finish(120)
    said = place.status()
    assert "lost: train" in said and "cancelled" in said, said
