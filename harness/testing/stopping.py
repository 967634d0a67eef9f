"""What happens while a method runs: it is stopped and goes on, and what it holds is counted.

Not here: how that is seen (`watching`).
"""

from __future__ import annotations

import torch

from harness.core.fingerprint import find_change, fingerprint
from harness.core.stage import Stage, closure
from harness.data import Tokens
from harness.models import Model, run_trunk
from harness.testing.case import Case, Skip
from harness.testing.watching import Counting

_STOPS = (1, 3)  # after so many changes of its folder a stage is stopped
_COPIES = 4  # of the model's weights, beside the model
_PASSES = 2  # over the calibration text, of what one takes


def check_stopped(case: Case) -> str | None:
    """Each stage that keeps something in `work` is stopped by an interrupt once that folder has
    changed, and once it has changed three times, and run again: it gives what it gives
    undisturbed."""
    if case.subject.part is not None:
        raise Skip("the stages are those of its method")
    case.need_repeatable()
    if case.unresumed:
        raise Skip("it does not even go on from what it left at its end")
    keeping = [stage for stage in closure([case.root]) if case.bench.keeps(stage)]
    if not keeping:
        raise Skip("it keeps nothing in `work`")
    for stage in keeping:
        if stage.key not in case.bench.stopped:
            case.bench.stopped[stage.key] = _find_stop(case, stage)
        if fault := case.bench.stopped[stage.key]:
            return fault
    return None


def _find_stop(case: Case, stage: Stage[object]) -> str | None:
    known = fingerprint(case.bench.compute(stage))
    for changes in _STOPS:
        value, was_stopped = case.bench.compute_stopped(stage, changes)
        if not was_stopped:
            return None
        if part := find_change(known, fingerprint(value)):
            return (
                f"stopped when `work` had changed {changes} times, it goes on to another result: "
                f"{part} differs; keep a file only once it is whole, and take no part for all"
            )
    return None


def check_copies(case: Case) -> str | None:
    """Bytes of tensors alive at once, beside the model, while a stage runs that `plan --memory`
    has no estimate of: at most four models, and what two passes over its text take."""
    case.need_repeatable()
    stages = [stage for stage in closure([case.root]) if stage.key in case.bench.peaks]
    made = [stage for stage in stages if isinstance(case.bench.compute(stage), Model)]
    if not made:
        raise Skip("all its stages are in `bitgrid plan --memory`")
    base: Model = case.bench.compute(case.bench.base)
    size = sum(each.numel() * each.element_size() for each in base.network.parameters())
    for stage in made:
        texts = [case.bench.compute(each) for each in stage.inputs]
        passes = sum(_count_pass(base, each) for each in texts if isinstance(each, Tokens))
        peak, allowed = case.bench.peaks[stage.key], _COPIES * size + _PASSES * passes
        if peak > allowed:
            text = f" and two passes over its text ({_show(_PASSES * passes)})" if passes else ""
            return (
                f"beside the model, {_show(size)}, it holds {_show(peak)} of tensors at once; "
                f"{_COPIES} models{text} should do: make the copies of one layer at a time"
            )
    return None


def _count_pass(model: Model, tokens: Tokens) -> int:
    """Bytes that one pass of a model over all tokens takes."""
    with Counting() as counted, torch.no_grad():
        run_trunk(model.network, tokens.ids)
    return counted.peak().total


def _show(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"
