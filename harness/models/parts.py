"""The parts of a language model's network, found by structure: blocks, trunk, head, configuration.

    network  ─ trunk ─ (text model ─ (embeddings, blocks, last norm), vision tower) ─ head

Of a model that also sees or hears, the language model's are meant. Not here: the layers inside the
blocks (`layers`), which of the library's classes reads a model (`reading`), how a head is run
(`methods.training.forward`).
"""

from __future__ import annotations

from contextlib import suppress
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from harness.core.errors import ModelError

# Where the blocks of a network are: to go through all modules costs as much as a few layers.
_PLACES: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()
# What configurations call the longest sequence, the library's general name first.
_CONTEXTS = ("max_position_embeddings", "max_seq_len", "seq_length", "context_length")


def read_text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a configuration that is the language model's: all of it where that is alone."""
    return config.get_text_config(decoder=True)


def read_context(config: PreTrainedConfig) -> int | None:
    """The longest sequence that a model was made for, in tokens; None where it does not say.

    A state-space model has no such limit.
    """
    text = read_text_config(config)
    for name in _CONTEXTS:
        length = getattr(text, name, None)
        if isinstance(length, int) and length > 0:
            return length
    return None


def count_vocabulary(network: PreTrainedModel) -> int:
    """The tokens that a network knows."""
    return int(read_text_config(network.config).vocab_size)


def find_blocks(network: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of decoder blocks and its name: as long as the configuration says, and of all such
    lists the nearest to the token embeddings, so that no vision tower's is taken for it.

    Blocks need not be of one class: hybrids mix attention with state spaces. Raises ModelError.
    """
    count = getattr(read_text_config(network.config), "num_hidden_layers", None)
    if (name := _PLACES.get(network)) is not None:
        with suppress(AttributeError):  # a part of it may have been replaced
            found = network.get_submodule(name)
            if isinstance(found, nn.ModuleList) and len(found) == count:
                return name, found
    name, found = _search_blocks(network, count)
    _PLACES[network] = name
    return name, found


def _search_blocks(network: PreTrainedModel, count: int | None) -> tuple[str, nn.ModuleList]:
    lists = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    place = _find_name(network, network.get_input_embeddings())
    while place:
        place = place.rpartition(".")[0]
        near = [name for name in lists if name.startswith(f"{place}." if place else "")]
        if near:
            return near[0], lists[near[0]]  # the outermost: `named_modules` goes from there inwards
    raise ModelError(f"{type(network).__name__}: no list of {count} decoder blocks found")


def blocks(network: PreTrainedModel) -> dict[str, nn.Module]:
    """The decoder blocks, by name, in order."""
    name, found = find_blocks(network)
    return {f"{name}.{i}": block for i, block in enumerate(found)}


def find_text_model(network: PreTrainedModel) -> tuple[str, nn.Module]:
    """The smallest module that holds both the blocks and the token embeddings, with its name.

    Beside them it has what stands between: position embeddings, the last norm.
    """
    name, embeddings = find_blocks(network)[0], network.get_input_embeddings()
    while name:
        name = name.rpartition(".")[0]
        module = network.get_submodule(name)
        if any(each is embeddings for each in module.modules()):
            break
    return name, network.get_submodule(name)


def find_trunk(network: PreTrainedModel) -> tuple[str, nn.Module]:
    """The child of a network that holds its blocks, with its name: all but the head."""
    name = find_blocks(network)[0].partition(".")[0]
    return name, network.get_submodule(name)


def run_trunk(network: PreTrainedModel, ids: Tensor, **options: Any) -> Tensor:
    """Last hidden states, after the final norm: ids (B, T) int64 -> (B, T, D).

    Without an attention mask sequences are padded on the right, where a causal model does not look.
    `options` go to the trunk as far as it knows them: not every model has position ids.
    """
    _, trunk = find_trunk(network)
    known = signature(trunk.forward).parameters
    options = {"use_cache": False, **options}
    if not any(each.kind is each.VAR_KEYWORD for each in known.values()):
        options = {name: option for name, option in options.items() if name in known}
    states: Tensor = trunk(input_ids=ids, **options)[0]
    return states


def find_cache_name(network: PreTrainedModel) -> str | None:
    """What a trunk calls the cache that it takes; None where that is not the library's general
    one."""
    known = signature(find_trunk(network)[1].forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in known), None)


def carries_states(network: PreTrainedModel) -> bool:
    """Whether layers carry a state from token to token, which padding before a text may change:
    those of state-space models and of linear attention."""
    layers = DynamicCache(config=network.config).layers
    return find_cache_name(network) is None or any(
        isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers
    )


def _find_name(network: nn.Module, module: nn.Module) -> str:
    return next(name for name, each in network.named_modules() if each is module)
