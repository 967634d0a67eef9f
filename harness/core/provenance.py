"""What stood behind a value when it was computed: code, commit, versions, device, time, memory.

Recorded in each manifest and shown; never acted on: a change of code makes a value stale, which is
said, not invalid. Not here: the key, which alone decides what is computed again
(`harness.core.stage`), and how code is read (`harness.core.definitions`).
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.definitions import ROOT, Code, compare

if TYPE_CHECKING:
    import torch

ALWAYS = ("bitgrid", "torch")  # behind every value
UNTRACKED = "untracked"


@dataclass
class Measured:
    """Filled when the block of `measure` ends."""

    facts: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def measure(here: torch.device) -> Iterator[Measured]:
    """Wall time and peak memory of a block that computes on device `here`, with the machine.

    Of several processes that share the block, the largest peak.
    """
    import torch

    measured, started, clock = Measured(), time.time(), time.perf_counter()
    if here.type == "cuda":
        torch.cuda.reset_peak_memory_stats(here)
    yield measured
    measured.facts = {
        "started": round(started, 3),
        "wall_s": round(time.perf_counter() - clock, 3),
        "peak_rss_gib": _largest(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20),
        **describe_machine(here),
    }
    if here.type == "cuda":
        measured.facts["peak_gpu_gib"] = _largest(torch.cuda.max_memory_allocated(here) / 2**30)


def _largest(gib: float) -> float:
    """Over the processes that compute a stage together; each must ask."""
    import torch
    import torch.distributed as dist

    most = torch.tensor(gib, dtype=torch.float64)  # on the host, where processes can always talk
    if dist.is_initialized():
        dist.all_reduce(most, dist.ReduceOp.MAX)
    return round(most.item(), 3)


def describe_machine(here: torch.device) -> dict[str, Any]:
    """The machine of a process that computes on device `here`: Python, host, threads, job."""
    import torch

    named = torch.cuda.get_device_name(here) if here.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "host": platform.node(),
        "device": here.type,
        "device_name": named or platform.machine(),
        "threads": torch.get_num_threads(),
        **_job(),
    }


def _job() -> dict[str, Any]:
    """The SLURM job that this process is part of, and which attempt it is (from 0)."""
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    job = os.environ["SLURM_JOB_ID"]
    named = job if task is None else f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}"
    return {"job": named, "attempt": int(os.environ.get("SLURM_RESTART_COUNT", 0))}


def find_versions(distributions: Iterable[str] = ()) -> dict[str, str]:
    """Versions of installed distributions, and of those behind every value."""
    named = {name: _version(name) for name in sorted({*ALWAYS, *distributions})}
    return {name: number for name, number in named.items() if number is not None}


@cache
def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def find_commit(files: Iterable[Path] = ()) -> str | None:
    """The git commit of the project's code, with `+` where one of `files` differs from it.

    A file that git does not know differs too. None outside of a checkout, as for an installed
    package. A snapshot of the code has a file COMMIT that says it.
    """
    with contextlib.suppress(OSError):
        return (ROOT / "COMMIT").read_text().strip() or None
    # Without its own .git this is an installed package, and the checkout around it is a user's.
    head = _head(ROOT) if (ROOT / ".git").exists() else None
    inside = {path for path in files if path.is_relative_to(ROOT)}
    return head and head + ("+" if inside & _changed_files(ROOT) else "")


def find_other_sources(files: Iterable[Path]) -> dict[str, str]:
    """Source files outside of this project -> their commit, `+` where changed, or "untracked".

    Files of installed packages are left out: those have versions.
    """
    commits = {}
    for path in sorted(files):
        if path.is_relative_to(ROOT) or "site-packages" in path.parts:
            continue
        top = _top(path.parent)
        head = top and _head(top)
        changed = top is not None and path in _changed_files(top)
        commits[str(path)] = UNTRACKED if not head else head + ("+" if changed else "")
    return commits


@cache
def _head(folder: Path) -> str | None:
    return _git(folder, "rev-parse", "HEAD")


@cache
def _top(folder: Path) -> Path | None:
    """The checkout that a folder lies in."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    return Path(top) if top else None


@cache
def _changed_files(folder: Path) -> frozenset[Path]:
    """Files of a checkout that differ from its commit, or that git does not know."""
    lines = _git(folder, "status", "--porcelain", "-uall", "--no-renames", "-z") or ""
    return frozenset(folder / line[3:] for line in lines.split("\0") if line)


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.rstrip("\n")


def describe_code(code: Code) -> dict[str, Any]:
    """What a manifest says of the code behind a value, as it is now."""
    outside = find_other_sources(code.files)
    return {
        "code": code.digest,
        "commit": find_commit(code.files),
        "packages": find_versions(code.distributions),
        **({"sources": outside} if outside else {}),
    }


def explain_staleness(
    recorded: Mapping[str, Any],
    digest: str,
    old: Mapping[str, str] | None,
    new: Mapping[str, str] | None,
) -> str | None:
    """Why a value is stale, in words; None where it is not.

    `recorded`: its manifest. `digest`: of the code that would compute it now. `old` and `new`: the
    definitions behind both digests, None where they are not known.
    """
    if recorded.get("code") != digest:
        names = compare(old, new) if old is not None and new is not None else []
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"code changed: {shown}" if names else "code changed"
    for name, was in sorted(dict(recorded.get("packages") or {}).items()):
        now = _version(name)
        if name != "bitgrid" and now != was:  # its own code has a digest
            return f"package changed: {name} {was} -> {now or 'not installed'}"
    return None


def list_sources() -> list[Path]:
    """The project's source files, whose change can change what a grid means."""
    return sorted(
        path for package in ("harness", "methods") for path in (ROOT / package).glob("**/*.py")
    )
