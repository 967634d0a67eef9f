"""Where formats with trained parameters start: each group from its own weights alone.

Not here: what training makes of it, nor what parameters take (`packing`).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from harness.config.settings import list_settings
from harness.testing.case import Case, Skip

_GROUP = 32  # weights, where a group is a whole row


@runtime_checkable
class _Starting(Protocol):
    group_size: int | None

    def start_parameters(self, groups: Tensor) -> dict[str, Tensor]: ...


def check_start(case: Case) -> str | None:
    """Groups beside one, of its row and of others, are changed: its parameters stay as they were.

    Processes that share a layer's rows, and groups worked on in parts, rely on it.
    """
    formats = [each for _, each in list_settings(case.method) if isinstance(each, _Starting)]
    if not formats:
        raise Skip("its format has no trained parameters")
    draw = torch.Generator().manual_seed(0)
    for each in formats:
        groups = torch.randn(3, 2, each.group_size or _GROUP, generator=draw)
        others = groups * 3 + 1
        others[1, 0] = groups[1, 0]
        before, after = each.start_parameters(groups), each.start_parameters(others)
        for name, start in before.items():
            if not torch.equal(start[1, 0], after[name][1, 0]):
                return (
                    f"{type(each).__name__}: a group's {name!r} at the start changes with the "
                    "weights of other groups; `start_parameters` is of each group alone"
                )
    return None
