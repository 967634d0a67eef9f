"""GPTQ: weights are rounded column by column, and those still to come make up for the error.

    Recipe(rounding=GPTQ(), format=IntAsym(bits=3))

With H = X'X of what a layer reads, rounding column j by e_j moves the later ones by e_j times row j
of the upper Cholesky factor of H^-1, over its diagonal (Frantar et al. 2022, arXiv 2210.17323,
section 3.3, algorithm 1). Not here: what H is summed over, and the blocks (`rounding`, `walking`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from methods.quantization.formats import Grouped
from methods.quantization.rounding import BlockRounding

_COLUMNS = 128  # rounded before the rest of the row is moved
Pull = Callable[[Tensor, Tensor], Tensor]  # factor, order -> what columns add to later ones, (I, I)


@dataclass(frozen=True)
class GPTQ(BlockRounding):
    """GPTQ. A group's range is that of its weights as its turn comes, but with `act_order`."""

    name = "gptq"
    # Added to the Hessian's diagonal, as a share of its mean.
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    # Columns that read the most first, on ranges of the weights as they were (static groups).
    act_order: bool = False

    def round_weight(
        self, weight: Tensor, gram: Tensor, format: Grouped, find_pull: Pull | None = None
    ) -> Tensor:
        damped = gram + torch.diag((gram.diagonal() == 0).float())  # unused channels: alone
        damped.diagonal().add_(self.damping * damped.diagonal().mean())
        low, high = format.column_bounds(weight)
        order = torch.arange(weight.shape[1], device=weight.device)
        if self.act_order:
            order = gram.diagonal().argsort(descending=True, stable=True)
            low, high, damped = low[:, order], high[:, order], damped[order][:, order]
        left, values = weight[:, order].clone(), torch.empty_like(weight)
        # One name: no more than two of these stand at once, and of 28,672 channels each is 3 GiB.
        factor = torch.linalg.cholesky(damped)
        del damped
        factor = torch.cholesky_inverse(factor)
        factor = torch.linalg.cholesky(factor, upper=True)
        moves = [factor, find_pull(factor, order)] if find_pull else [factor]
        groups = {group.start: group for group in format.groups(weight.shape[1])}
        edges = sorted({*groups, *range(0, weight.shape[1], _COLUMNS), weight.shape[1]})
        for start, stop in pairwise(edges):
            if (here := groups.get(start)) and not self.act_order:
                low[:, here], high[:, here] = format.find_range(left[:, here])
            moved = torch.empty_like(left[:, start:stop])
            for i in range(start, stop):
                now, one = left[:, i : i + 1], slice(i, i + 1)
                chosen = format.quantize_dequantize(now, low[:, one], high[:, one])
                error = (chosen - now) / factor[i, i]
                for move, each in zip(moves, (error, now), strict=False):
                    left[:, i + 1 : stop] += each * move[i, i + 1 : stop]
                moved[:, i - start : i - start + 1], values[:, order[i]] = error, chosen[:, 0]
            for move, each in zip(moves, (moved, left[:, start:stop]), strict=False):
                left[:, stop:] += each @ move[start:stop, stop:]
        return values
