"""Attachments: what a model does while it runs, beside what its weights say.

    @dataclass(frozen=True)
    class Activations(Attachment):
        name = "activations"
        bits: int = 8

        @property
        def label(self) -> str:
            return f"A{self.bits}"

        def attach(self, network: PreTrainedModel) -> None:
            change_inputs(self, network, matrices(network).values())

        def change_input(self, read: Tensor, layer: str) -> Tensor:
            ...

An attachment acts in two places: on what a matrix reads, be it a layer or experts that lie in one
parameter (`products`), and on keys and values as attention reads them. Keys stand after position
embeddings there, as a cache holds them, and they are the same with a cache and without. Where a
place of a network is not passed as it runs, it stops with the name of the place: nothing is
skipped. Not here: who holds attachments (`model`), their stage (`attaching`), whether those
declared are those that act (`integrity`), any attachment (`methods`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from harness.core.component import Component
from harness.core.errors import ModelError
from harness.core.stage import Stage
from harness.models.compat import pass_attention_through
from harness.models.layers import Matrix
from harness.models.parts import blocks, find_cache_name, find_trunk
from harness.models.products import meet_products


@dataclass(frozen=True)
class Attachment(Component, family="attachment"):
    """What a model does while it runs. Subclasses are frozen dataclasses of JSON fields."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What tables call it behind the bits of the weights: A8, KV4. It tells its fields."""

    @abstractmethod
    def attach(self, network: PreTrainedModel) -> None:
        """Say where it acts, by `change_inputs` and `change_caches`; weights stay as they are.

        Raises ModelError where it cannot act on such a network.
        """

    def fold(self, network: PreTrainedModel) -> None:
        """Change the weights that it needs changed, by `Matrix.replace`: once, as a model is given
        it, and not when that is loaded again."""

    def observe(self, model: Stage[Any]) -> Stage[Any] | None:
        """The stage of what it has to know of `model`, before it is given to it; None: nothing."""
        return None

    def told(self, observed: Any) -> Attachment:
        """Itself with the value of that stage in a field, which is stored with the model."""
        return self

    def rehearsed(self, network: PreTrainedModel) -> Attachment:
        """Itself as if told, for plans: what there would be to know of a network is made up."""
        return self

    def change_input(self, read: Tensor, layer: str) -> Tensor:
        """What the matrix called `layer` is given in place of what it reads: (..., I), of one
        shape and dtype."""
        return read

    def change_cached(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What attention is given in place of keys and values, (B, H, T, D) each.

        Each token is changed by itself: others come and go with the length of the text.
        """
        return keys, values

    @property
    def folds(self) -> bool:
        """Whether it changes weights."""
        return type(self).fold is not Attachment.fold


def change_inputs(
    attachment: Attachment, network: PreTrainedModel, matrices: Iterable[Matrix]
) -> None:
    """`attachment.change_input` acts on what each of the matrices reads; of experts that lie in one
    parameter, on what any of them reads, or all of them at once."""
    passes = _find_passes(network)
    for matrix in matrices:
        is_layer = matrix.leaf == "weight" and not matrix.experts
        if not (is_layer and "expert" in matrix.name):  # an expert alone may have no token
            passes.expected.add(f"layer {matrix.name}")
        module = matrix.module
        if is_layer:
            hook = _Input(attachment, matrix.name, passes)
            module.register_forward_pre_hook(hook, with_kwargs=True)
            continue
        held = vars(module).get("forward")
        acting = held.acting if isinstance(held, _Inside) else ()
        module.forward = _Inside(module, (*acting, (matrix, attachment)), passes)


def change_caches(attachment: Attachment, network: PreTrainedModel) -> None:
    """`attachment.change_cached` acts on the keys and values of every block that has them.

    Raises ModelError where none has.
    """
    pass_attention_through(_attend)
    found = DynamicCache(config=network.config).layers if find_cache_name(network) else []
    holding = {at for at, layer in enumerate(found) if isinstance(layer, DynamicLayer)}
    if not holding:
        raise ModelError(
            f"attachment {attachment.name!r}: {type(network).__name__} has no keys and values"
        )
    passes = _find_passes(network)
    for at, (name, block) in enumerate(blocks(network).items()):
        place = f"the attention of {name}"
        if at in holding:
            passes.expected.add(place)
        for module in block.modules():
            held = vars(module).get(_CACHED)
            others = held.attachments if held else ()
            setattr(module, _CACHED, _Cached((*others, attachment), place, passes))


def describe_attached(module: nn.Module) -> tuple[tuple[str, Attachment | None], ...]:
    """What of attachments acts on a module itself, in the order in which it does."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    acting = [("input", hook.attachment) for hook in hooks if isinstance(hook, _Input)]
    inside = vars(module).get("forward")
    if isinstance(inside, _Inside):
        acting += [(f"input of {matrix.leaf}", each) for matrix, each in inside.acting]
    watching = [("a watch over attachments", None) for hook in hooks if isinstance(hook, _Passes)]
    held = vars(module).get(_CACHED)
    return (*acting, *watching, *(("cache", each) for each in (held.attachments if held else ())))


def is_of_attachment(thing: object) -> bool:
    """Whether a hook of a module, or a `forward` of its own, was hung there for an attachment."""
    return isinstance(thing, _Input | _Inside | _Passes)


_CACHED, _PASSES = "_cached_of_attachments", "_passes_of_attachments"


@dataclass
class _Passes:
    """Which places of a network are to be passed as it runs, and which were: a hook of its trunk,
    before it runs and after."""

    expected: set[str] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)

    def __call__(self, trunk: nn.Module, arguments: Any, output: Any = None) -> None:
        if output is None:
            self.passed.clear()
        elif lacking := sorted(self.expected - self.passed):
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise ModelError(
                f"{type(trunk).__name__} runs {lacking[0]}{more} in a way that attachments do not "
                "reach; the model would have run without them"
            )


