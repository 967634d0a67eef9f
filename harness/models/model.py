"""Models: how they are read, held, forked and kept.

A `Model` is a value and is never changed: a stage that needs a different one works on `fork()`,
which shares every tensor until one is replaced. In this file: `Model`, `pretrained` (a grid's name of
a model -> stage), the linear layers that quantisation is about. Not here: where a model lies that a
grid names (`sources`), anything that quantises (`methods`), or evaluates (`evaluate`).
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from harness.core.errors import ModelError, first_line, nearest
from harness.core.stage import Input, Stage, closure, incidental
from harness.models import sources

_FLASH = "flash_attention_2"
ATTENTION = ("sdpa", "eager", _FLASH)
PROCESS_GIB = 4.0  # of the host, without a model: libraries, a GPU's context, texts
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device() -> torch.device:
    """Where this process computes: BITGRID_DEVICE, else CUDA where there is one, else the CPU.

    Raises ModelError where that device is not there.
    """
    named = os.environ.get("BITGRID_DEVICE")
    return _usable(named or ("cuda" if torch.cuda.is_available() else "cpu"))


@cache
def _usable(name: str) -> torch.device:
    # Read once, as cuBLAS starts: without it CUDA may not give the same bits twice.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        there = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        raise ModelError(
            f"device {name!r} is not there ({first_line(error)}); choices: {', '.join(there)}"
        ) from error


@dataclass(frozen=True)
class Quantized:
    """What a layer's weights were rounded to; `bits_per_weight` counts scales and zero points."""

    format: str
    bits: int
    group_size: int  # 0: one group a row (per channel)
    bits_per_weight: float


@dataclass
class Model:
    """A causal language model with its tokenizer, and what was done to its weights.

    `latent` marks weights that training moves but that no format can represent: such a model is
    never evaluated (rule 8). Trained or loaded it lies on the host, since only rounding reads it.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    quantized: dict[str, Quantized] = field(default_factory=dict)
    latent: bool = False

    def fork(self, **changes: Any) -> Model:
        """The same model with a module tree of its own; tensors are shared until replaced."""
        shared: dict[int, Any] = {}
        for tensor in [*self.network.parameters(), *self.network.buffers()]:
            shared[id(tensor)] = tensor
        network = copy.deepcopy(self.network, shared)
        forked = dataclasses.replace(self, network=network, quantized=dict(self.quantized))
        return dataclasses.replace(forked, **changes)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def context(self) -> int:
        """The longest sequence the model was made for, in tokens."""
        return int(self.network.config.max_position_embeddings)

    def bits_per_weight(self) -> float:
        """Mean over the weights of the blocks' linear layers; scales and zero points counted."""
        bits = weights = 0.0
        for name, linear in linears(self.network).items():
            n = linear.weight.numel()
            done = self.quantized.get(name)
            per_weight = done.bits_per_weight if done else 8.0 * linear.weight.element_size()
            bits, weights = bits + n * per_weight, weights + n
        return bits / weights

    def save(self, folder: Path) -> dict[str, Any]:
        """Weights (safetensors), configuration and tokenizer into `folder`."""
        self.network.save_pretrained(folder, max_shard_size="4GB")
        self.tokenizer.save_pretrained(folder)
        return {
            "latent": self.latent,
            "own_code": type(self.network).__module__.startswith("transformers_modules."),
            "attention": self.network.config._attn_implementation,
            "dtype": str(self.network.dtype).removeprefix("torch."),
            "quantized": {name: dataclasses.asdict(q) for name, q in self.quantized.items()},
        }

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any]) -> Model:
        latent = bool(facts["latent"])
        model = read_model(
            str(folder),
            DTYPES[facts["dtype"]],
            latent,
            attn_implementation=facts.get("attention"),
            trust_remote_code=facts.get("own_code"),
        )
        model.latent = latent
        model.quantized = {name: Quantized(**q) for name, q in facts["quantized"].items()}
        return model


