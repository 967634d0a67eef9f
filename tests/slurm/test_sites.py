"""What sites ask for, on a real SLURM: a throttle, a disk of each node, a container, a ceiling."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.support.slurm.lab import Lab
from tests.support.slurm.place import Place, slow, until

# A stand-in for apptainer: it notes how it was called, and runs what comes after the image.
APPTAINER = """#!/bin/sh
echo "apptainer $*" >> {log}
while [ "${{1%.sif}}" = "$1" ]; do shift; done
shift
APPTAINER_CONTAINER=image.sif exec "$@"
"""


def find_overlap(lab: Lab, names: set[str]) -> int:
    """The most jobs of these names that ran at once, by SLURM's accounting."""
    form = ["-n", "-P", "-X", "--format=JobName,Start,End", f"--name={','.join(names)}"]

    def ask() -> list[list[str]]:
        return [line.split("|") for line in lab.run("sacct", *form).splitlines()]

    def is_complete() -> bool:  # accounting learns of an end some seconds after the queue does
        return len(ask()) >= len(names) and not any("Unknown" in row for row in ask())

    until(is_complete, 60, lambda: f"{ask()}")
    edges = [(at, step) for _, start, end in ask() for at, step in ((start, 1), (end, -1))]
    running, most = 0, 0
    for _, step in sorted(edges):  # an end before a start of the same second
        running += step
        most = max(most, running)
    return most


def test_a_throttle_holds_over_all_arrays_and_models_are_copied_to_the_nodes(
    lab: Lab, tmp_path: Path
) -> None:
    """Jobs in several arrays, of which the nodes could run eight; two are to run at once."""
    grid = {"vary": {"format.group_size": [32, 64]}, "compare": ["awq-clip"]}
    scratch = tmp_path / "$SLURMD_NODENAME"
    profile = {**slow(), "launch_parallelism": 2, "node_scratch": str(scratch)}
    place = Place(tmp_path, grid, profile)
    place.launch()
    (launch,) = place.launches
    assert len(launch.submitted) >= 3 and len(launch.jobs) > 4
    place.finish()
    assert place.all_done_once(), place.logs()
    assert find_overlap(lab, launch.names) == 2
    copies = list(tmp_path.glob("node[12]/bitgrid-0/*/model.safetensors"))
    assert 1 <= len(copies) <= 2, place.logs()
    assert "node_scratch" not in place.logs()


def test_a_container_runs_the_job(lab: Lab, tmp_path: Path) -> None:
    """By a stand-in for apptainer on PATH: real images are not tried here."""
    (tmp_path / "bin").mkdir()
    stand_in, log = tmp_path / "bin" / "apptainer", tmp_path / "called"
    stand_in.write_text(APPTAINER.format(log=log))
    stand_in.chmod(0o755)
    profile = {
        "setup": [f"export PATH={tmp_path / 'bin'}:$PATH"],
        "prefix": "apptainer exec --nv --bind /scratch /images/bitgrid.sif",
        "srun": ["--export=ALL"],
    }
    place = Place(tmp_path, {"method": "rtn", "defaults": {}}, profile)
    place.launch()
    (script,) = place.store.root.glob("launches/*/logs/0/submission.sh")
    python = re.escape(sys.executable)
    words = rf"^srun .* --export=ALL apptainer exec --nv --bind /scratch \S+\.sif {python} -u -m "
    assert re.search(words, script.read_text(), re.MULTILINE)
    place.finish()
    assert place.all_done_once(), place.logs()
    assert "apptainer exec --nv --bind /scratch /images/bitgrid.sif" in log.read_text()
