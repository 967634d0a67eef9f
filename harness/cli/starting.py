"""The verb of a new folder: init. Not here: grids (`harness.grid`), which it only copies."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import harness
from harness.cli.verb import Verb
from harness.core.errors import GridError

# In a checkout a link to experiments/; in an installed package a copy of it.
GRIDS = Path(harness.__file__).parent / "experiments"


def _add_init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made where it does not exist")


def _copy_grids(arguments: argparse.Namespace) -> int:
    """Copy all grids to FOLDER/experiments. Raises GridError, before anything is written."""
    folder = arguments.folder / "experiments"
    sources = [path for path in sorted(GRIDS.rglob("*.yaml")) if path.is_file()]
    copies = {path: folder / path.relative_to(GRIDS) for path in sources}
    if present := [copy for copy in copies.values() if copy.exists()]:
        raise GridError(f"{present[0]} exists already; nothing was copied")
    try:
        for path, copy in copies.items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    except OSError as error:
        raise GridError(f"{folder}: cannot be written: {error.strerror}") from None
    print(f"{len(copies)} grids in {os.path.relpath(folder)}; each opens with its question")
    if arguments.folder.resolve() != Path.cwd():
        print(f"  cd {os.path.relpath(arguments.folder)}")
    print("  bitgrid run experiments/quickstart.yaml     # a few minutes on two cores")
    print("  mkdir -p docs && bitgrid schema > docs/grid.schema.json  # for editors")
    return 0


INIT = Verb(
    "init",
    "copy the grids that come with Bitgrid into a folder of yours",
    "bitgrid init my-study",
    _copy_grids,
    _add_init_arguments,
)
