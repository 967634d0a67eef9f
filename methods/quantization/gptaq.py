"""GPTAQ: GPTQ that also makes up for what a layer reads otherwise than in the original network.

    Recipe(rounding=GPTAQ(), format=IntAsym(bits=3))

With Y what a layer W reads in the original network and X what it reads in the rounded one, it is
W Y' that the rounded layer should give on X, not W X'. As column j is rounded, the later ones take
on, beside GPTQ's, the share of W (Y - X)' that comes from column j: w_j times row j of
P = triu((Y - X)'X U', 1) U, with U the upper Cholesky factor of H^-1 (Li et al. 2025, arXiv
2504.02692, section 4). Not here: the columns' walk (`gptq`), Y (`walking`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from methods.quantization.formats import Grouped
from methods.quantization.gptq import GPTQ, Pull
from methods.quantization.observing import sum_deviations
from methods.quantization.readings import Reading
from methods.quantization.walking import Block


@dataclass(frozen=True)
class GPTAQ(GPTQ):
    """GPTAQ. Layers of a block see those before them rounded. Experts, which see other tokens in
    the original network, are rounded as by GPTQ.
    """

    name = "gptaq"
    true_sequential: bool = True  # whether layers of a block see those before them rounded
    # How much of the deviation is made up for; 1: the paper's equations, 0.25: its published code.
    share: Annotated[float, Field(ge=0, le=1)] = 0.25

    originals: ClassVar[bool] = True
    pairs: ClassVar[bool] = True

    def observe(self, block: Block, layers: Sequence[str]) -> dict[Reading, Tensor]:
        """X'X and (Y - X)'X: (2, I, I)."""
        return sum_deviations(block, layers)

    def measure(self, weight: Tensor, values: Tensor, gram: Tensor) -> Tensor:
        """|values X' - weight (X + share (Y - X))'|^2 of each row, less what no values change."""
        change = values - weight
        pull = change @ gram[0] - 2 * self.share * weight @ gram[1]
        return (pull * change).sum(-1)

    def round_weight(
        self, weight: Tensor, gram: Tensor, format: Grouped, find_pull: Pull | None = None
    ) -> Tensor:
        def pull(factor: Tensor, order: Tensor) -> Tensor:
            deviation = self.share * gram[1][order][:, order]
            return (deviation @ factor.T).triu_(1) @ factor

        return super().round_weight(weight, gram[0], format, find_pull or pull)
