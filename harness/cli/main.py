"""The `bitgrid` command: its parser, the environment of its verbs, and what becomes of errors.

Not here: what a verb does, and its arguments (a file for each group of verbs).
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from harness import __version__
from harness.cli import (
    authoring,
    checking,
    cluster,
    looking,
    reporting,
    running,
    starting,
    store,
    values,
)
from harness.cli.verb import Verb
from harness.core.errors import BitgridError, GridError, close_to, first_line, make_line
from harness.core.installation import check_packages
from harness.core.paths import read_path
from harness.grid import published

VERBS = (
    starting.INIT,
    running.RUN,
    running.PREFETCH,
    looking.STATUS,
    cluster.LAUNCH,
    cluster.CANCEL,
    cluster.LOGS,
    reporting.REPORT,
    reporting.PUBLISH,
    looking.PLAN,
    looking.METHODS,
    checking.CHECK,
    authoring.NEW_METHOD,
    authoring.NEW_OBJECTIVE,
    authoring.NEW_FORMAT,
    looking.TASKS,
    looking.SCHEMA,
    values.VERIFY,
    values.KEEP,
    store.GC,
)


def main(command_line: Sequence[str] | None = None) -> int:
    """Run a verb; 0 done, 1 cells failed, 2 bad input, 130 interrupted."""
    arguments = make_parser().parse_args(command_line)
    verb: Verb = arguments.verb
    # lm-eval and transformers draw bars of their own, which would break ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that wait by spinning slow each other down tenfold where a neighbour shares the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if arguments.device:
        os.environ["BITGRID_DEVICE"] = arguments.device
    for stream in (sys.stdout, sys.stderr):  # a path that is not UTF-8 is shown as it can be
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        check_packages()
        if getattr(arguments, "grid", None) is not None:
            for path in [arguments.grid, *getattr(arguments, "others", [])]:
                _check_exists(path)
        return verb.function(arguments)
    except BitgridError as error:
        if arguments.traceback:
            traceback.print_exc()
        print(f"bitgrid: {error}", file=sys.stderr)
        return 2
    except (OSError, RecursionError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):
            return 0
        if arguments.traceback:
            traceback.print_exc()
        print(f"bitgrid: {_explain(error)}; --traceback shows where", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nbitgrid: stopped; finished stages are kept, the same command goes on",
            file=sys.stderr,
        )
        return 130


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bitgrid",
        description="Grids of quantisation methods: one YAML in, comparable tables out.",
    )
    parser.add_argument("--version", action="version", version=f"bitgrid {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--store", type=Path, help="where values are kept (default: .bitgrid)")
    common.add_argument("--device", help="cpu, cuda, cuda:1 (default: CUDA where there is one)")
    common.add_argument("--traceback", action="store_true", help="show the whole of an error")
    parsers = parser.add_subparsers(required=True, metavar="VERB")
    for verb in VERBS:
        verb_parser = parsers.add_parser(
            verb.name,
            help=verb.help,
            description=verb.help,
            parents=[common],
            epilog=f"example:\n  {verb.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_arguments(verb_parser)
        verb_parser.set_defaults(verb=verb)
    return parser


def _explain(error: Exception) -> str:
    """What the machine refuses, in one line; what else goes wrong is a fault of the program's."""
    if isinstance(error, OSError):
        names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name)
        return make_line(": ".join(filter(None, (names, error.strerror or first_line(error)))))
    return "memory ran out" if isinstance(error, MemoryError) else "input is nested too deeply"


def _check_exists(path: Path) -> None:
    if not read_path(path, GridError).exists():
        grids = [str(grid) for grid in sorted(Path("experiments").glob("*.yaml"))]
        near = close_to(path, [*grids, *published.list_names()])
        raise GridError(
            f"{path}: there is no such file" + (f"; did you mean {near!r}?" if near else "")
        )
