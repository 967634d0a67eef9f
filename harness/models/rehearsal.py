"""What a stage needs of a model, tried when a grid is read: on a twin of the model, not on it.

    twin = find_twin(base)            # its configuration, random weights; None where none was made
    rehearse_all(stages)              # raises ModelError where one of them could not work

A twin runs the model's code with random weights. It has the first blocks only, as many as have
every kind, and of a large model it is many times narrower and knows few tokens. What follows from a
model's structure shows on it: whether logits are causal, whether scales can be folded, whether a
cache gives what the whole text gives. A model that cannot be shrunk so, and is too large as it is,
is not tried, and may still fail as it runs.
Not here: what any stage tries (a module `rehearsal` beside the stages registers theirs), memory
(`dry_run`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from functools import cache, singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from harness.core.errors import ModelError
from harness.core.stage import Stage
from harness.models import sources
from harness.models.attaching import Attach, find_attachments
from harness.models.attachments import Attachment
from harness.models.model import Model
from harness.models.parts import find_blocks, read_text_config
from harness.models.reading import cause, find_class
from harness.models.sizes import bounded
from harness.models.stage import Pretrained, find_pretrained, meta_network
from harness.models.tensors import replace_parameters

# How a twin is shrunk, tried in turn: so many times narrower, and whether it has fewer blocks.
_TRIES = ((1, True), (16, True), (8, True), (16, False), (1, False))
_WIDTHS = ("size", "dim", "rank", "width", "d_model", "n_embd", "n_inner", "d_state", "d_head")
_NO_WIDTHS = ("vocab", "window", "chunk", "block", "kernel", "patch", "image", "conv", "group")
_VOCABULARY = 1024  # tokens of a twin, at most
_LARGEST = 2**26  # weights of a twin
_CHUNK = 256  # tokens that state spaces of a twin compute at once, at most
_TOKENS = 12  # of its texts


@singledispatch
def rehearse(stage: Stage[Any]) -> None:
    """Raise ModelError where a stage could not work on its model, whatever the weights are."""


def rehearse_all(stages: Iterable[Stage[Any]]) -> None:
    """Rehearse each of the stages. Raises ModelError."""
    threads, verbosity = torch.get_num_threads(), logging.get_verbosity()
    torch.set_num_threads(1)  # twins are small: many threads would only wait for each other
    is_loud = verbosity != logging.ERROR  # setting it takes long where there are many loggers
    if is_loud:
        logging.set_verbosity_error()  # which kernels would be faster is no matter here
    try:
        for stage in stages:
            rehearse(stage)
    finally:
        torch.set_num_threads(threads)
        if is_loud:
            logging.set_verbosity(verbosity)


@rehearse.register
def _of_pretrained(stage: Pretrained) -> None:
    find_twin(stage)


@rehearse.register
def _of_attach(stage: Attach) -> None:
    if (base := find_pretrained(stage)) is not None:
        _check_attached(base, find_attachments(stage))


@cache
def _check_attached(base: Pretrained, attachments: tuple[Attachment, ...]) -> None:
    """Raise ModelError where attachments cannot act on a model: at its full size by its structure,
    and on its twin as it runs."""
    network = meta_network(base.source, base.trust_remote_code, base.digest)
    for each in attachments:
        each.rehearsed(network).attach(network)
    if (twin := find_twin(base)) is not None:
        attached = twin.attach(*(each.rehearsed(twin.network) for each in attachments))
        with torch.no_grad():
            attached.network(input_ids=make_ids(twin), use_cache=False)


@cache
def find_twin(base: Pretrained) -> Model | None:
    """A twin of a model, which runs; None where none could be made.

    Raises ModelError where what a model says of a token depends on those after it, and where the
    library's own code does not run at the model's full size.
    """
    config = sources.config(base.source, base.digest, base.trust_remote_code)
    for narrower, fewer in _TRIES:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                network = _make(config, base.trust_remote_code, narrower, fewer)
                if network is None:
                    continue
                twin = Model(network, base.tokenizer())
                causal = _is_causal(twin)
            except Exception as error:  # of any class: the model's own code runs
                if (narrower, fewer) == _TRIES[-1] and not base.trust_remote_code:
                    why = cause(error, base.source)
                    raise ModelError(f"model {base.source!r} cannot be run: {why}") from error
                continue
        if not causal:
            raise ModelError(
                f"model {base.source!r}: {type(network).__name__} is not a causal language model: "
                "what it says of a token depends on those after it"
            )
        return twin
    return None


def make_ids(twin: Model, rows: int = 1) -> Tensor:
    """Tokens that a twin knows: (rows, 12) int64."""
    last = twin.vocabulary - 1
    ids = torch.arange(rows * _TOKENS).view(rows, _TOKENS) * 7 + 11
    return ids % max(1, last - 16) + min(8, last // 2)


def _is_causal(twin: Model) -> bool:
    """Whether the logits of two texts are alike as far as the texts are."""
    ids = make_ids(twin).repeat(2, 1)
    ids[1, -4:] = ids[0, :4]
    with torch.no_grad():
        one, other = twin.network(input_ids=ids, use_cache=False).logits[:, :-4].float()
    return torch.allclose(one, other, rtol=0, atol=1e-3 * float(one.std()), equal_nan=True)


def _make(
    config: PreTrainedConfig, trust: bool, narrower: int, fewer: bool
) -> PreTrainedModel | None:
    """A network with weights, on the host, float32; None where it would be too large."""
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # a GGUF file's
    if narrower > 1:
        _narrow(config, narrower)
    for part in _list_parts(config):  # texts are padded to it: memory of its square
        for name, value in vars(part).items():
            if name.endswith("chunk_size") and isinstance(value, int) and value > _CHUNK:
                setattr(part, name, _CHUNK)
    with bounded(str(config.name_or_path)), torch.device("meta"):
        network = find_class(config).from_config(config, trust_remote_code=trust).float()
    if fewer:
        _drop_blocks(network)
    if sum(each.numel() for each in (*network.parameters(), *network.buffers())) > _LARGEST:
        return None
    replace_parameters(network, _draw)
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    network.initialize_weights()  # the library's own: buffers, and what has no weights of a matrix
    network.tie_weights()
    for parameter in network.parameters():
        if parameter.dim() == 1:  # ones and zeros would hide what is done with them
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return network.eval()


def _draw(name: str, old: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.randn(old.shape), requires_grad=False)


def _narrow(config: PreTrainedConfig, times: int) -> None:
    """Divide all widths of a configuration, so that they still fit each other."""
    for part in _list_parts(config):
        for name, value in list(vars(part).items()):
            if not isinstance(value, int) or isinstance(value, bool):
                continue
            if "vocab_size" in name:
                setattr(part, name, min(value, _VOCABULARY))
            elif name.endswith("token_id") and value >= _VOCABULARY:
                setattr(part, name, _VOCABULARY - 1)
            elif _counts_experts(name) and value % 8 == 0 and value >= 32:
                setattr(part, name, value // 8)
            elif _is_width(name) and value % times == 0 and value > 2 * times:
                setattr(part, name, value // times)


def _counts_experts(name: str) -> bool:
    return "experts" in name and not any(word in name for word in ("per_tok", "shared", "top"))


def _is_width(name: str) -> bool:
    return any(word in name for word in _WIDTHS) and not any(word in name for word in _NO_WIDTHS)


def _list_parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            yield from _list_parts(part)


def _drop_blocks(network: PreTrainedModel) -> None:
    """Keep as many of the first blocks as have every kind, and one more. Kinds differ in modules,
    shapes, or what the configuration calls them."""
    name, every = find_blocks(network)
    text = read_text_config(network.config)
    labels = getattr(text, "layer_types", None) or [None] * len(every)
    kinds = [(label, _describe(block)) for label, block in zip(labels, every, strict=True)]
    kept = max(kinds.index(kind) for kind in kinds) + 2  # what one writes, the next one reads
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, every[:kept])
    text.num_hidden_layers = min(kept, len(every))


def _describe(block: nn.Module) -> tuple[object, ...]:
    return (
        *((name, type(module)) for name, module in block.named_modules()),
        *((name, tuple(tensor.shape)) for name, tensor in block.named_parameters()),
    )
