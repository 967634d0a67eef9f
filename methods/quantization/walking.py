"""A model's blocks one after the other: how methods see what layers read, and change them.

    for block in sequentially(model, tokens, work):          # the model is changed: walk a fork
        for name, weight in block.once("weights", round_block).items():
            block.layers[name].replace(weight)

A block's inputs are made by running the trunk itself, with the block before it standing for what it
gave, so that masks, positions and whatever else a trunk hands to its blocks are the model's own.
One block at a time is on the device; what blocks read and give lies on the host. So a model that
fits no GPU can be walked on one that holds a block. A walk that was killed goes on where it was:
what `once` computed is read back, and the blocks before are only run.

Not here: what layers read, cut as their weights are (`observing`), experts (`experts`), any method.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.core.errors import ModelError
from harness.core.stage import report
from harness.data import Tokens
from harness.models import Matrix, Model, blocks, device, matrices, run_trunk
from methods.quantization.readings import Reading, See, watch
from methods.tensor_files import keep_tensors, read_kept

SeeBoth: TypeAlias = Callable[[Reading, Tensor, Tensor | None], None]
"""`See`, and what the original model reads of the same tokens: (n, I), None of experts."""

TOKENS_AT_ONCE = 4096  # in a forward pass over the calibration text
HOST = torch.device("cpu")


@dataclass(frozen=True)
class Inputs:
    """What a block is called with for a batch of sequences."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Block:
    """A block of the model, on the device while it is its turn.

    layers: its matrices by name, of experts too. ids: (B, T) int64 a batch, which all blocks read;
    inputs: what it is called with, a batch each, made when it is asked for. targets: where
    `sequentially` was asked for `originals`, what the original block gives in the original model,
    (B, T, D) a batch, on the host; with `pairs` also `originals`, what it is called with there.
    """

    name: str
    number: int  # from 0
    module: nn.Module
    layers: dict[str, Matrix]
    ids: Sequence[Tensor]
    inputs: Sequence[Inputs]
    work: Path
    network: PreTrainedModel
    targets: list[Tensor] = field(default_factory=list)
    originals: Sequence[Inputs] = ()
    before: dict[str, nn.Parameter] = field(default_factory=dict)  # as the walk came to it
    gave: list[Any] = field(default_factory=list)  # by batch, as long as it was unchanged

    def run(self, inputs: Inputs, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Its hidden states for a batch, (B, T, D) on the device. Gradients are the caller's.

        weights: in place of its parameters, by their names in the network.
        """
        if not weights:
            return get_states(self._run(inputs))
        own = {name.removeprefix(f"{self.name}."): each for name, each in weights.items()}
        args, kwargs = move(inputs.args, device()), move(inputs.kwargs, device())
        return get_states(torch.func.functional_call(self.module, own, args, kwargs))

    @torch.no_grad()
    def observe(self, see: See, layers: Mapping[str, Matrix] | None = None) -> list[Reading]:
        """Call `see` with what its layers, or only `layers`, read: a batch at a time.

        Layers that read one tensor are seen once; of experts each is seen on the tokens that are
        sent to it. Returns all readings, those of which nothing was seen too.
        """
        gave = []
        with watch(self.layers if layers is None else layers, see) as watcher:
            for inputs in self.inputs:
                gave.append(move(self._run(inputs), HOST))
                watcher.forget()
        if self.is_unchanged:
            self.gave = gave
        return watcher.list_readings()

    @torch.no_grad()
    def observe_both(self, see: SeeBoth, layers: Mapping[str, Matrix]) -> list[Reading]:
        """As `observe`, and `see` gets what the original model reads of the same tokens, too: for
        this `sequentially` was asked for `pairs`. Of experts that is None: other tokens are sent
        to them there."""
        before: dict[Reading, list[Tensor]] = defaultdict(list)  # of a batch, in the order of calls
        is_original = True

        def see_one(reading: Reading, rows: Tensor) -> None:
            if is_original:
                before[reading].append(rows)
            else:
                see(reading, rows, before[reading].pop(0) if reading.expert is None else None)

        with watch(layers, see_one) as watcher:
            for original, inputs in zip(self.originals, self.inputs, strict=True):
                with _holding(self.module, self.before):
                    self._run(original)
                watcher.forget()
                is_original = False
                self._run(inputs)
                watcher.forget()
                is_original = True
                before.clear()
        return watcher.list_readings()

    def once(self, what: str, compute: Callable[[Block], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors that `compute` gives for the block, on the host. They are kept in the work
        folder: no later attempt of the stage computes them again."""
        path = self.work / f"block-{self.number:03d}-{what}.safetensors"
        if (kept := read_kept(path)) is not None:
            return kept
        tensors = {name: tensor.detach().cpu() for name, tensor in compute(self).items()}
        keep_tensors(path, tensors, f"{what} of block {self.number}")
        return tensors

    def replace(self, name: str, tensor: Tensor) -> None:
        """Give a layer a new weight, or else the parameter of that name in the network a new value;
        the old tensor, which others share, stays."""
        if matrix := self.layers.get(name):
            matrix.replace(tensor)
        else:
            inside = name.removeprefix(f"{self.name}.")
            new = nn.Parameter(tensor.to(self.module.get_parameter(inside)), requires_grad=False)
            _set_parameters(self.module, {inside: new})

    @property
    def is_unchanged(self) -> bool:
        return all(new is self.before[name] for name, new in self.module.named_parameters())

    @torch.no_grad()
    def run_all(self) -> list[Any]:
        """What it gives for each batch, on the host."""
        if len(self.gave) == len(self.inputs) and self.is_unchanged:
            return self.gave
        return [move(self._run(inputs), HOST) for inputs in self.inputs]

    def _run(self, inputs: Inputs) -> Any:
        place = device()
        return self.module(*move(inputs.args, place), **move(inputs.kwargs, place))


def sequentially(
    model: Model,
    tokens: Tokens,
    work: Path,
    quantized_inputs: bool = True,
    originals: bool = False,
    at_once: int | None = None,
    pairs: bool = False,
) -> Iterator[Block]:
    """The blocks of `model` in order, each with what it reads of `tokens`.

    A block reads what the blocks before it give as they are when the walk goes on, changed or not;
    without `quantized_inputs` as they were. The caller changes `model` by giving layers new
    weights (`Matrix.replace`), and may train a block's parameters. How far the walk is, is
    reported. A block that the trunk does not run on text has no inputs. at_once: sequences of a
    batch; None: those of about 4,096 tokens.
    """
    model.network.eval()
    found, layers = blocks(model.network), matrices(model.network)
    batches = tokens.ids.split(at_once or max(1, TOKENS_AT_ONCE // tokens.ids.shape[1]))
    own, clean = ([None] * len(batches) for _ in range(2))  # what the last block gave, by batch
    for number, (name, module) in enumerate(found.items()):
        reads = partial(_Batches, model.network, list(found.values()), number, batches)
        inside = {n: matrix for n, matrix in layers.items() if n.startswith(f"{name}.")}
        block = Block(name, number, module, inside, batches, reads(own), work, model.network)
        with _placed(module) as block.before:
            if originals:
                block.inputs = reads(clean)
                block.originals = block.inputs if pairs else ()
                clean = block.run_all() or clean
                block.inputs, block.targets = reads(own), [get_states(each) for each in clean]
            yield block
            if quantized_inputs:
                own = block.run_all() or own
            else:
                with _holding(module, block.before):
                    own = block.run_all() or own
        block.originals = ()
        block.before, block.gave = {}, []  # who still has the block holds none of its weights
        report(number + 1, len(found))


@dataclass(frozen=True)
class _Batches(Sequence[Inputs]):
    """What a block is called with, made when it is asked for: masks of all batches are large."""

    network: PreTrainedModel
    blocks: list[nn.Module]
    number: int
    ids: Sequence[Tensor]
    given: list[Any]  # by the block before, a batch each

    def __len__(self) -> int:
        return len(self.ids) if self.is_run else 0

    @cached_property
    def is_run(self) -> bool:
        """Whether the trunk runs the block: one for images is not run on text."""
        return self._reach(0) is not None

    def __getitem__(self, batch: Any) -> Any:
        if (inputs := self._reach(batch)) is None:
            raise IndexError(batch)
        return inputs

    def _reach(self, batch: int) -> Inputs | None:
        """What the trunk calls the block with; None where it does not run it."""
        network, block = self.network, self.blocks[self.number]
        left = self.blocks[: self.number].count(block)  # a block may stand in several places

        def stand_in(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if module is block:
                if not left:
                    raise _Reached(Inputs(args, kwargs))
                left -= 1
            return self.given[batch]

        ids = self.ids[batch].to(network.get_input_embeddings().weight.device)
        with _calling({each: partial(stand_in, each) for each in self.blocks}), torch.no_grad():
            try:
                run_trunk(network, ids)
            except _Reached as reached:
                return reached.inputs
        return None


class _Reached(Exception):
    """The trunk has come to the block."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs


@contextmanager
def _calling(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside, modules run these instead of their own `forward`."""
    held = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, own in held.items():
            del module.forward
            if own is not None:
                module.forward = own


@contextmanager
def _placed(module: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """Inside, a block lies on the device, and its parameters there come back by name; afterwards
    it lies where it was, with the parameters that it got meanwhile."""
    homes = dict(module.named_parameters())
    buffers = [
        (owner, name, buffer)
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
    ]
    here = {name: _place(old, device()) for name, old in homes.items()}
    _set_parameters(module, here)
    for owner, name, buffer in buffers:
        setattr(owner, name, buffer.to(device()))
    try:
        yield here
    finally:
        last = dict(module.named_parameters())
        for name, new in last.items():
            last[name] = homes[name] if new is here[name] else _place(new, homes[name].device)
        _set_parameters(module, last)
        for owner, name, buffer in buffers:
            setattr(owner, name, buffer)


@contextmanager
def _holding(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Inside, a module has these parameters."""
    own = dict(module.named_parameters())
    _set_parameters(module, parameters)
    try:
        yield
    finally:
        _set_parameters(module, own)


def _place(old: nn.Parameter, where: torch.device) -> nn.Parameter:
    if old.device == where:
        return old
    return nn.Parameter(old.detach().to(where), old.requires_grad)


def _set_parameters(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, parameter)


def get_states(given: Any) -> Tensor:
    """The hidden states (B, T, D) in what a block gave: some give more beside them."""
    states: Tensor = given if isinstance(given, Tensor) else given[0]
    return states


def move(thing: Any, place: torch.device) -> Any:
    """The tensors of a call or of what it gave, in tuples, lists and mappings, on a device."""
    if isinstance(thing, Tensor):
        return thing.to(place)
    if isinstance(thing, dict):
        return {key: move(each, place) for key, each in thing.items()}
    if type(thing) in (tuple, list):
        return type(thing)(move(each, place) for each in thing)
    return thing


@torch.no_grad()
def check_walk(model: Model) -> None:
    """Raise ModelError where a model's blocks, run one by one, give something else than the model.

    So it is where a block needs more of an earlier one than its trunk hands on.
    """
    ids = torch.arange(16, device=model.device).view(2, 8) % model.vocabulary
    last: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, given: Any) -> None:
        last[:] = [get_states(given)]

    with ExitStack() as hooks:  # on all: a text may not run the one that stands last
        for block in blocks(model.network).values():
            hooks.enter_context(block.register_forward_hook(keep))
        run_trunk(model.network, ids)
    (whole,) = last
    tokens = Tokens(ids.cpu(), torch.ones_like(ids.cpu(), dtype=torch.bool))
    with tempfile.TemporaryDirectory() as work:
        for walk in sequentially(model, tokens, Path(work)):
            for given in walk.run_all():
                walked = get_states(given).to(whole)
    tolerance = 1e-3 * float(whole.abs().max())
    if not torch.allclose(walked, whole, rtol=0, atol=tolerance, equal_nan=True):
        raise ModelError(
            f"{type(model.network).__name__}: its blocks cannot be run one after the other: run "
            "alone, they give something else than in the model"
        )
