"""A model that overflows in float16 gets no score: each kind of request fails, none is 37.5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.core.errors import ModelError
from harness.core.execution import execute
from harness.data import Tokens
from harness.evaluation.evaluations import build_evaluation
from harness.evaluation.scores import Scores
from harness.models import Model, pretrained, read_model
from harness.testbed import world
from methods.training.confidence import Confidence
from methods.training.contribution import Contribution
from methods.training.data import Generate
from methods.training.objectives import CAKLD
from tests.support import mirror
from tests.support.overflow import spread_too_far

TEXTS = world.documents("heldout")[:8]
TOKENS = Tokens(torch.arange(48).view(2, 24) + 4, torch.ones(2, 24, dtype=torch.bool))
pytestmark = pytest.mark.usefixtures("known_commits")


@pytest.fixture(scope="module")
def overflowing(tiny_folder: Path) -> Model:
    model = spread_too_far(read_model(str(tiny_folder), "float32"))
    model.network.half()
    return model


@pytest.fixture
def wikitext(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"page": text} for text in TEXTS]
    mirror.write(tmp_path, "EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test", rows)
    monkeypatch.setenv("BITGRID_MIRROR", str(tmp_path))


def run(stage: Any, values: dict[str, Any], work: Path) -> Any:
    return execute(stage, {above.key: values[above.kind] for above in stage.inputs}, work)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("wikitext2", {"window": 32}),
        ("testbed-ppl", {"window": 64, "limit": 2}),
        ("testbed_story", {"limit": 3}),  # log-likelihoods of choices
        ("testbed_arithmetic", {"limit": 3}),  # generate_until
        ("wikitext-word", {"limit": 3}),  # log-likelihoods of whole texts
    ],
)
@pytest.mark.usefixtures("wikitext")
def test_each_evaluation_fails_with_dtype_and_layer(
    tiny_folder: Path,
    overflowing: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    options: dict[str, Any],
) -> None:
    if task != "wikitext-word":
        monkeypatch.delenv("BITGRID_MIRROR")
    stage = build_evaluation(pretrained(str(tiny_folder)), task, **options)
    with pytest.raises(ModelError, match=r"logits are NaN in float16, first .*1\.mlp\.down_proj"):
        run(stage, {"pretrained": overflowing, "documents": TEXTS}, tmp_path)
    # The same model where its numbers fit.
    sound = Model(overflowing.network, overflowing.tokenizer)
    sound.network.float()
    try:
        scores = run(stage, {"pretrained": sound, "documents": TEXTS}, tmp_path)
        assert isinstance(scores, Scores) and scores.rows[0].n
    finally:
        overflowing.network.half()


@pytest.mark.parametrize("prompted", [True, False])
def test_no_training_data_are_written(
    tiny_folder: Path, overflowing: Model, tmp_path: Path, prompted: bool
) -> None:
    from harness.data import texts

    documents = texts("testbed", "train", prompts=True) if prompted else None
    base = pretrained(str(tiny_folder))
    stage = Generate(base, documents, count=4, length=24, prompt_chars=8)
    with pytest.raises(ModelError, match=r"logits are NaN in float16, first .*1\.mlp\.down_proj"):
        run(stage, {"pretrained": overflowing, "documents": TEXTS}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_confidence_is_measured(tiny_folder: Path, overflowing: Model, tmp_path: Path) -> None:
    base = pretrained(str(tiny_folder))
    tokens = Generate(base, None, count=2, length=24)
    values = {"pretrained": overflowing, "generate": TOKENS}
    for stage in (
        Confidence(base, tokens),
        Confidence(base, tokens, "max"),
        Contribution(base, base, tokens, CAKLD(), 0.5),  # type: ignore[arg-type]
    ):
        with pytest.raises(ModelError, match=r"logits are NaN in float16, first .*1\.mlp"):
            run(stage, values, tmp_path)


def test_a_continuation_without_any_probability_is_no_score(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """Logits of -Inf are allowed, as for unused entries, but not for what is scored."""
    model = read_model(str(tiny_folder), "float32")
    space = model.tokenizer(" the", add_special_tokens=False)["input_ids"][0]

    def forbid(_: object, __: object, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([space]), -torch.inf)

    handle = model.network.lm_head.register_forward_hook(forbid)
    try:
        for task, words in (("testbed_story", "log-likelihood"), ("wikitext2", "no probability")):
            options = {"window": 32} if task == "wikitext2" else {}
            stage = build_evaluation(pretrained(str(tiny_folder)), task, **options)
            with pytest.raises(ModelError, match=words):
                run(stage, {"pretrained": model, "documents": TEXTS}, tmp_path)
    finally:
        handle.remove()
