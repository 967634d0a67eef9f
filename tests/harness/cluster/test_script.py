"""The lines of a job's script before the job: what fails there ends it, and says so."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from harness.cluster import snapshots
from harness.cluster.script import write_lines
from harness.core.errors import ClusterError
from harness.core.store import Store


def run_lines(lines: list[str]) -> tuple[int, str]:
    """Status and output of a script of these lines, which says at its end that it came there."""
    script = "\n".join([*lines, "echo at the end"])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize("lost", ["harness/published", "SHA256SUMS", "."])
def test_the_script_of_a_job_stops_where_its_snapshot_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Before any Python: what is lost may be what a job imports first."""
    monkeypatch.setattr(snapshots, "PACKAGES", ("harness/published",))
    folder = snapshots.take_snapshot(Store(tmp_path / "my store"))
    lines = write_lines([], folder)
    assert run_lines(lines) == (0, "at the end\n")
    shutil.rmtree(folder / lost) if lost != "SHA256SUMS" else (folder / lost).unlink()
    status, said = run_lines(lines)
    assert (status, said) == (
        1,
        f"bitgrid: ended: the snapshot {folder} is not the code that was launched; launch again\n",
    )


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        (["true; false", "echo no"], "bitgrid: ended: the line of setup 'true; false' failed\n"),
        (["echo it\\'s on; [ -f /no ]"], "it's on\nbitgrid: ended: the line of setup"),
        (["if [ -f /no ]; then", "  false", "fi # it may lack", "exit 3"], ""),
        (
            ["# note", "echo a \\", "b", "nosuch || true", "(exit 3)"],
            "a b\nbitgrid: ended: the line of",
        ),
    ],
)
def test_a_line_of_setup_that_fails_stops_the_job(setup: list[str], said: str) -> None:
    status, told = run_lines(write_lines(setup, Path("/nowhere")))
    assert status != 0 and told.startswith(said) and "at the end" not in told


def test_a_folder_of_the_node_has_its_variables_put_in_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "PACKAGES", ("harness/published",))
    code = snapshots.take_snapshot(Store(tmp_path / "store"))
    monkeypatch.setenv("OF_NODE", "/disk of/me")
    shown = 'echo "[$BITGRID_NODE_SCRATCH]"'
    for path, seen in (("/x/$OF_NODE", "/x//disk of/me"), ("${OF_NODE}2/y", "/disk of/me2/y")):
        status, said = run_lines([*write_lines([], code, path), shown])
        assert (status, said.splitlines()[0]) == (0, f"[{seen}]")
    # After `setup`, which may set it; where nothing does, no other folder is taken.
    lines = write_lines(["export NO_SUCH=/there"], code, "$NO_SUCH/x")
    assert run_lines([*lines, shown])[1].startswith("[/there/x]")
    assert run_lines(write_lines([], code, "$NO_SUCH/x")) == (
        1,
        "bitgrid: ended: node_scratch: a variable of $NO_SUCH/x is not set on the node\n",
    )


def test_setup_that_no_shell_reads_is_refused() -> None:
    for setup in (["if true; then", "true"], ["echo 'a"], ["a \\"]):
        with pytest.raises(ClusterError, match="setup: bash cannot read"):
            write_lines(setup, Path("/nowhere"))
