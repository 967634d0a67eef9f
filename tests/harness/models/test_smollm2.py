"""SmolLM2-135M, a real language model, on real data: one window and a few items of the checks.

`benchmarks/smollm2_checks.py` is the whole. Skipped where the model is not in the cache, unless
BITGRID_TEST_DOWNLOAD=1 lets it be fetched.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from benchmarks import smollm2_checks
from harness.evaluation.evaluate import task_batch
from harness.models import Model, read_model, smollm2
from tests.support import mirror


@pytest.fixture(scope="module")
def model() -> Model:
    if not smollm2.cached() and os.environ.get("BITGRID_TEST_DOWNLOAD") != "1":
        pytest.skip("SmolLM2 is not in the cache (BITGRID_TEST_DOWNLOAD=1 fetches 93 MB)")
    return read_model(str(smollm2.folder()), torch.float32)


@pytest.fixture(autouse=True)
def mirrored(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITGRID_MIRROR", str(mirror.build(shared / "data", tmp_path)))


def test_perplexity_equals_an_independent_computation(model: Model, shared: Path) -> None:
    (row,) = smollm2_checks.scores(model, "wikitext2", limit=1).rows
    assert row["n"] == 1
    assert row["value"] == pytest.approx(smollm2_checks.reference(shared / "data", 1), abs=1e-3)


def test_lm_eval_through_us_equals_lm_evals_own_run(model: Model) -> None:
    rows = smollm2_checks.scores(model, "piqa", limit=6).rows
    theirs = smollm2_checks.direct("piqa", limit=6, batch=task_batch(model.context))
    assert {row["metric"]: row["value"] for row in rows} == theirs