def linears(network: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers inside the decoder blocks, by name: what is quantised.

    Embeddings and the head lie outside the blocks and stay in 16 bits, as in every method compared.
    """
    found = {
        f"{prefix}.{name}": module
        for prefix, block in blocks(network).items()
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }
    if not found:
        raise ModelError(f"{type(network).__name__}: no linear layer found inside decoder blocks")
    return found


def blocks(network: PreTrainedModel) -> dict[str, nn.Module]:
    """The decoder blocks, by name, in order: the outermost list of modules of one class."""
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len({type(child) for child in module}) == 1:
            return {f"{name}.{i}": child for i, child in enumerate(module)}
    raise ModelError(f"{type(network).__name__}: no list of decoder blocks found")


def replace_weight(linear: nn.Linear, weight: Tensor) -> None:
    """Give `linear` a new weight (O, I), leaving the old tensor, which others share, alone."""
    linear.weight = nn.Parameter(weight.to(linear.weight.dtype), requires_grad=False)


@dataclass(frozen=True)
class Pretrained(Stage[Model]):
    """A full-precision model as published. `digest` pins the content: commit, or hash of files."""

    stored: ClassVar[bool] = False
    source: str
    digest: str
    dtype: str = "auto"
    trust_remote_code: bool = False
    attention: str | None = incidental(None)  # sdpa, eager, flash_attention_2; None: the library's
    revision: str = incidental("main")  # of the hub; `digest` is what it stood for

    def preflight(self) -> None:
        if self.attention != _FLASH:
            return
        if not any(map(find_spec, ("flash_attn", "kernels"))):
            raise ModelError(f"attention {_FLASH!r} needs the package flash-attn; pip installs it")
        if device().type == "cpu":
            raise ModelError(f"attention {_FLASH!r} needs a GPU, and this machine computes on cpu")

    def run(self, work: Path) -> Model:
        return read_model(
            **sources.place(self.source, self.digest),
            dtype=DTYPES.get(self.dtype, "auto"),
            trust_remote_code=self.trust_remote_code,
            attn_implementation=self.attention,
        )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer alone, for what can be known of a model before it is loaded."""
        return sources.tokenizer(self.source, self.digest, self.trust_remote_code)

    def context(self) -> int | None:
        """As `Model.context`; None where the configuration does not say."""
        config = sources.config(self.source, self.digest, self.trust_remote_code)
        return getattr(config, "max_position_embeddings", None)


@cache
def pretrained(
    source: str,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    attention: str | None = None,
) -> Pretrained:
    """The stage of a model named as in a grid: see `sources`.

    Raises ModelError where there is no such model and where a local one is not whole.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown; choices: auto, {', '.join(DTYPES)}")
    if attention is not None and attention not in ATTENTION:
        raise ModelError(f"attention {attention!r} is unknown; {nearest(attention, ATTENTION)}")
    name, digest, revision = sources.pin(source)
    folder = sources.model_folder(name)
    if folder is not None and folder.is_dir():
        # Headers alone are read. A hub's or a packed model is not fetched or unpacked to look at it.
        _network(str(folder), "auto", device_map="meta", trust_remote_code=trust_remote_code)
        sources.tokenizer(name, digest, trust_remote_code)
    return Pretrained(name, digest, dtype, trust_remote_code, attention, revision)


def check_length(base: Stage[Model], length: int, setting: str) -> None:
    """Raise ModelError where sequences are longer than a published model's context."""
    context = base.context() if isinstance(base, Pretrained) else None
    if context is not None and length > context:
        raise ModelError(f"{setting}: {length} tokens, but the model's context is {context}")


def another(base: Stage[Model], source: str) -> Pretrained:
    """The stage of a further model (a larger teacher) for work on `base`, loaded as that is.

    Raises ModelError where the two do not share a vocabulary: logits could not be compared.
    """
    if not isinstance(base, Pretrained):
        raise ModelError(f"teacher {source!r}: the model that it teaches is not a published one")
    found = pretrained(source, base.dtype, base.trust_remote_code, base.attention)
    ours, theirs = (_vocabulary(s.source, s.digest, s.trust_remote_code) for s in (base, found))
    if ours != theirs:
        words = {token for token, _ in ours ^ theirs}
        raise ModelError(
            f"teacher {source!r} and model {base.source!r} differ in vocabulary: {len(theirs)} and "
            f"{len(ours)} tokens, {len(words)} of them not alike (for instance {min(words)!r})"
        )
    return found


@cache
def _vocabulary(source: str, digest: str, trust: bool) -> frozenset[tuple[str, int]]:
    return frozenset(sources.tokenizer(source, digest, trust).get_vocab().items())


@cache
def layer_shapes(source: str, trust_remote_code: bool = False) -> dict[str, tuple[int, int]]:
    """(O, I) of each linear layer that quantisation is about, from the configuration alone."""
    network = meta_network(source, trust_remote_code)
    return {n: (m.out_features, m.in_features) for n, m in linears(network).items()}


def meta_network(
    source: str, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedModel:
    """The network of a model named as in a grid, without weights: parameters on `meta`."""
    config = copy.deepcopy(sources.config(source, revision, trust_remote_code))
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # a GGUF file's; its weights are unpacked on loading
    with sources.explained(source), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def pretrained_of(model: Input[Any]) -> Pretrained:
    """The published model that a graph begins with."""
    if (found := _origin(model)) is None:
        raise ModelError(f"{model}: no published model among its inputs")
    return found


def _origin(model: Input[Any]) -> Pretrained | None:
    above = closure([model]) if isinstance(model, Stage) else ()
    return next((stage for stage in above if isinstance(stage, Pretrained)), None)


def weights_gib(model: Input[Any], dtype: torch.dtype | None = None) -> float:
    """GiB of a model's weights, in the dtype in which it is loaded or in another one; 0 where it
    does not begin with a published one."""
    base = _origin(model)
    return 0.0 if base is None else _weights_bytes(base, dtype) / 2**30


@cache
def _weights_bytes(base: Pretrained, dtype: torch.dtype | None) -> int:
    network = meta_network(base.source, base.trust_remote_code, base.digest)
    asked = DTYPES.get(base.dtype)
    return sum(p.numel() * (dtype or asked or p.dtype).itemsize for p in network.parameters())


def host_gib(model: Input[Any], beside: float = PROCESS_GIB) -> float:
    """Of the host's memory, what it takes to load a model, with `beside` for everything else.

    Files in the dtype asked for are mapped and take nothing that could not be given back; others
    are there once in that dtype, until they are on the device.
    """
    return math.ceil(beside + weights_gib(model))


def read_model(
    where: str, dtype: torch.dtype | str, on_host: bool = False, **options: Any
) -> Model:
    """Load weights and tokenizer from a folder or the hub onto `device()`, for inference.

    `on_host`: the weights stay there, and where the files have them in `dtype` they take no memory:
    they are mapped. So it is too where several processes share a model.
    `options` go to transformers: revision, gguf_file, trust_remote_code, attn_implementation.
    """
    given = {name: option for name, option in options.items() if option}
    # Unset, the library would ask on standard input whether to run code that comes with a model.
    options = {"trust_remote_code": False, **given}
    network = _network(where, dtype, **options)
    options.pop("attn_implementation", None)
    tokenizer = sources.read_tokenizer(where, where, **options)
    network.requires_grad_(False)
    stays = on_host or torch.distributed.is_initialized()  # then each takes its part of it
    place = torch.device("cpu") if stays else device()
    return Model(network.to(place).eval(), tokenizer)


def is_mapped(network: PreTrainedModel) -> bool:
    """Whether all weights are pages of files, so that whoever reads them again shares the memory.

    False too where the system does not tell.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return False
    # Address range, rights, offset, device, inode (0: no file), path.
    spans = [fields[0].split("-") for line in lines if (fields := line.split())[4] != "0"]
    files = [range(int(start, 16), int(end, 16)) for start, end in spans]
    return all(any(p.data_ptr() in pages for pages in files) for p in network.parameters())


def _network(where: str, dtype: torch.dtype | str, **options: Any) -> PreTrainedModel:
    """The weights; with device_map="meta" none, but every check of them that needs no content.

    Raises ModelError where one is missing or of another shape: the library would make one up.
    """
    if "gguf_file" in options:
        # Else the library keeps the file's blocks packed, and there are no weights to round.
        options["quantization_config"] = GgufConfig(dequantize=True)
    named = "/".join(part for part in (where, options.get("gguf_file")) if part)
    attention = options.get("attn_implementation")
    asked = f"with attention {attention!r}: " if attention else ""
    with sources.explained(named, f"it cannot be loaded: {asked}"):
        network, found = AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    for name, has, wants in sorted(found["mismatched_keys"]):
        raise ModelError(
            f"model {named!r}: weight {name} has shape {tuple(has)}, its configuration says "
            f"{tuple(wants)}"
        )
    if missing := sorted(found["missing_keys"]):
        number = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"model {named!r}: weight {missing[0]}{number} is missing from its files")
    return network
