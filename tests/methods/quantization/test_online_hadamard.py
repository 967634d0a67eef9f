"""The online Hadamard against scipy's matrix, and a model that computes the same with it."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import block_diag, hadamard

from harness.core.errors import ModelError
from harness.models import Model, matrices
from methods.quantization.online_hadamard import OnlineHadamard, rotate
from tests.methods.conftest import make_llama
from tests.support.architectures import make

IDS = torch.arange(20).view(2, 10) * 4 + 5


@pytest.mark.parametrize("width", [1, 2, 6, 8, 24, 64])
def test_rows_are_multiplied_by_the_matrix(width: int) -> None:
    size = width & -width
    matrix = torch.tensor(block_diag(*[hadamard(size)] * (width // size)) / size**0.5)
    rows = torch.randn(3, 5, width, dtype=torch.float64)
    torch.testing.assert_close(rotate(rows), rows @ matrix)
    assert torch.allclose(rotate(rotate(rows)), rows)
    assert rotate(rows.bfloat16()).dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize(("name", "layer"), [("llama", "down_proj"), ("gpt2", "c_proj")])
def test_a_model_computes_the_same(name: str, layer: str) -> None:
    plain = Model(make(name).double(), None)  # type: ignore[arg-type]
    rotated = plain.attach(OnlineHadamard(layer))
    before, after = (each.network(IDS).logits for each in (plain, rotated))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    changed = {
        key.rpartition(".")[2]
        for key, matrix in matrices(plain.network).items()
        if not torch.equal(matrix.weight, matrices(rotated.network)[key].weight)
    }
    assert changed == {layer}
    rotated.fork().network(IDS)  # whose weights are not rotated a second time
    assert torch.equal(rotated.fork().network(IDS).logits, after)


def test_outliers_are_spread() -> None:
    read = torch.randn(4, 64)
    read[:, 3] *= 100
    spread = rotate(read)
    assert float(spread.abs().max() / spread.std()) < 0.3 * float(read.abs().max() / read.std())


def test_what_cannot_be_rotated_is_refused() -> None:
    model = make_llama()
    with pytest.raises(ModelError, match=r"layer 'down_prj' is unknown; did you mean 'down_proj'"):
        model.attach(OnlineHadamard("down_prj"))
    for matrix in matrices(model.network).values():
        if matrix.name.endswith("down_proj"):
            matrix.replace(torch.zeros(64, 127))
    with pytest.raises(ModelError, match=r"0\.mlp\.down_proj has 127 inputs, an odd number"):
        model.attach(OnlineHadamard())
