"""What stood behind a value when it was computed: code, commit, versions, device, time, memory.

Recorded in each manifest and shown; never acted on (rule 4: a change of code makes a result stale,
not invalid). Not here: the key, which alone decides what is computed again (`stage`).
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "bitgrid",
    "torch",
    "torchao",
    "transformers",
    "lm_eval",
    "datasets",
    "tokenizers",
    "numpy",
)
ROOT = Path(__file__).parents[2]


@dataclass
class Measured:
    """Filled when the block of `measured` ends."""

    facts: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def measured() -> Iterator[Measured]:
    """Wall time and peak memory of a block, with the machine it ran on.

    Of several processes that share the block, the largest peak.
    """
    import torch

    from harness.models import device

    found, started, clock, here = Measured(), time.time(), time.perf_counter(), device()
    if here.type == "cuda":
        torch.cuda.reset_peak_memory_stats(here)
    yield found
    found.facts = {
        "started": round(started, 3),
        "wall_s": round(time.perf_counter() - clock, 3),
        "peak_rss_gib": _largest(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20),
        **environment(),
    }
    if here.type == "cuda":
        found.facts["peak_gpu_gib"] = _largest(torch.cuda.max_memory_allocated(here) / 2**30)


def _largest(gib: float) -> float:
    """Over the processes that compute a stage together; each must ask."""
    import torch
    import torch.distributed as dist

    most = torch.tensor(gib, dtype=torch.float64)  # on the host, where processes can always talk
    if dist.is_initialized():
        dist.all_reduce(most, dist.ReduceOp.MAX)
    return round(most.item(), 3)


def environment() -> dict[str, Any]:
    """Commit, package versions and device of this process."""
    import torch

    from harness.models import device

    here = device()
    named = torch.cuda.get_device_name(here) if here.type == "cuda" else platform.processor()
    return {
        "commit": commit(),
        "packages": versions(),
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


@cache
def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def commit() -> str | None:
    """The git commit of the code, with `+` where the tree differs from it; None outside a checkout.

    A snapshot of the code has a file that says it.
    """
    with contextlib.suppress(OSError):
        return (ROOT / "COMMIT").read_text().strip() or None

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def code_digest(modules: frozenset[str]) -> str:
    """Digest of the code in `modules` and in the project's modules that they import.

    Comments, docstrings and layout do not count, so that a cosmetic edit makes nothing stale.
    """
    total = hashlib.sha256()
    reachable = {name: path for module in modules for name, path in _reachable(module).items()}
    for name, path in sorted(reachable.items()):
        total.update(f"{name}:{_code(path)}\n".encode())
    return total.hexdigest()[:16]


def sources() -> list[Path]:
    """The project's source files and data, whose change can change what a grid means."""
    return sorted(
        path
        for package in ("harness", "methods")
        for pattern in (
            "**/*.py",
            "testbed/tasks/*.yaml",
            "testbed/model/*.safetensors",
        )
        for path in (ROOT / package).glob(pattern)
    )


def _reachable(module: str) -> dict[str, Path]:
    """Modules of the same projects that `module` imports, directly or not, by name."""
    ours = {"harness", "methods", module.partition(".")[0]}
    found: dict[str, Path] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        path = _file(name)
        if name in found or path is None:
            continue
        found[name] = path
        for imported in _imports(path):
            if imported.partition(".")[0] in ours:
                queue.append(imported)
    return found


@cache
def _file(module: str) -> Path | None:
    loaded = sys.modules.get(module)
    if loaded is not None and getattr(loaded, "__file__", None):
        return Path(str(loaded.__file__))
    if module.partition(".")[0] in ("harness", "methods"):  # found without importing anything
        base = ROOT.joinpath(*module.split("."))
        both = (base.with_suffix(".py"), base / "__init__.py")
        return next((path for path in both if path.is_file()), None)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and os.path.isfile(spec.origin) else None


@cache
def _imports(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)


@cache
def _code(path: Path) -> str:
    """Digest of a file's code without comments, docstrings and layout."""
    tree = _tree(path)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


@cache
def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text())
    except (SyntaxError, UnicodeDecodeError):
        return ast.parse("")
