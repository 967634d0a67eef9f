"""Whether a model is what it is said to be: its parts by name, and what its files would not keep.

    fingerprint_model(model)            # part -> digest: see `harness.core.fingerprint`
    check_kept(network, attachments)    # it would come back the same from what its files hold
    check_rounded(model)                # finite, and no more levels a group than it says

A value is stored as a configuration, tensors and attachments, so whatever else a network computes
with (a hook, another class of module, a changed attribute) would be scored once and be gone the
next time, and an attachment that was lost on the way would be scored as if it acted. Not here: when
this is asked (`harness.core.execution`, `harness.core.store`), what a method may change
(`harness.method`).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from harness.core.errors import ModelError
from harness.core.fingerprint import Fingerprint, digest_tensor
from harness.models.attachments import Attachment, describe_attached, is_of_attachment
from harness.models.layers import Quantized, find_ends, survey
from harness.models.reading import find_class


class Holder(Protocol):
    """What of a `Model` is looked at here."""

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    quantized: dict[str, Quantized]
    latent: bool
    attachments: tuple[Attachment, ...]
    format_parameters: dict[str, dict[str, Tensor]]


_HOOKS = {
    "_forward_hooks": "a forward hook",
    "_forward_pre_hooks": "a forward pre-hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
}
# Of a configuration: what saving writes anew, and how a model is run rather than what it is.
_INCIDENTAL = {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
# Of modules: what changes as they run, and where they were read from.
_RUNNING = {
    "training",
    "gradient_checkpointing",
    "max_seq_len_cached",
    "name_or_path",
    "layers_are_rescaled",
}
_PLAIN = str | int | float | bool


def fingerprint_model(model: Holder) -> Fingerprint:
    """All that decides what a model computes, by name: each tensor, each module's class and hooks,
    the configuration, the tokenizer, what was rounded."""
    network, tokenizer = model.network, model.tokenizer
    parts: dict[str, Any] = {}
    digests: dict[int, Any] = {}  # tied tensors are read once
    for name, tensor in _list_tensors(network):
        if id(tensor) not in digests:
            digests[id(tensor)] = digest_tensor(tensor)
        parts[name] = digests[id(tensor)]
    for name, own in _list_parameters(model):
        parts[name] = digest_tensor(own)
    for name, module in network.named_modules():
        acting = describe_attached(module)
        parts[f"module {name}"] = (type(module).__qualname__, *_describe_extras(module), *acting)
    parts["its configuration"] = describe_config(network.config)
    if tokenizer is not None:
        parts["its tokenizer"] = _digest_tokenizer(tokenizer)
    parts["what it says was quantised"] = (dict(model.quantized), model.latent)
    parts["its attachments"] = model.attachments
    return parts


def _digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """Vocabulary, merges and what is done before and after them. Padding and truncation are not of
    it: each call sets them."""
    special = tokenizer.bos_token_id, tokenizer.eos_token_id, str(tokenizer.chat_template)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    if isinstance(content, str):
        content = json.loads(content) | {"padding": None, "truncation": None}
    text = json.dumps(content, sort_keys=True)
    return (*special, hashlib.sha256(text.encode()).hexdigest())


def describe_config(config: PreTrainedConfig) -> str:
    """A configuration as JSON, without what saving changes."""

    def clean(thing: Any) -> Any:
        if isinstance(thing, dict):
            return {
                str(key): clean(item)
                for key, item in sorted(thing.items(), key=str)
                if key not in _INCIDENTAL and not str(key).startswith("_")
            }
        return [clean(item) for item in thing] if isinstance(thing, list | tuple) else thing

    return json.dumps(clean(config.to_dict()), default=str)


def check_kept(network: PreTrainedModel, attachments: tuple[Attachment, ...] = ()) -> None:
    """Raise ModelError, naming the module, where a network computes with something that neither
    its configuration nor its weights would bring back, and where other attachments act than these.
    """
    known = find_class(network.config)._model_mapping
    if type(network.config) in known and type(network) is not known[type(network.config)]:
        right = known[type(network.config)].__name__
        raise ModelError(f"the network is a {type(network).__name__}, not a {right}; {_KEPT}")
    expected = _find_expected(network, attachments)
    for name, module in network.named_modules():
        where = f"layer {name}" if name else "the network"
        if extras := _describe_extras(module):
            raise ModelError(f"{where} has {extras[0]}, which is not stored with the model")
        wanted = expected.modules.get(name)
        kind = type(module).__qualname__
        right = "" if wanted is None else wanted[0].__qualname__
        if wanted is None:
            raise ModelError(f"{where}, a {kind}, is not of the model's configuration; {_KEPT}")
        if type(module) is not wanted[0]:
            if kind == right:
                kind, right = (
                    f"{c.__module__}.{c.__qualname__}" for c in (type(module), wanted[0])
                )
            raise ModelError(f"{where} is a {kind} in place of a {right}; {_KEPT}")
        if (acting := describe_attached(module)) != expected.acting[name]:
            found, declared = map(_list_acting, (acting, expected.acting[name]))
            raise ModelError(
                f"{where}: what acts on it while it runs is {found}; by the attachments that the "
                f"model declares it would be {declared}; only `Model.attach` gives a model any"
            )
        for key, value in wanted[1].items():
            given = vars(module).get(key)
            if given != value and not _are_nan(given, value):
                raise ModelError(f"{where}: its {key} is {given!r}, not {value!r}; {_KEPT}")
    tensors = {name: tuple(tensor.shape) for name, tensor in _list_tensors(network)}
    if gone := sorted(expected.modules.keys() - dict(network.named_modules()).keys()):
        raise ModelError(f"layer {gone[0]} of the model's configuration is gone; {_KEPT}")
    for name in sorted(expected.tensors.keys() ^ tensors.keys()):
        what = "is gone" if name in expected.tensors else "is not of the model's configuration"
        raise ModelError(f"tensor {name} {what}; {_KEPT}")
    for name, shape in tensors.items():
        if shape != expected.tensors[name]:
            raise ModelError(
                f"tensor {name} has shape {shape}, not {expected.tensors[name]}; {_KEPT}"
            )


_KEPT = "a model is stored as its configuration and its weights, and would come back without that"


def check_rounded(model: Holder) -> None:
    """Raise ModelError, naming a layer, where weights have NaN or Inf, and where a layer has more
    levels in a group than its record says. Latent weights are only looked at for NaN and Inf."""
    for name, parameter in model.network.named_parameters():
        if not parameter.is_meta and not _is_finite(parameter):
            raise ModelError(f"{name} has NaN or Inf")
    for name, own in _list_parameters(model):
        if not _is_finite(own):
            raise ModelError(f"{name} has NaN or Inf")
    if model.latent:
        return
    matrices = survey(model.network).matrices | find_ends(model.network)
    for name, record in model.quantized.items():
        if name not in matrices:
            raise ModelError(f"`quantized` has a layer {name!r}, which the model has not")
        if record.bits_per_weight < record.bits:
            raise ModelError(
                f"layer {name}: {record.bits_per_weight:g} bits a weight, scales counted, is less "
                f"than its {record.bits} bits"
            )
        weight = matrices[name].weight
        stored = sum(8 * each.nbytes for each in model.format_parameters.get(name, {}).values())
        if record.bits_per_weight < record.bits + stored / weight.numel() - 1e-6:
            raise ModelError(
                f"layer {name}: parameters of its format take {stored / weight.numel():g} bits a "
                f"weight, for which its {record.bits_per_weight:g} bits have no room"
            )
        for part in weight if weight.dim() == 3 else (weight,):
            _check_levels(name, part.detach(), record)


def _list_parameters(model: Holder) -> Iterator[tuple[str, Tensor]]:
    """The trained parameters of formats, as they are called in messages."""
    for layer, own in model.format_parameters.items():
        for name, tensor in own.items():
            yield f"parameter {name} of layer {layer}", tensor


def _check_levels(name: str, weight: Tensor, record: Quantized) -> None:
    """Raise ModelError where a group of (O, I) has more than 2^bits values."""
    most, width = record.levels, record.group_size or weight.shape[-1]
    if record.bits >= 16 or most >= width:
        return
    full = weight.shape[-1] // width * width
    for part in (weight[:, :full].reshape(-1, width), weight[:, full:]):
        for groups in part.split(max(1, 2**24 // max(part.shape[-1], 1))):
            if groups.numel() and (count := _count_levels(groups, most)) > most:
                size = f"a group of {record.group_size}" if record.group_size else "a row"
                raise ModelError(
                    f"layer {name}: {size} has {count} values or more, where {record.bits} bits "
                    f"hold {most}"
                )


def _count_levels(groups: Tensor, most: int) -> int:
    """The most different values in a row of (n, g); no further than one above `most`."""
    if most > 16:
        ordered = groups.sort(-1).values
        return int((ordered.diff(dim=-1) != 0).sum(-1).max()) + 1
    # Level by level: of few levels it is several times faster than sorting.
    rest = groups.float()
    for count in range(most + 1):
        lowest = rest.amin(-1, keepdim=True)
        if bool(lowest.isinf().all()):
            return count
        rest = rest.masked_fill(rest == lowest, math.inf)
    return most + 1


def check_applied(given: Holder, result: object, changes: Sequence[str]) -> None:
    """Raise ModelError where what a method's `apply` made of a model is not what it should be.

    The same parameters, in shape and dtype; a matrix of the blocks that changed is recorded in
    `quantized`; other parameters changed only where their name fits one of the patterns `changes`.
    """
    if not hasattr(result, "network") or not hasattr(result, "quantized"):
        raise ModelError(f"`apply` should return a Model, and returned {_describe(result)}")
    made = cast(Holder, result)
    if made.latent:
        raise ModelError("`apply` returned latent weights, which are not evaluated: round them")
    if lost := [each for each in given.attachments if each not in made.attachments]:
        raise ModelError(
            f"`apply` lost the attachment {lost[0].name!r} of the model that it was given; make "
            "the result by `model.fork()`"
        )
    before, after = (dict(each.network.named_parameters()) for each in (given, made))
    if other := sorted(before.keys() ^ after.keys()):
        what = "lacks" if other[0] in before else "has a new"
        raise ModelError(f"the model that `apply` returned {what} parameter {other[0]}")
    layers = {each.parameter_name: name for name, each in survey(given.network).matrices.items()}
    for name, old in before.items():
        new = after[name]
        if (new.shape, new.dtype) != (old.shape, old.dtype):
            raise ModelError(
                f"{name} was {tuple(old.shape)} {old.dtype}; `apply` returned it as "
                f"{tuple(new.shape)} {new.dtype}"
            )
        if new is old or bool((new.detach().to(old.device) == old).all()):
            continue
        if name in layers and layers[name] not in made.quantized:
            raise ModelError(f"`apply` changed layer {layers[name]}, which `quantized` lacks")
        if name not in layers and not any(fnmatch(name, pattern) for pattern in changes):
            raise ModelError(
                f"`apply` changed {name}, which is no matrix of the blocks; a method that does so "
                f"declares it on its class: changes = ({name!r},)"
            )


def _describe(thing: object) -> str:
    return "None" if thing is None else f"a {type(thing).__name__}"


class _Expected:
    """What a configuration says of a network: classes and plain attributes of its modules by name,
    shapes of its tensors; and what of attachments acts on each module."""

    def __init__(self, network: PreTrainedModel, attachments: tuple[Attachment, ...]) -> None:
        for each in attachments:
            each.attach(network)
        self.acting = {name: describe_attached(each) for name, each in network.named_modules()}
        self.modules = {
            name: (type(module), dict(_list_attributes(module)))
            for name, module in network.named_modules()
        }
        self.tensors = {name: tuple(tensor.shape) for name, tensor in _list_tensors(network)}


_Key = tuple[type, str, tuple[Attachment, ...]]
_expected: dict[_Key, _Expected] = {}  # by class, configuration and attachments


def _find_expected(network: PreTrainedModel, attachments: tuple[Attachment, ...]) -> _Expected:
    key = type(network), describe_config(network.config), attachments
    if key not in _expected:
        config = copy.deepcopy(network.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # of a file that was unpacked
        with torch.device("meta"):
            _expected[key] = _Expected(type(network)(config), attachments)
    return _expected[key]


def _list_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for key, value in vars(module).items():
        if not key.startswith("_") and key not in _RUNNING and isinstance(value, _PLAIN):
            yield key, value


def _list_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters(remove_duplicate=False)
    yield from network.named_buffers(remove_duplicate=False)


def _describe_extras(module: nn.Module) -> list[str]:
    """What was hung onto a module and runs with it, in words."""
    extras = [
        words
        for name, words in _HOOKS.items()
        if not all(map(is_of_attachment, getattr(module, name, {}).values()))
    ]
    for key, own in vars(module).items():  # an instance's own before its class's
        if (
            callable(own)
            and callable(getattr(type(module), key, None))
            and not is_of_attachment(own)
        ):
            extras.append(f"a `{key}` of its own")
    if "parametrizations" in module._modules:
        extras.append("a parametrization")
    return extras


def _list_acting(acting: Sequence[tuple[str, Attachment | None]]) -> str:
    return ", ".join(f"{each} ({place})" if each else place for place, each in acting) or "nothing"


def _is_finite(tensor: Tensor) -> bool:
    return all(bool(part.isfinite().all()) for part in tensor.detach().reshape(-1).split(2**24))


def _are_nan(given: object, value: object) -> bool:
    return given != given and value != value
