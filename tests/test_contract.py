"""What everything registered must do: the checker over all methods, then over all their parts.

A new method is checked by being there.
"""

from __future__ import annotations

import pytest

from harness.core.errors import BitgridError
from harness.method import METHODS, find_package
from harness.testing import Bench, check, list_names

NAMES = [name for name in list_names() if not name.partition("/")[2].startswith("test-")]
NAMES = [name for name in NAMES if not name.startswith("test-")]
SETTINGS = {"objective/sum": {"parts": ["kl", "ce"], "weights": [1, 0.5]}}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("name", NAMES)
def test_it_does_what_it_must(bench: Bench, name: str) -> None:
    if (entry := METHODS.load().get(name)) is not None:
        for package in entry.method.needs:
            try:
                find_package(entry.method, package)
            except BitgridError as error:
                pytest.skip(str(error))
    check(name, SETTINGS.get(name), bench)
