"""KL divergence from the full-precision model: against SciPy in float64, and its laws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax
from torch import Tensor

from harness.core.errors import GridError, ModelError
from harness.core.execution import execute
from harness.evaluation.divergence import Divergence, compare_logits
from harness.evaluation.evaluations import CATALOGUES, build_evaluation, find_evaluation
from harness.evaluation.scores import Scores
from harness.models import Model, matrices, pretrained, read_model
from harness.testbed import world

TEXTS = world.documents("heldout")[:12]
WINDOW = 32
pytestmark = pytest.mark.usefixtures("known_commits")


@pytest.fixture(scope="module")
def original(tiny_folder: Path) -> Model:
    return read_model(str(tiny_folder), "float32")


@pytest.fixture
def moved(original: Model) -> Model:
    model = original.fork()
    generator = torch.Generator().manual_seed(0)
    for matrix in matrices(model.network).values():
        noise = torch.randn(matrix.weight.shape, generator=generator)
        matrix.replace(matrix.weight.detach() + 0.05 * noise)
    return model


def _score(folder: Path, original: Model, model: Model, work: Path, **options: Any) -> Scores:
    base = pretrained(str(folder), "float32")
    other = pretrained(str(folder), "bfloat16")  # another stage, whose value is given below
    stage = build_evaluation(other, "kl:wikitext2", base, window=WINDOW, **options)
    assert isinstance(stage, Divergence) and stage.original == base
    values: dict[str, Any] = {above.key: TEXTS for above in stage.inputs}
    return execute(stage, values | {base.key: original, other.key: model}, work)


def test_it_equals_scipys_in_float64(
    tiny_folder: Path, original: Model, moved: Model, tmp_path: Path
) -> None:
    found = _score(tiny_folder, original, moved, tmp_path, limit=5)

    ids = original.tokenizer("\n\n".join(TEXTS), add_special_tokens=False)["input_ids"]
    tokens, agreed = [], []
    for window in torch.tensor(ids[: 5 * WINDOW]).view(5, WINDOW):
        with torch.no_grad():
            p, q = (
                softmax(each.network(window[None]).logits[0, :-1].double().numpy(), axis=-1)
                for each in (original, moved)
            )
        tokens.append(rel_entr(p, q).sum(-1))
        agreed.append((p.argmax(-1) == q.argmax(-1)).mean())
    expected = {
        "kl": numpy.mean(tokens),
        "kl_median": numpy.quantile(tokens, 0.5),
        "kl_p99": numpy.quantile(tokens, 0.99),
        "top1": numpy.mean(agreed),
    }
    rows = {row.metric: row for row in found.rows}
    assert {name: row.value for name, row in rows.items()} == pytest.approx(expected, rel=1e-4)
    assert [row.metric for row in found.rows if row.primary] == ["kl"]
    assert [row.metric for row in found.rows if row.higher_is_better] == ["top1"]
    assert {row.n for row in found.rows} == {5}
    by_window = {items.metric: items.scores for items in found.items}
    assert by_window["kl"] == pytest.approx([each.mean() for each in tokens], rel=1e-4)
    assert by_window["top1"] == pytest.approx(agreed)
    spread = numpy.std(by_window["kl"], ddof=1) / 5**0.5
    assert rows["kl"].stderr == pytest.approx(spread, rel=1e-4)
    assert rows["kl_p99"].stderr is None
    protocol = rows["kl"].protocol
    assert protocol == (
        "KL from the full-precision model; raw test joined by blank lines; window 32"
    )


def test_a_model_does_not_diverge_from_itself(
    tiny_folder: Path, original: Model, tmp_path: Path
) -> None:
    values = [row.value for row in _score(tiny_folder, original, original, tmp_path).rows]
    assert values == [0.0, 0.0, 0.0, 1.0]


logits = st.lists(st.floats(-30, 30), min_size=6, max_size=6)


@settings(deadline=None)
@given(st.lists(st.tuples(logits, logits), min_size=1, max_size=4), st.floats(-5, 5))
def test_laws(pairs: list[tuple[list[float], list[float]]], shift: float) -> None:
    p, q = (Tensor([pair[side] for pair in pairs]).double() for side in (0, 1))
    divergence, agreement = compare_logits(p, q)
    assert (divergence > -1e-12).all()  # Gibbs
    torch.testing.assert_close(compare_logits(p + shift, q)[0], divergence)
    assert torch.equal(agreement, p.argmax(-1) == q.argmax(-1))
    expected = rel_entr(softmax(p.numpy(), axis=-1), softmax(q.numpy(), axis=-1)).sum(-1)
    numpy.testing.assert_allclose(divergence.numpy(), expected, rtol=1e-6, atol=1e-12)


def test_masked_tokens() -> None:
    masked = torch.tensor([[1.0, 2.0, -torch.inf]])
    divergence, _ = compare_logits(masked, torch.tensor([[2.0, 1.0, -torch.inf]]))
    p, q = softmax([1, 2]), softmax([2, 1])
    assert divergence.item() == pytest.approx(rel_entr(p, q).sum())
    assert compare_logits(masked, torch.zeros(1, 3))[0].item() > 0  # it may give what never comes
    with pytest.raises(ModelError, match="a token that may come has no probability"):
        compare_logits(torch.zeros(1, 3), masked)


def test_names() -> None:
    with pytest.raises(
        GridError, match="task 'kl:wikitext' is unknown; did you mean 'kl:wikitext2'"
    ):
        find_evaluation("kl:wikitext")
    evaluation = find_evaluation("kl:testbed-ppl")
    assert evaluation.options is find_evaluation("testbed-ppl").options
    assert not evaluation.higher_is_better and "testbed-ppl" in evaluation.about
    names = [name for each in CATALOGUES.load().values() for name in each.names()]
    assert {"kl:wikitext2", "kl:testbed-ppl", "kl:c4"} <= set(names)


def test_what_cannot_be_compared_is_refused(tiny_folder: Path) -> None:
    model = pretrained(str(tiny_folder))
    with pytest.raises(GridError, match="no full-precision model is known to compare with"):
        build_evaluation(model, "kl:wikitext2")
    with pytest.raises(ModelError, match="window 100000, but the context is"):
        build_evaluation(model, "kl:wikitext2", model, window=100_000)
    with pytest.raises(GridError, match="bot"):
        build_evaluation(model, "kl:wikitext2", model, bot=True)
