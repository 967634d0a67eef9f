"""The checker: what every method, and every part of one, must do, tried on a tiny random model.

    from harness.testing import check

    def test_mine() -> None:
        check("my-method")                      # AssertionError: one line for each failed check

`bitgrid check NAME` prints the same. Cases come from what a class declares: the bits that its
fields take, groups, data, seeds. No data and no network are needed. In this package: what is
checked (`checks`, `others`, `packing`, `stopping`), on which methods a part is tried (`subjects`),
how (`bench`, `watching`, `killing`), the models (`tiny`). Not here: how good a method is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.method import Method
from harness.testing.bench import Bench
from harness.testing.checks import Finding, run_checks
from harness.testing.subjects import find_subject, list_names, load_file, make_subject
from harness.testing.tiny import make_tiny_model, make_tokenizer

__all__ = [
    "Bench",
    "Finding",
    "check",
    "check_method",
    "examine",
    "list_names",
    "load_file",
    "make_tiny_model",
    "make_tokenizer",
]


def check(name: str, settings: Mapping[str, Any] | None = None, bench: Bench | None = None) -> None:
    """Raise AssertionError, a line for each failed check, where something registered has a fault.

    name: of a method, or of a part of one: `nf`, `init/clip` where several families have the name.
    settings: by dotted path, of the method or of the part itself, over those of a small case.
    bench: one for several calls computes what they share once. Raises GridError for an unknown
    name.
    """
    _demand(name, examine(name, settings, bench))


def check_method(
    method: Method, settings: Mapping[str, Any] | None = None, bench: Bench | None = None
) -> None:
    """`check` of a method that need not be registered."""
    if bench is None:
        with tempfile.TemporaryDirectory() as folder:
            return check_method(method, settings, Bench.make(Path(folder)))
    subject = make_subject(method, settings)
    return _demand(subject.title, run_checks(subject, bench))


def examine(
    name: str, settings: Mapping[str, Any] | None = None, bench: Bench | None = None
) -> list[Finding]:
    """What each check found; nothing is raised for a fault. Arguments as `check`."""
    if bench is None:
        with tempfile.TemporaryDirectory() as folder:
            return examine(name, settings, Bench.make(Path(folder)))
    return run_checks(find_subject(name, bench, settings), bench)


def _demand(title: str, findings: list[Finding]) -> None:
    faults = [f"{each.check}: {each.fault}" for each in findings if each.fault]
    if faults:
        opening = f"{title} fails {len(faults)} of {len(findings)} checks:"
        raise AssertionError("\n  ".join([opening, *faults]))
