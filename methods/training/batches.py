"""Which sequences a step sees, in what order, and how they are cut into micro-batches.

Not here: where sequences come from (`data`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.data import Tokens
from methods.training.shards import Shards


def order_rows(
    sequences: int, batch: int, seen: int, seed: int, first: int = 0
) -> Iterator[Tensor]:
    """The rows of each step from `first` on: int64 (batch,), the last one shorter if it must be.

    One permutation of all sequences after another, cut into batches across epochs, so that none is
    left out and each is seen as often as any other, give or take one.
    """
    generator = torch.Generator().manual_seed(seed)
    stream = torch.empty(0, dtype=torch.int64)
    for step, start in enumerate(range(0, seen, batch)):
        size = min(batch, seen - start)
        while len(stream) < size:
            stream = torch.cat([stream, torch.randperm(sequences, generator=generator)])
        rows, stream = stream[:size], stream[size:]
        if step >= first:
            yield rows


def split_batch(
    tokens: Tokens, rows: Tensor, size: int, shards: Shards, device: torch.device
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """ids and mask, (b, T) each, and rows (b,) on the host, of the micro-batches of at most `size`
    that this process runs.

    rows: (B,) int64, the sequences of the step. Those of like length go together, padding cut off.
    None where the step has no labels. All processes have equally many, since their collectives must
    meet: where the processes do not divide the rows, rows without labels fill up, of number -1.
    """
    ids, mask = tokens.ids[rows], tokens.mask[rows]
    if not bool(mask[:, 1:].any()):
        return []
    lacking = (0, 0, 0, -len(rows) % shards.world)
    ids, mask = F.pad(ids, lacking), F.pad(mask, lacking)
    rows = F.pad(rows, lacking[2:], value=-1)
    ends = (mask * torch.arange(mask.shape[1])).amax(1) + 1
    by_length = shards.take_rows(ends.argsort(stable=True, descending=True))
    micro_batches = []
    for chosen in by_length.split(size):
        longest = int(ends[chosen].max())
        pair = ids[chosen, :longest].to(device), mask[chosen, :longest].to(device)
        micro_batches.append((*pair, rows[chosen]))
    return micro_batches
