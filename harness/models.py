"""Models: where they come from, how they are held, forked and kept.

A `Model` is a value and is never changed: a stage that needs a different one works on `fork()`,
which shares every tensor until one is replaced. In this file: `Model`, `pretrained` (hub id,
local folder, GGUF file, `smollm2-135m` or `testbed` -> stage), the linear layers that quantisation is about. Not here: anything
that quantises (`methods`), or evaluates (`evaluate`).
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from harness import hub, smollm2
from harness.errors import ModelError, nearest
from harness.stage import Stage, incidental

_TESTBED = Path(__file__).parent / "testbed"
TESTBED = {"testbed": _TESTBED / "model", "testbed-small": _TESTBED / "model-small"}
ATTENTION = ("sdpa", "eager", "flash_attention_2")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device() -> torch.device:
    """Where this process computes: BITGRID_DEVICE, else CUDA where there is one, else the CPU.

    Raises ModelError where that device is not there.
    """
    named = os.environ.get("BITGRID_DEVICE")
    return _usable(named or ("cuda" if torch.cuda.is_available() else "cpu"))


@cache
def _usable(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        there = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        raise ModelError(
            f"device {name!r} is not there ({_first_line(error)}); choices: {', '.join(there)}"
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
    never evaluated (rule 8).
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
            "attention": self.network.config._attn_implementation,
            "dtype": str(self.network.dtype).removeprefix("torch."),
            "quantized": {name: dataclasses.asdict(q) for name, q in self.quantized.items()},
        }

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any]) -> Model:
        model = read_model(
            str(folder), DTYPES[facts["dtype"]], attn_implementation=facts.get("attention")
        )
        model.latent = bool(facts["latent"])
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

    def run(self, work: Path) -> Model:
        return read_model(
            **_place(self.source, self.digest),
            dtype=DTYPES.get(self.dtype, "auto"),
            trust_remote_code=self.trust_remote_code,
            attn_implementation=self.attention,
        )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer alone, for what can be known of a model before it is loaded."""
        return _tokenizer(self.source, self.digest, self.trust_remote_code)

    def context(self) -> int | None:
        """As `Model.context`; None where the configuration does not say."""
        config = _config(self.source, self.digest, self.trust_remote_code)
        return getattr(config, "max_position_embeddings", None)


@cache
def pretrained(
    source: str,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    attention: str | None = None,
) -> Pretrained:
    """The stage of a model named as in a grid.

    `testbed`, `testbed-small`, `smollm2-135m` (from a package index, no hub), a local folder, a GGUF
    file, `hub/id[@revision]` or `hub/id/file.gguf[@revision]`. Raises ModelError where the folder is
    no model or the hub has no such id.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown; choices: auto, {', '.join(DTYPES)}")
    if attention is not None and attention not in ATTENTION:
        raise ModelError(f"attention {attention!r} is unknown; {nearest(attention, ATTENTION)}")
    revision = "main"
    if source == smollm2.NAME:
        digest = smollm2.DIGEST[:24]
    elif (found := model_folder(source)) is not None:
        digest = _file_digest(found) if found.is_file() else _folder_digest(found)
        source = source if source in TESTBED else str(found.resolve())
    else:
        source, _, named = source.partition("@")
        revision = named or "main"
        digest = _hub_commit("/".join(source.split("/")[:2]), revision)
    return Pretrained(source, digest, dtype, trust_remote_code, attention, revision)


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
    return frozenset(_tokenizer(source, digest, trust).get_vocab().items())


@cache
def _tokenizer(source: str, digest: str, trust: bool) -> PreTrainedTokenizerBase:
    place = _place(source, digest)
    options = {"trust_remote_code": True} if trust else {}
    try:
        return AutoTokenizer.from_pretrained(place.pop("where"), **place, **options)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {source!r}: no tokenizer: {_first_line(error)}") from error


@cache
def _config(source: str, revision: str | None, trust: bool) -> PreTrainedConfig:
    place = _place(source, revision)
    options = {"trust_remote_code": True} if trust else {}
    try:
        return AutoConfig.from_pretrained(place.pop("where"), **place, **options)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {source!r}: {_first_line(error)}") from error


def _place(source: str, revision: str | None = None) -> dict[str, Any]:
    """Where a model named as in a grid lies, as arguments of transformers' `from_pretrained`."""
    if source == smollm2.NAME:
        return {"where": str(smollm2.folder())}
    found = model_folder(source)
    if found is None:
        name, _, named = source.partition("@")
        revision = named or revision or "main"
        *repository, last = name.split("/")
        if len(repository) >= 2:
            file = "/".join([*repository[2:], last])
            return {
                "where": "/".join(repository[:2]),
                "revision": revision,
                "gguf_file": file,
            }
        return {"where": name, "revision": revision}
    if found.is_file():
        return {"where": str(found.parent), "gguf_file": found.name}
    return {"where": str(found)}


