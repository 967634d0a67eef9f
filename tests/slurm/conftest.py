"""One SLURM for all tests of this folder, at rest when a test begins."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slurm.lab import Lab, missing


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A running lab, known to this process's environment; skipped where SLURM cannot run."""
    if reason := missing():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    with Lab(folder) as started, pytest.MonkeyPatch.context() as patch:
        for name, value in started.environment.items():
            patch.setenv(name, value)
        yield started


@pytest.fixture(autouse=True)
def lab_at_rest(lab: Lab) -> None:
    """Whatever the test before killed is up again, and its jobs are gone."""
    lab.repair()
