"""Products with a parameter are found by it, wherever it stands; what is read there is changed."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from harness.models import Matrix, meet_products
from harness.models.dry_run import dry_run


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, 4, 5))  # (E, O, I)


Seen = list[tuple[str, int | None, Tensor]]


@pytest.fixture
def seen() -> Seen:
    return []


def _meet_doubled(seen: Seen, *modules: nn.Module) -> AbstractContextManager[None]:
    def meet(matrix: Matrix, expert: int | None, read: Tensor) -> Tensor:
        seen.append((matrix.name, expert, read))
        return read * 2

    known = [Matrix(f"{at}.weights", module, "weights") for at, module in enumerate(modules)]
    return meet_products(known, meet)


def test_either_factor_may_be_the_weight(seen: Seen) -> None:
    module, read, rows = Heads(), torch.randn(3, 2, 7, 5), torch.randn(6, 5)
    with _meet_doubled(seen, Heads(), module):
        behind = read @ module.weights.mT[:, None]
        before = module.weights[:, None] @ read.mT
        one = nn.functional.linear(rows, module.weights[1])
        other = module.weights[2].mm(rows.T)
        neither = rows @ rows.T
    wanted = torch.einsum("hbti,hoi->hbto", read, module.weights) * 2
    torch.testing.assert_close(behind, wanted)
    torch.testing.assert_close(before, wanted.mT)
    torch.testing.assert_close(one, rows @ module.weights[1].T * 2)
    torch.testing.assert_close(other, module.weights[2] @ rows.T * 2)
    torch.testing.assert_close(neither, rows @ rows.T)
    assert [each[:2] for each in seen] == [("1.weights", e) for e in (None, None, 1, 2)]
    for each, given in zip(seen, (read, read, rows, rows), strict=True):
        assert torch.equal(each[2], given)


def test_parameters_that_share_a_file_are_told_apart(
    seen: Seen,
) -> None:
    """Weights of one file are views of one storage, as mapped ones are."""
    storage, modules = torch.randn(2 * 60), (Heads(), Heads())
    for at, module in enumerate(modules):
        module.weights = nn.Parameter(storage[60 * at : 60 * at + 60].view(3, 4, 5))
    with _meet_doubled(seen, *modules):
        for module in modules:
            for part in module.weights:
                torch.randn(1, 5) @ part.T
    assert [each[:2] for each in seen] == [(f"{m}.weights", e) for m in (0, 1) for e in range(3)]


def test_without_data_too(seen: Seen) -> None:
    with dry_run():
        modules = Heads(), Heads()
        with _meet_doubled(seen, *modules):
            result = torch.bmm(torch.empty(3, 7, 5), modules[1].weights.mT)
            torch.empty(2, 5) @ modules[0].weights[2].T
    assert result.shape == (3, 7, 4)
    assert [each[:2] for each in seen] == [("1.weights", None), ("0.weights", 2)]
