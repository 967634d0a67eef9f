"""SmolLM2-135M, a real language model, on real data: two windows and a few items of the checks.

`benchmarks/smollm2_checks.py` is the whole. Skipped where the model is not installed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import smollm2_checks
from harness.core.errors import ModelError
from harness.evaluation.lm_eval import task_batch
from harness.models import Model, read_model, smollm2
from tests.support import mirror


@pytest.fixture(scope="module")
def model() -> Model:
    try:
        return read_model(str(smollm2.unpacked_folder()), torch.float32)
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def mirrored(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITGRID_MIRROR", str(mirror.build(shared / "data", tmp_path)))


def test_perplexity_equals_an_independent_computation(model: Model, shared: Path) -> None:
    (row,) = smollm2_checks.scores(model, "wikitext2", limit=2, window=256).rows
    assert row.n == 2
    assert row.value == pytest.approx(smollm2_checks.reference(shared / "data", 2, 256), abs=1e-3)


def test_lm_eval_through_us_equals_lm_evals_own_run(model: Model) -> None:
    rows = smollm2_checks.scores(model, "piqa", limit=6).rows
    theirs = smollm2_checks.direct("piqa", limit=6, batch=task_batch(model.context))
    assert {row.metric: row.value for row in rows} == theirs
