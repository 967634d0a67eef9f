"""A format whose groups start from the weights of others is found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.config.settings import configure
from harness.method import METHODS
from harness.testing import Bench
from harness.testing.case import Case, Skip
from harness.testing.starts import check_start
from harness.testing.subjects import Subject
from methods.quantization.lsq import IntLSQ


def make_case(bench: Bench, format: str) -> Case:
    method = configure(METHODS.find("bitdistiller").method, {"format": format})
    return Case(Subject("method", method), bench)


@pytest.mark.parametrize("format", ["int-lsq", "int-step", "int-seq", "paretoq"])
def test_each_group_alone_passes(bench: Bench, format: str) -> None:
    assert check_start(make_case(bench, format)) is None


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2), (0, 2)])
def test_a_start_from_other_groups_is_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, axes: tuple[int, ...]
) -> None:
    def start(self: IntLSQ, groups: Tensor) -> dict[str, Tensor]:
        tops = groups.abs().amax(axes, keepdim=True)
        return {"step": tops.expand(*groups.shape[:-1], 1).to(torch.float16)}

    monkeypatch.setattr(IntLSQ, "start_parameters", start)
    assert "'step' at the start changes" in (check_start(make_case(bench, "int-lsq")) or "")


def test_a_format_without_parameters_is_left_out(bench: Bench) -> None:
    with pytest.raises(Skip, match="no trained parameters"):
        check_start(make_case(bench, "int-asym"))
