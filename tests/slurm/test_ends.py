"""What is said of jobs that end early on a real SLURM, and launches from inside an allocation."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from tests.support.slurm.lab import Lab, LabError
from tests.support.slurm.place import WITHOUT_CLIP, Place, slow, until

LAUNCH = ("launch", "grid.yaml", "--cluster", "cluster.yaml")


def test_ends_are_told_and_an_allocation_around_a_launch_changes_nothing(
    lab: Lab, tmp_path: Path
) -> None:
    """Three launches at once. SLURM's signal at a time limit is given by hand after half of it, to
    be quick; where the host is slow its own comes first, which is as well."""
    # Two stages in one job of two minutes.
    limit = {"hours": 2 / 60 / 2, "signal_delay_s": 10, "requeues": 0}
    steps = {"train.steps": 40, "train.checkpoint_every": 1}
    often = {"method": WITHOUT_CLIP, "defaults": steps}
    limited = Place(tmp_path / "limited", often, {**slow(step_s=3.0), **limit})
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
    until(lambda: limited.step(key) >= 20 or "ended: " in limited.logs(), 250, limited.logs)
    with suppress(LabError):  # it has ended
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
