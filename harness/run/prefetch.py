"""Fetches what a grid reads, where there is a network, so that its jobs need none.

Models go to the hub's own cache, at the commit that the grid's keys name; each split of a data set
that a text or a task reads goes to the mirror as JSONL, with the commit in REVISION. Data that are
there already stay as they are, also when the hub has moved on; a model follows the hub unless the grid
names its revision. Not here: what reads a mirror (`hub`).
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from harness.core.errors import ModelError, TextError
from harness.core.stage import Stage, closure
from harness.data import hub
from harness.data.text import Documents
from harness.evaluation import tasks
from harness.evaluation.evaluate import LmEval
from harness.grid.expand import Grid
from harness.models import Pretrained, smollm2
from harness.models.sources import cause, model_folder

FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")  # of a model, beside its weights
WEIGHTS = ("*.safetensors", "*.bin")  # the first format that is there
OTHERS = ("original/*", "consolidated*", "onnx/*")  # the same weights for other programs


class Fetched(NamedTuple):
    """One thing that a grid reads and that is here now; `new` where it was not before."""

    name: str
    revision: str
    size: int  # bytes
    new: bool

    def __str__(self) -> str:
        kilobytes = f"{self.size / 1e3:,.1f} kB"
        state = "fetched" if self.new else "there"
        return f"{self.name:56} {self.revision[:12]:12} {kilobytes:>16}  {state}"


def prefetch(grid: Grid) -> Iterator[Fetched]:
    """Fetch models, then data sets, each once. Called within `hub.filling`, as the grid was read."""
    stages = closure([root for cell in grid.cells for root in cell.roots])
    for stage in stages:
        if isinstance(stage, Pretrained):
            yield from _model(stage)
    for split in dict.fromkeys(split for stage in stages for split in _splits(stage)):
        yield _data(split)


def unknown(grid: Grid) -> list[str]:
    """Tasks whose data sets only their code knows, so that they could not be fetched."""
    scores = {score for cell in grid.cells for score in cell.scores}
    named = {s.task for s in scores if isinstance(s, LmEval) and not _splits(s)}
    return sorted(named - set(tasks.testbed()))


def _model(stage: Pretrained) -> Iterator[Fetched]:
    """A model into the cache; nothing for one that lies in a folder of the user's."""
    if stage.source == smollm2.NAME:
        yield Fetched(stage.source, stage.digest, _size(smollm2.folder()), new=False)
    elif model_folder(stage.source) is None:
        *owner, name = stage.source.split("/")
        inside = (
            "/".join([*owner[2:], name]) if len(owner) > 1 else None
        )  # org/repository/file.gguf
        repository = "/".join(stage.source.split("/")[:2])
        yield _snapshot(repository, stage.revision, stage.digest, inside)


def _snapshot(name: str, revision: str, commit: str, file: str | None) -> Fetched:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots", commit)
    before = _size(folder)
    try:
        there = [
            sibling.rfilename
            for sibling in HfApi().model_info(name, revision=commit).siblings or []
        ]
        formats = [kind for kind in WEIGHTS if any(fnmatch(path, kind) for path in there)]
        snapshot_download(
            name,
            revision=revision,  # by its name, so that the cache knows offline what it stands for
            allow_patterns=[*FILES, *([file] if file else formats[:1])],
            ignore_patterns=list(OTHERS),
        )
    except Exception as error:  # the client's own, its transport's, the system's
        raise ModelError(f"model {name!r} cannot be fetched: {cause(error, name)}") from error
    if not folder.is_dir():
        raise ModelError(f"model {name!r}: {revision!r} moved on while it was fetched; try again")
    return Fetched(name, commit, _size(folder), _size(folder) > before)


def _splits(stage: Stage[Any]) -> tuple[hub.Split, ...]:
    """The splits of hub data sets that a stage itself reads."""
    if isinstance(stage, LmEval):
        return tasks.reads(stage.task, stage.num_fewshot)
    read = stage.reads() if isinstance(stage, Documents) else None
    return () if read is None else (read,)


def _data(split: hub.Split) -> Fetched:
    """A split into the mirror, at the commit of what the mirror has of its data set."""
    file = hub.mirrored_split(split.path, split.config, split.split)
    new = file is None
    if file is None:
        root = hub.mirror()
        assert root is not None  # `hub.filling` names one
        file = root / split.path / (split.config or "default") / f"{split.split}.jsonl.gz"
        _pin(root / split.path, split.path)
        _write(file, hub.rows(*split), split)
        if hub.pinned(split.path):
            hub.record(split.path, file)
    revision = hub.pinned(split.path) or "by content"
    return Fetched(str(split), revision, file.stat().st_size, new)


def _pin(folder: Path, path: str) -> None:
    """Say which commit the rows to come are of; rows of unknown origin are not claimed for it."""
    if not any(folder.rglob("*.jsonl*")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "REVISION").write_text(hub.commit(path) + "\n")


def _write(file: Path, rows: Any, split: hub.Split) -> None:
    """Rows as JSONL, under their name only once they are whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    made = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with made.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
            for row in rows:
                packed.write(json.dumps(row).encode() + b"\n")
        made.rename(file)
    except TypeError as error:  # images, times
        raise TextError(f"{split} cannot be kept as JSON: {error}") from error
    finally:
        made.unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
