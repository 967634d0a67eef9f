"""Where a module multiplies inside itself: what is read there, seen and changed.

    with meet_products(fused, meet):        # meet(matrix, expert, read) gives what is multiplied
        network(ids)

Experts that lie in one parameter read what passes no module of theirs. So their products are found
as they are computed, by the parameter that they multiply by: whichever function of the library
calls for them, and without data too. Not here: what layers read that are modules of their own,
where a hook does (`attachments`, `methods.quantization.readings`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.models.compat import computing_experts, multiply_groups
from harness.models.layers import Matrix

Meet: TypeAlias = Callable[[Matrix, int | None, Tensor], Tensor]
"""Called with a matrix, which of its experts is multiplied (None: all in one product, or it has
none) and what they read, (..., I); gives what they are to read instead, alike in shape and dtype.
"""


@contextmanager
def meet_products(matrices: Iterable[Matrix], meet: Meet, apart: bool = False) -> Iterator[None]:
    """Inside, `meet` is called before a product with one of the matrices, or with an expert of one.

    apart: experts are multiplied one after the other, so that it is known which rows are whose;
    but where a model's own code multiplies all at once, (E, n, I), it still does.
    """
    known = tuple(matrices)
    # Products of the third kind, a copy of its expert's weight for each token, are of no parameter.
    ways = ("eager",) if apart else ("grouped_mm", "eager")
    with computing_experts((each.module for each in known), ways), _Products(known, meet):
        yield


# Functions that multiply, and where their arguments have what is read and the weight; but for
# linear layers the weight may stand first.
_PRODUCTS: dict[Any, tuple[int, int]] = {
    **dict.fromkeys((nn.functional.linear, torch.matmul, torch.mm, torch.bmm), (0, 1)),
    **dict.fromkeys((Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm), (0, 1)),
    **dict.fromkeys((torch.baddbmm, torch.addmm), (1, 2)),
    **dict.fromkeys(multiply_groups, (0, 1)),
}


class _Products(TorchFunctionMode):
    def __init__(self, matrices: Sequence[Matrix], meet: Meet) -> None:
        super().__init__()
        self._matrices, self._meet = matrices, meet

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        at, of = _PRODUCTS.get(func, (0, len(args)))
        if of < len(args):
            if found := self._find(args[of]):
                args = _replace(args, at, self._meet(*found, args[at]))
            elif func is not nn.functional.linear and (found := self._find(args[at])):
                args = _replace(args, of, self._meet(*found, args[of].mT).mT)  # W x' for x W'
        return func(*args, **(kwargs or {}))

    def _find(self, weight: Tensor) -> tuple[Matrix, int | None] | None:
        """The matrix that a weight is a view of, or of an expert of it, and which."""
        for matrix in self._matrices:
            stored = matrix.stored
            # Storages are told apart by what they are, since those without data lie nowhere.
            if weight.untyped_storage()._cdata != stored.untyped_storage()._cdata:
                continue
            offset, size = weight.storage_offset() - stored.storage_offset(), stored.numel()
            if 0 <= offset < size:
                is_whole = weight.numel() == size and matrix.experts != 1
                return matrix, None if is_whole else offset * matrix.experts // size
        return None


def _replace(args: tuple[Any, ...], at: int, new: Tensor) -> tuple[Any, ...]:
    return (*args[:at], new, *args[at + 1 :])
