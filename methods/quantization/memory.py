"""What searches and rounding hold in memory at their peak.

The code itself is run on tensors without data, so that what is shared, what is copied and when it
is freed need not be repeated here. Not here: how that is done (`harness.models.dry_run`), stages
that train (`methods.training.memory`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from harness.core.stage import Input, Stage, closure
from harness.data import Tokens
from harness.models import (
    Matrix,
    Model,
    Pretrained,
    find_ends,
    matrices,
    meta_network,
    pretrained_of,
)
from harness.models.dry_run import (
    Live,
    Memory,
    OwnWeights,
    dry_run,
    estimate_memory,
    find_new_ends,
    find_own_weights,
    list_new_ends,
    load_weightless,
    renew_matrices,
    replaced,
)
from harness.models.tensors import replace_parameters
from methods.quantization import clip, learned, observing, spans, walking
from methods.quantization.awq import ROWS, ScaleSearch
from methods.quantization.block_ap import BlockAP
from methods.quantization.by_layer import group_by_format
from methods.quantization.formats import Format
from methods.quantization.inits import ClipSearch
from methods.quantization.omniquant import OmniQuant
from methods.quantization.rotation import Rotated
from methods.quantization.rounding import (
    BlockRounding,
    Round,
    RoundBlocks,
    WalkedRounding,
    quantize_model,
)
from methods.quantization.signround import SignRound
from methods.quantization.static_activations import AT_ONCE, InputRanges
from methods.quantization.walking import Block

_SEARCHED = 8  # float32 tensors of the weights that a search tries together
# Beside sums as large as X'X and the weights of a layer, in float32: what a rounding like GPTQ's
# makes of them, one (I, I) and two more for each sum.
_FACTORS, _ROUNDED = 2, 6
_COUNTED = 24  # bytes that counting takes of a value


@estimate_memory.register
def of_clip_search(stage: ClipSearch, gpus: int | None = None, device: str = "cuda") -> Memory:
    return _of_search(stage, stage.format, clip.find_searchable, device)


@estimate_memory.register
def of_scale_search(stage: ScaleSearch, gpus: int | None = None, device: str = "cuda") -> Memory:
    return _of_search(stage, ROWS, lambda model: matrices(model.network), device)


def _of_search(
    stage: ClipSearch | ScaleSearch,
    format: Format,
    layers: Callable[[Model], dict[str, Matrix]],
    device: str,
) -> Memory:
    """What the layers see is gathered on the host, where the model lies: a GPU holds neither."""
    observed = 0

    def observe(block: Block) -> None:
        nonlocal observed
        here = {name: each for name, each in searched_layers.items() if name in block.layers}
        for kind, names in group_by_format(format, here).items():
            layers_here = {name: here[name] for name in names}
            seen = observing.observe(block, layers_here, kind, stage.tokens)
            observed = max(observed, sum(each.nbytes for each in seen))

    with dry_run() as live, cutting_as_on(device):
        model = load_weightless(live, pretrained_of(stage.model), "host")
        searched_layers = layers(model)
        walk_weightless(live, model, find_length(stage.calibration), observe)
    peak = live.peak()
    on_host = 0 if device == "cpu" else observed
    searched = _SEARCHED * 4 * clip.at_once(device)
    return dataclasses.replace(peak, other=max(peak.other - on_host, searched))


@estimate_memory.register
def of_block_rounding(stage: RoundBlocks, gpus: int | None = None, device: str = "cuda") -> Memory:
    """A block, and what rounding it takes: X'X of what its layers read and the largest layer at
    work, or a few steps of what learns. The rest lies on the host."""
    at_work, rounding, length = 0, stage.rounding, find_length(stage.calibration)
    learn: Callable[[Block], object] | None = None

    def observe(block: Block) -> None:
        nonlocal at_work
        if learn is not None:
            learn(block)
            return
        assert isinstance(rounding, BlockRounding)
        for reading, gram in rounding.observe(block, list(block.layers)).items():
            rows = sum(block.layers[name].out_features for name in reading.layers)
            width = gram.shape[-1]
            copies = width**2 + _FACTORS * gram.numel() + _ROUNDED * rows * width
            at_work = max(at_work, 4 * copies)

    with dry_run() as live, cutting_as_on(device):
        model = load_weightless(live, pretrained_of(stage.model), "host")
        if (few := _shorten(rounding)) is not None:
            with live.part("host"):
                learn = few.bind(model, stage.format)
        at_once = rounding.count_at_once(length)
        walk_weightless(live, model, length, observe, rounding.originals, at_once, rounding.pairs)
    peak = live.peak()
    return dataclasses.replace(peak, other=peak.other + at_work)


@estimate_memory.register
def of_input_ranges(stage: InputRanges, gpus: int | None = None, device: str = "cuda") -> Memory:
    """A block that runs, and the values that are counted together; the rest lies on the host."""
    with dry_run() as live:
        model = load_weightless(live, pretrained_of(stage.model), "host")
        walk_weightless(live, model, find_length(stage.calibration), lambda block: block.run_all())
    peak = live.peak()
    counted = _COUNTED * AT_ONCE if stage.percentile < 100 else 0
    return dataclasses.replace(peak, other=peak.other + counted)


def _shorten(rounding: WalkedRounding) -> WalkedRounding | None:
    """One that learns, with so few steps that all is held that its steps hold."""
    if isinstance(rounding, SignRound):
        return dataclasses.replace(rounding, steps=2)
    if isinstance(rounding, OmniQuant | BlockAP):
        return dataclasses.replace(rounding, epochs=2)
    return None


def walk_weightless(
    live: Live,
    model: Model,
    length: int,
    work: Callable[[Block], object],
    originals: bool = False,
    at_once: int | None = None,
    pairs: bool = False,
) -> None:
    """A walk over one batch of sequences of `length` tokens, with `work` done at each block."""

    def place(old: nn.Parameter, where: torch.device) -> nn.Parameter:
        with live.part("parameters"):  # as where the model lies on the host and the block does not
            return nn.Parameter(torch.empty_like(old), requires_grad=False)

    ids = make_ids(at_once or max(1, walking.TOKENS_AT_ONCE // length), length)
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    with replaced(walking, "_place", place):
        walk = walking.sequentially(model, tokens, Path(), False, originals, at_once, pairs)
        for block in walk:
            work(block)


@estimate_memory.register
def of_rounding(stage: Round, gpus: int | None = None, device: str = "cuda") -> Memory:
    """The base, what is rounded already, and one layer at work; a trained model lies on the
    host."""
    own, ends = find_own_weights(stage.model), find_new_ends(stage.model)
    return _of_rounding(pretrained_of(stage.base), own, ends, stage.format, device)


@cache
def _of_rounding(
    base: Pretrained, own: OwnWeights, ends: tuple[str, ...], format: Format, device: str
) -> Memory:
    trained = own == "all"
    with dry_run() as live, cutting_as_on(device):
        held = load_weightless(live, base)
        model = load_weightless(live, base, "host") if trained else held.fork()
        with live.part("host" if trained else "parameters"):
            if trained:
                replace_parameters(model.network, _make_float32)
            elif own == "linears":
                renew_matrices(model, ends)
        sizes = [matrix.stored.numel() for matrix in matrices(model.network).values()]
        rounded = quantize_model(model, format, like=held)
        for tensor in rounded.network.parameters():
            live.assign("parameters", tensor)
    peak = live.peak()
    moved = 4 * max(sizes) if trained else 0  # tensors without data cannot move to a GPU
    return dataclasses.replace(peak, other=peak.other + moved)


@list_new_ends.register
def of_rounded_ends(stage: Round | RoundBlocks) -> tuple[str, ...]:
    """Those that the format names; tied ones are rounded as one where it names either."""
    base = pretrained_of(stage.model)
    network = meta_network(base.source, base.trust_remote_code, base.digest)
    named = {
        id(matrix.stored): name
        for name, matrix in find_ends(network).items()
        if stage.format.of_end(name) is not None
    }
    return tuple(named.values())


@list_new_ends.register
def of_rotated_ends(stage: Rotated) -> tuple[str, ...]:
    """Both: a rotation unties them."""
    base = pretrained_of(stage.model)
    return tuple(find_ends(meta_network(base.source, base.trust_remote_code, base.digest)))


@contextmanager
def cutting_as_on(device: str) -> Iterator[None]:
    """Rows of weights are worked on together as on `device`, wherever tensors without data are."""
    rows, steps = spans._AT_ONCE, learned._AT_ONCE
    with (
        replaced(spans, "_AT_ONCE", {**rows, "cpu": rows[device]}),
        replaced(learned, "_AT_ONCE", {**steps, "cpu": steps[device]}),
    ):
        yield


def _make_float32(name: str, old: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(old.detach().float(), requires_grad=False)


def make_ids(rows: int, length: int) -> Tensor:
    """Token ids, of which no value matters: (rows, length) int64."""
    return torch.zeros(rows, length, dtype=torch.int64)


def find_length(tokens: Input[Tokens]) -> int:
    """Tokens of each sequence that a stage will give."""
    lengths = (getattr(stage, "length", None) for stage in closure([cast(Stage[Tokens], tokens)]))
    return next(int(length) for length in lengths if length)