@cache
def layer_shapes(source: str, trust_remote_code: bool = False) -> dict[str, tuple[int, int]]:
    """(O, I) of each linear layer that quantisation is about, from the configuration alone."""
    network = meta_network(source, trust_remote_code)
    return {n: (m.out_features, m.in_features) for n, m in linears(network).items()}


def meta_network(source: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The network of a model named as in a grid, without weights: parameters on `meta`."""
    config = copy.deepcopy(_config(source, None, trust_remote_code))
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # a GGUF file's; its weights are unpacked on loading
    trust = {"trust_remote_code": True} if trust_remote_code else {}
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, **trust)
    except (OSError, ValueError) as error:
        raise ModelError(f"model {source!r}: {_first_line(error)}") from error


def model_folder(source: str) -> Path | None:
    """The local folder, or GGUF file, of a model as a grid names it; None for what is not local."""
    if source == smollm2.NAME:
        return None
    found = TESTBED.get(source) or Path(source).expanduser()
    if found.is_file() and found.suffix == ".gguf":
        return found
    if not found.is_dir():
        if source in TESTBED or source.startswith((".", "/", "~")):
            raise ModelError(f"model {source!r}: there is no folder or .gguf file {found}")
        return None
    if not (found / "config.json").is_file():
        raise ModelError(f"model {source!r}: {found} has no config.json")
    return found


def read_model(where: str, dtype: torch.dtype | str, **options: Any) -> Model:
    """Load weights and tokenizer from a folder or the hub onto `device()`, for inference.

    `options` go to transformers: revision, gguf_file, trust_remote_code, attn_implementation.
    """
    options = {name: option for name, option in options.items() if option}
    weights = dict(options)
    if "gguf_file" in options:
        # Else the library keeps the file's blocks packed, and there are no weights to round.
        weights["quantization_config"] = GgufConfig(dequantize=True)
    attention = options.pop("attn_implementation", None)
    try:
        network = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, **weights)
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
    except (OSError, ValueError, ImportError) as error:
        asked = f" with attention {attention!r}" if attention else ""
        raise ModelError(
            f"model {where!r} cannot be loaded{asked}: {_first_line(error)}"
        ) from error
    network.requires_grad_(False)
    # Where several processes share a model, each takes its part of it to its device.
    place = torch.device("cpu") if torch.distributed.is_initialized() else device()
    return Model(network.to(place).eval(), tokenizer)


def model_files(folder: Path) -> Iterator[Path]:
    """The files of a model folder whose content decides what the model computes, or a GGUF file."""
    if folder.is_file():
        return iter([folder])
    suffixes = {".json", ".safetensors", ".model", ".txt", ".py", ".jinja"}
    return (p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix in suffixes)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _folder_digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in model_files(folder):
        total.update(f"{path.name}:{_file_digest(path, 64)}\n".encode())
    return total.hexdigest()[:24]


def _file_digest(path: Path, digits: int = 24) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:digits]


def _hub_commit(name: str, revision: str) -> str:
    """The commit that a hub revision stands for: asked of the hub, or of the local cache offline."""
    from huggingface_hub import HfApi

    cached = hub.cached_commit("models", name, revision)
    try:
        if os.environ.get("HF_HUB_OFFLINE") != "1":
            return str(HfApi().model_info(name, revision=revision).sha)
    except Exception as error:  # the client's own, its transport's, the system's
        if cached is None:
            raise ModelError(
                f"model {name!r} (revision {revision}) is neither a local folder nor reachable on "
                f"the hub: {_first_line(error)}"
            ) from error
    if cached is not None:
        return cached
    raise ModelError(
        f"model {name!r}: not a local folder, and not in the hub's cache while offline; 'bitgrid "
        "prefetch' fetches it where there is a network"
    )
