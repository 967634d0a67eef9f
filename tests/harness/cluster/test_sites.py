"""What sites need: containers, raw lines, a command at the end, limits, noise, lost answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.cluster import scheduler, snapshots
from harness.cluster import submit as launching
from harness.core.errors import ClusterError
from harness.core.store import Store
from harness.grid.expand import Grid
from harness.run.plan import Plan, build
from tests.harness.cluster.test_submit import SPLIT, flags, prepare
from tests.support import fakeslurm
from tests.support.fakeslurm import Slurm
from tests.support.toys import toy_grid


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return fakeslurm.install(tmp_path / "lab", monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Grid, Plan]:
    """Cells in two arrays: models, and their scores."""
    monkeypatch.setattr(snapshots, "PACKAGES", ("harness/published",))  # is copied faster
    monkeypatch.setattr(launching.waves, "ENOUGH", 2)
    grid = toy_grid(tmp_path / "toy.yaml")
    return grid, build(grid)


def test_a_container_and_raw_lines_are_seen_in_the_script(
    made: tuple[Grid, Plan], store: Store, slurm: Slurm
) -> None:
    more = {
        "directives": ["#DW jobdw capacity=10GB", "#SBATCH --hint=nomultithread"],
        "srun": ["--container-image=/x/a b.sqsh", "--mpi=none"],
        "prefix": "apptainer exec --nv /x/image.sif",
        "python": "/opt/venv/bin/python",
    }
    profile = SPLIT.model_copy(update=more)
    launching.launch(prepare(made, store, profile), made[1], store, profile)
    for text in slurm.submitted:  # an array of several, too
        lines = text.splitlines()
        assert flags(text)["hint"] == "nomultithread"
        first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
        assert lines.index("#DW jobdw capacity=10GB") < first
        assert re.search(
            r"^srun .* '--container-image=/x/a b.sqsh' --mpi=none apptainer exec --nv "
            r"/x/image.sif /opt/venv/bin/python -u -m submitit.core._submit ",
            text,
            re.MULTILINE,
        )


def test_a_command_is_run_at_the_end(made: tuple[Grid, Plan], store: Store, slurm: Slurm) -> None:
    profile = SPLIT.model_copy(update={"notify": "mail -s done me@x < /dev/null"})
    launch = launching.launch(prepare(made, store, profile), made[1], store, profile)
    *_, text = slurm.submitted
    asked = flags(text)
    assert (asked["dependency"], asked["job-name"]) == ("afterany:1:2", f"toy:{launch.id}:end")
    assert "gres" not in asked and asked["partition"] == "cpu"
    assert text.splitlines()[-1] == "mail -s done me@x < /dev/null"
    assert f"export BITGRID_LAUNCH={launch.id}" in text


@pytest.mark.parametrize(
    ("assoc", "qos", "partitions", "room"),
    [
        ("nlp||||normal\n", "normal|||\n", "", None),
        ("nlp||5||normal\n", "normal|||\n", "", 5),
        ("nlp|||4|normal\n", "normal|7||\n", "", 4),
        ("nlp||9||normal\n", "normal|2||\nlong|1||\n", "", 2),
        ("nlp||9||long\n", "normal|2||\nlong||3|\n", "", 3),
        ("nlp||9||\nother||1||\n", "normal|||8\n", "", 8),
        ("nlp|cpu|9||\nnlp|gpu|6||\nnlp|fat|1||\n", "normal|||\n", "", 6),
        ("nlp||9||\n", "night|4||\n", "PartitionName=gpu A=1 QoS=night X=2\n", 4),
        ("nlp||9||\n", "night|4||\n", "PartitionName=fat A=1 QoS=night X=2\n", 9),
        ("a notice | of job 7\nnlp||9||\n", "1|2|3\nnormal|7||\n", "", 7),
    ],
)
def test_limits_of_association_qos_and_partition(
    slurm: Slurm, assoc: str, qos: str, partitions: str, room: int | None
) -> None:
    slurm.limit(assoc, qos, partitions)
    assert scheduler.count_submittable({"cpu", "gpu"}, {"nlp"}, ()) == room


def test_a_limit_met_while_submitting_keeps_what_was_submitted(
    made: tuple[Grid, Plan], store: Store, slurm: Slurm
) -> None:
    slurm.refuse("sbatch: error: QOSMaxSubmitJobPerUserLimit", since=2)
    launch = launching.launch(prepare(made, store, SPLIT), made[1], store, SPLIT)
    assert launch.submitted == {0: "1"} and slurm.said("cancelled") == []


def test_noise_around_a_job_s_number_changes_nothing(
    made: tuple[Grid, Plan], store: Store, slurm: Slurm
) -> None:
    (slurm.folder / "noise").write_text("** job 99 of 2026 | see /etc/motd **\nCLUSTER: lab\n")
    launch = launching.launch(prepare(made, store, SPLIT), made[1], store, SPLIT)
    assert launch.submitted == {0: "1", 1: "2"}
    assert sorted(path.name for path in (launch.folder / "logs/0").glob("*.pkl")) == [
        f"1_{task}_submitted.pkl" for task in range(4)
    ]


def test_a_submission_that_timed_out_is_found_by_its_name(
    made: tuple[Grid, Plan], store: Store, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_SEARCHES_S", (0.0, 0.0))
    words = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"
    (slurm.folder / "late").write_text(words)
    launch = launching.launch(prepare(made, store, SPLIT), made[1], store, SPLIT)
    assert launch.submitted == {0: "1", 1: "2"} and len(slurm.submitted) == 2
    slurm.refuse(words, since=3)  # and it did not arrive
    slurm.queue()
    with pytest.raises(ClusterError, match="Socket timed out on send/recv operation; nothing was"):
        launching.launch(prepare(made, store, SPLIT), made[1], store, SPLIT)