@dataclass(frozen=True)
class _Input:
    """A hook before a matrix."""

    attachment: Attachment
    layer: str
    passes: _Passes = field(compare=False)

    def __call__(self, module: nn.Module, arguments: Any, named: Any) -> tuple[Any, Any]:
        self.passes.passed.add(f"layer {self.layer}")
        if arguments:
            return (self.attachment.change_input(arguments[0], self.layer), *arguments[1:]), named
        (first, read), *others = named.items()
        return (), {first: self.attachment.change_input(read, self.layer), **dict(others)}


@dataclass(frozen=True)
class _Inside:
    """Stands for the `forward` of a module that multiplies inside itself: what is read there is
    changed by each attachment that acts on the matrix, in order."""

    module: nn.Module
    acting: tuple[tuple[Matrix, Attachment], ...]
    passes: _Passes

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        with meet_products((matrix for matrix, _ in self.acting), self._change):
            return type(self.module).forward(self.module, *arguments, **named)

    def _change(self, matrix: Matrix, expert: int | None, read: Tensor) -> Tensor:
        self.passes.passed.add(f"layer {matrix.name}")
        for each, attachment in self.acting:
            if each.leaf == matrix.leaf:
                read = attachment.change_input(read, matrix.name)
        return read


@dataclass(frozen=True)
class _Cached:
    """What acts on the keys and values of a block, held by its modules."""

    attachments: tuple[Attachment, ...]
    place: str
    passes: _Passes = field(compare=False)


def _attend(
    attention: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *arguments: Any,
    **options: Any,
) -> Any:
    held: _Cached | None = vars(module).get(_CACHED)
    if held is not None:
        held.passes.passed.add(held.place)
        for attachment in held.attachments:
            key, value = attachment.change_cached(key, value)
    return attention(module, query, key, value, *arguments, **options)


def _find_passes(network: PreTrainedModel) -> _Passes:
    _, trunk = find_trunk(network)
    held: _Passes | None = vars(trunk).get(_PASSES)
    if held is None:
        held = _Passes()
        setattr(trunk, _PASSES, held)
        trunk.register_forward_pre_hook(held)
        trunk.register_forward_hook(held)
    return held
