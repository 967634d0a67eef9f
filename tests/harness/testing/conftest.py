"""What tests of the checker share."""

from __future__ import annotations

import pytest

from harness.testing import Bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("bench"))
