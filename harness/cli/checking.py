"""The verb of authors: check. Not here: the checks (`harness.testing`)."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.cli.terminal import print_line, print_table
from harness.cli.verb import Verb
from harness.core.errors import GridError
from harness.run import listing


def _add_check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        metavar="NAME",
        help="a method, a part of one (nf, init/clip), or a file NAME.py that defines some",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="a setting to check it with: --set format.bits=3 (may be repeated)",
    )


def _check(arguments: argparse.Namespace) -> int:
    """Print what each check found; 1 where one failed."""
    from harness import testing

    settings = _read_settings(arguments.set)
    is_file = arguments.name.endswith(".py")
    names = testing.load_file(Path(arguments.name)) if is_file else [arguments.name]
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        bench = testing.Bench.make(Path(folder))
        for name in names:
            findings = testing.examine(name, settings, bench)
            print_line(f"{name}:")
            print_table(
                [
                    (each.state, each.check, each.fault or each.skipped or each.remark or "")
                    for each in findings
                ],
                words=2,
                indent=2,
            )
            failed = failed or any(each.fault for each in findings)
    if not is_file:  # which may be no file that methods are found in
        listing.keep()
    return int(failed)


def _read_settings(written: list[str]) -> Mapping[str, Any]:
    import yaml

    settings = {}
    for each in written:
        path, equals, value = each.partition("=")
        if not equals:
            raise GridError(f"--set {each}: should be PATH=VALUE, as in format.bits=3")
        settings[path] = yaml.safe_load(value)
    return settings


CHECK = Verb(
    "check",
    "whether a method, or a part of one, does what each must; on a tiny model, without data",
    "bitgrid check my-method",
    _check,
    _add_check_arguments,
)
