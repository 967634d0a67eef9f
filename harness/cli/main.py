"""The `bitgrid` command: its arguments, the environment of its verbs, and what becomes of errors.

Not here: what a verb does (`verbs`).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path

from harness.cli import jobs as dispatch
from harness.cli import verbs
from harness.core.errors import BitgridError, GridError, close_to


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; 0 done, 1 cells failed, 2 bad input, 130 interrupted."""
    given = _parser().parse_args(arguments)
    # lm-eval and transformers draw bars of their own, which would break ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that wait by spinning slow each other down tenfold where a neighbour shares the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if given.device:
        os.environ["BITGRID_DEVICE"] = given.device
    try:
        if "grid" in given:
            _check_exists(given.grid)
            if given.verb is not verbs.prefetch and given.grid.suffix != ".csv":
                _offline(given.grid)
        return int(given.verb(given))
    except BitgridError as error:
        if given.traceback:
            traceback.print_exc()
        print(f"bitgrid: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nbitgrid: stopped; finished stages are kept, the same command goes on",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        return 0


def _offline(path: Path) -> None:
    """Ask the hub for nothing where a mirror is named: what is pinned there is what is meant.

    Compute nodes have no network, and libraries that try it wait. HF_HUB_OFFLINE=0 overrules this.
    """
    from harness.config.document import Document

    said = Document(path).data if path.is_file() else None
    if os.environ.get("BITGRID_MIRROR") or (isinstance(said, dict) and said.get("mirror")):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_DATASETS_OFFLINE", os.environ["HF_HUB_OFFLINE"])


def _check_exists(path: Path) -> None:
    if not path.exists():
        near = close_to(path, [str(found) for found in sorted(Path("experiments").glob("*.yaml"))])
        raise GridError(
            f"{path}: there is no such file" + (f"; did you mean {near!r}?" if near else "")
        )


def _sizes(words: str) -> list[float]:
    sizes = [float(word) for word in words.split(",")]
    if not all(0 < size < math.inf for size in sizes):
        raise ValueError(words)
    return sizes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bitgrid",
        description="Grids of quantisation methods: one YAML in, comparable tables out.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--store", type=Path, help="where values are kept (default: .bitgrid)")
    common.add_argument("--device", help="cpu, cuda, cuda:1 (default: CUDA where there is one)")
    common.add_argument("--traceback", action="store_true", help="show the whole of an error")
    parsers = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name, function, words, example):  # type: ignore[no-untyped-def]
        made = parsers.add_parser(
            name,
            help=words,
            description=words,
            parents=[common],
            epilog=textwrap.dedent(f"example:\n  {example}"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(verb=function)
        return made

    run = verb(
        "run",
        verbs.run,
        "compute what a grid still needs, then report",
        "bitgrid run experiments/quickstart.yaml",
    )
    prefetch = verb(
        "prefetch",
        verbs.prefetch,
        "fetch a grid's models and data sets, for machines without a network",
        "bitgrid prefetch experiments/paper-general-llama2-7b.yaml --mirror /shared/mirror",
    )
    prefetch.add_argument(
        "--mirror",
        type=Path,
        help="where data sets go (default: BITGRID_MIRROR, the grid's, ./mirror)",
    )
    status = verb(
        "status",
        dispatch.status,
        "what is done, running, failed, stale or to come",
        "bitgrid status experiments/quickstart.yaml",
    )
    launch = verb(
        "launch",
        dispatch.launch,
        "submit what a grid still needs to a SLURM cluster",
        "bitgrid launch experiments/paper-general-llama2-7b.yaml --dry",
    )
    cancel = verb(
        "cancel",
        dispatch.cancel,
        "take a grid's jobs out of the queue; what is finished is kept",
        "bitgrid cancel experiments/paper-general-llama2-7b.yaml",
    )
    logs = verb(
        "logs",
        dispatch.logs,
        "the log of the last job that worked on a cell",
        "bitgrid logs experiments/quickstart.yaml 'bitdistiller bits=2' --follow",
    )
    report = verb(
        "report",
        verbs.report,
        "the comparison table and plots of what is done",
        "bitgrid report experiments/quickstart.yaml --format latex",
    )
    publish = verb(
        "publish",
        verbs.publish,
        "put a grid's rows and report.md into results/, to be committed",
        "bitgrid publish experiments/quickstart.yaml",
    )
    plan = verb(
        "plan",
        verbs.plan,
        "what a grid would compute, without computing",
        "bitgrid plan experiments/quickstart.yaml --cells",
    )
    listed = verb(
        "methods",
        verbs.methods,
        "the methods, or the fields of one",
        "bitgrid methods bitdistiller",
    )
    tasks = verb("tasks", verbs.tasks, "the tasks and perplexity protocols", "bitgrid tasks --all")
    gc = verb("gc", verbs.gc, "what no known grid needs any more", "bitgrid gc --yes")
    for each in (run, launch, status, cancel, logs, prefetch, report, publish, plan):
        words = "a grid file (YAML)"
        words += ", a folder of rows, or published figures (CSV)" if each is report else ""
        words += " or a folder of rows" if each is publish else ""
        each.add_argument("grid", type=Path, metavar="GRID", help=words)
    for each in (run, report):
        alone = "; with --format, the file to write" if each is report else ""
        words = f"where rows and report go (default: runs/<grid>){alone}"
        each.add_argument("--out", help=words)
    for each in (run, launch):
        each.add_argument("--retry", choices=["failed"], help="run failed stages again")
        each.add_argument(
            "--allow-code-execution",
            action="store_true",
            help="let tasks run code that models write (in a sandbox)",
        )
    launch.add_argument(
        "--cluster",
        type=Path,
        metavar="FILE",
        help="the cluster's profile (default: ~/.config/bitgrid/cluster.yaml)",
    )
    launch.add_argument("--dry", action="store_true", help="print the sbatch files, submit nothing")
    launch.add_argument(
        "--halve-micro-batch",
        action="store_true",
        help="with --retry failed: where a GPU's memory ran out (the global batch stays)",
    )
    status.add_argument("--watch", action="store_true", help="again every 15 s while jobs are left")
    logs.add_argument("cell", metavar="CELL", help="a cell's id, or words that only it has")
    logs.add_argument("--follow", action="store_true", help="go on while the cell has jobs left")
    report.add_argument(
        "--format",
        choices=list(verbs.FORMATS),
        help="print the table alone, in this form",
    )
    report.add_argument(
        "--html",
        action="store_true",
        help="write index.html too: every number and what is behind it",
    )
    publish.add_argument(
        "--to",
        type=Path,
        default=Path("results"),
        metavar="FOLDER",
        help="the folder that holds a folder for each grid (default: results)",
    )
    plan.add_argument("--cells", action="store_true", help="list every cell")
    plan.add_argument("--memory", action="store_true", help="what each stage needs of a GPU")
    plan.add_argument(
        "--gpu-gib",
        type=_sizes,
        default=_sizes("24,40,80,141"),
        metavar="SIZES",
        help="with --memory: sizes of GPUs in GiB (default: 24,40,80,141)",
    )
    listed.add_argument("name", nargs="?", metavar="NAME")
    tasks.add_argument("--all", action="store_true", help="lm-eval's own tasks too (takes seconds)")
    gc.add_argument("--yes", action="store_true", help="remove, not only list")
    return parser
