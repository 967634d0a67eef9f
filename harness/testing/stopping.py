"""What happens while a method runs: it is killed and goes on, and what it holds is counted.

Not here: how it is killed (`killing`), how what it holds is seen (`watching`).
"""

from __future__ import annotations

from functools import partial
from random import SystemRandom

import torch

from harness.core.fingerprint import find_change, fingerprint
from harness.core.stage import Stage, closure
from harness.data import Tokens
from harness.models import Model, run_trunk
from harness.testing.case import Case, Skip
from harness.testing.killing import can_kill
from harness.testing.watching import Counting

_STOPS = (1, 3)  # after so many changes of its folder a stage is killed
_COPIES = 4  # of the model's weights, beside the model
_PASSES = 2  # over the calibration text, of what one takes


def check_stopped(case: Case) -> str | None:
    """Each stage that keeps something in `work` is killed once that folder has changed, once it has
    changed three times, and at a moment drawn from the time that it takes; and each time run again:
    it gives what it gives undisturbed."""
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
    bench, known = case.bench, fingerprint(case.bench.compute(stage))
    # A stage seeds the generator of `random`: what is drawn here is of the system.
    moment = bench.seconds[stage.key] * SystemRandom().random()
    kills = [
        (f"when `work` had changed {n} times", partial(bench.compute_stopped, stage, changes=n))
        for n in _STOPS
    ]
    if can_kill():
        by_time = partial(bench.compute_stopped, stage, seconds=moment)
        kills.append((f"after {moment:.3f} s", by_time))
    for words, compute in kills:
        value = compute()
        if value is not None and (part := find_change(known, fingerprint(value))):
            return (
                f"killed {words}, it goes on to another result: {part} differs; keep a file only "
                "once it is whole, and take no part for all"
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
        if peak.size > allowed:
            text = f" and two passes over its text ({_show(_PASSES * passes)})" if passes else ""
            where = f", at layer {peak.layer}" if peak.layer else ""
            return (
                f"beside the model, {_show(size)}, it holds {_show(peak.size)} of tensors at once"
                f"{where}; {_COPIES} models{text} should do: make the copies of one layer at a time"
            )
    return None


def _count_pass(model: Model, tokens: Tokens) -> int:
    """Bytes that one pass of a model over all tokens takes."""
    with Counting(model.network) as counted, torch.no_grad():
        run_trunk(model.network, tokens.ids)
    return counted.peak().total


def _show(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"
