"""What is said of jobs that end early on a real SLURM, and launches from inside an allocation."""

from __future__ import annotations

from pathlib import Path

from tests.slurm.test_launch import slow
from tests.support.slurm.lab import Lab
from tests.support.slurm.place import Place, until

LAUNCH = ("launch", "grid.yaml", "--cluster", "cluster.yaml")


def test_ends_are_told_and_an_allocation_around_a_launch_changes_nothing(
    lab: Lab, tmp_path: Path
) -> None:
    """Three launches at once. SLURM's signal at a time limit is given by hand, to be quick."""
    # Two stages in one job of five minutes: SLURM's own signal would come long after ours.
    limit = {"hours": 5 / 60 / 2, "signal_delay_s": 10, "requeues": 0}
    often = {"defaults": {"init": "none", "train.steps": 40, "train.checkpoint_every": 1}}
    limited = Place(tmp_path / "limited", often, {**slow(step_s=1.0), **limit})
    broken = Place(tmp_path / "broken", {"compare": ["rtn"]}, {"setup": ["module load nosuch"]})
    inner = Place(tmp_path / "inner", {"method": "rtn", "defaults": {}}, {"memory_gib": 1})
    outer = ("salloc", "--quiet", "-n", "2", "-c", "2", "--mem=200")
    started = [
        limited.start(*LAUNCH),
        broken.start(*LAUNCH),
        inner.start(*LAUNCH, inside=outer),
    ]
    for process in started:
        said, _ = process.communicate(timeout=400)
        assert process.returncode == 0, said
    (key,) = limited.keys("train")
    until(lambda: limited.step(key) >= 2, 250, limited.logs)
    lab.run("scancel", "--signal=USR2", limited.launches[0].submitted[0])
    inner.finish()
    assert inner.all_done_once(), inner.logs()
    broken.finish()
    assert "the line of setup 'module load nosuch' failed" in broken.status()
    limited.finish()
    said = limited.status()
    assert "lost: train" in said and "failed" not in said, said
    assert "h, met by train at step " in said and "as often as `requeues` allows" in said, said
    assert limited.store.failure(key) is None
