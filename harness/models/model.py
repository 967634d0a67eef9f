"""`Model`: a network with its tokenizer, and how it is read, forked and kept.

A `Model` is a value and is never changed: a stage that needs a different one works on `fork()`,
which shares every tensor until one is replaced. Not here: where a model lies that a grid names
(`sources`), its stage (`stage`), the layers that are quantised (`layers`).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from harness.core.errors import ModelError
from harness.core.fingerprint import Fingerprint
from harness.core.stage import identify, read_component
from harness.models.attachments import Attachment
from harness.models.devices import device, is_kept_on_host
from harness.models.integrity import check_kept, check_rounded, fingerprint_model
from harness.models.layers import Quantized, find_ends, survey
from harness.models.parts import count_vocabulary, find_blocks, read_context
from harness.models.reading import explained, find_class, read_tokenizer
from harness.models.sizes import bounded

_PARAMETERS = "format_parameters.safetensors"  # by layer and name, a colon between
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Model:
    """A causal language model with its tokenizer, what was done to its weights, and what it does
    beside as it runs.

    `latent` marks weights that training moves but that no format can represent: such a model is
    never evaluated. Trained or loaded it lies on the host, since only rounding reads it.
    `format_parameters`: of each layer the trained parameters of its format by name, rows first, on
    the host: as they are stored, of latent weights in float32.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    quantized: dict[str, Quantized] = field(default_factory=dict)
    latent: bool = False
    attachments: tuple[Attachment, ...] = ()
    format_parameters: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def fork(self, **changes: Any) -> Model:
        """The same model with a module tree of its own; tensors are shared until replaced."""
        shared: dict[int, Any] = {}
        for tensor in [*self.network.parameters(), *self.network.buffers()]:
            shared[id(tensor)] = tensor
        network = copy.deepcopy(self.network, shared)
        forked = dataclasses.replace(self, network=network, quantized=dict(self.quantized))
        forked.format_parameters = dict(self.format_parameters)
        return dataclasses.replace(forked, **changes)

    def attach(self, *attachments: Attachment) -> Model:
        """A fork that does this too while it runs, after what it does already.

        Raises ModelError where an attachment cannot act on such a network.
        """
        result = self.fork(attachments=(*self.attachments, *attachments))
        for each in attachments:
            each.fold(result.network)
            each.attach(result.network)
        return result

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def context(self) -> int | None:
        """The longest sequence the model was made for, in tokens; None where there is no limit."""
        return read_context(self.network.config)

    @property
    def vocabulary(self) -> int:
        """The tokens that the model knows, which may be more than its tokenizer has."""
        return count_vocabulary(self.network)

    def bits_per_weight(self) -> float:
        """Mean over all weights of the blocks, routers too; scales and zero points counted."""
        weights = self._weights()
        bits = math.fsum(
            tensor.numel() * (done.bits_per_weight if done else 8.0 * tensor.element_size())
            for tensor, done in weights
        )
        return bits / sum(tensor.numel() for tensor, _ in weights)

    def count_bytes(self) -> int:
        """What all its parameters take: weights of the blocks as `bits_per_weight` counts them,
        embeddings and head too where they were rounded, all else as it is held. Tied ones count
        once; what attachments hold does not."""
        ends = find_ends(self.network)
        rounded = [(m.stored, self.quantized.get(name)) for name, m in ends.items()]
        bits = {id(p): 8.0 * p.element_size() * p.numel() for p in self.network.parameters()}
        for tensor, done in [*self._weights(), *rounded]:
            if done is not None:
                bits[id(tensor)] = done.bits_per_weight * tensor.numel()
        return math.ceil(math.fsum(bits.values()) / 8)

    def nominal_bits(self) -> float:
        """Bits of a code; where matrices of the blocks differ, the mean over their weights, in
        hundredths, with 16 for those that were not rounded."""
        found = survey(self.network).matrices
        bits = {n: self.quantized[n].bits if n in self.quantized else 16 for n in found}
        if len(set(bits.values())) == 1:
            return next(iter(bits.values()))
        sizes = {name: matrix.stored.numel() for name, matrix in found.items()}
        return round(sum(sizes[n] * bits[n] for n in found) / sum(sizes.values()), 2)

    def rounded_share(self) -> float:
        """Of all weights of the blocks, the share that was rounded."""
        weights = self._weights()
        rounded = sum(tensor.numel() for tensor, done in weights if done)
        return rounded / sum(tensor.numel() for tensor, _ in weights)

    def list_kept(self) -> list[str]:
        """The weights of the blocks that were not rounded, each kind once: `mlp.gate`."""
        found = survey(self.network)
        left = [name for name in found.matrices if name not in self.quantized]
        left += [name.removesuffix(".weight") for name in found.kept]
        kinds = [name.removeprefix(f"{find_blocks(self.network)[0]}.") for name in left]
        return sorted({".".join(p for p in kind.split(".") if not p.isdigit()) for kind in kinds})

    def describe_ends(self) -> str | None:
        """Embeddings and head that were rounded, which no other figure here counts; None where they
        were not."""
        ends = find_ends(self.network)
        done = {name: self.quantized[name] for name in ends if name in self.quantized}
        if not done:
            return None
        # Tied ones are one parameter.
        sizes = {id(ends[name].stored): (ends[name].stored.numel(), done[name]) for name in done}
        parts = [
            (t.numel(), d.bits_per_weight if d else 8.0 * t.element_size())
            for t, d in self._weights()
        ]
        parts += [(count, each.bits_per_weight) for count, each in sizes.values()]
        mean = math.fsum(count * bits for count, bits in parts) / sum(count for count, _ in parts)
        each = [
            f"{name} to {one.format} of {one.bits} bits, {one.bits_per_weight:.4g} a weight"
            for name, one in done.items()
        ]
        tied = " (one parameter)" if len(sizes) < len(done) else ""
        return f"{'; '.join(each)}{tied}; {mean:.4g} a weight with the blocks"

    def _weights(self) -> list[tuple[Tensor, Quantized | None]]:
        """The weights of the blocks, and what they were rounded to."""
        found = survey(self.network)
        rounded = [(m.stored, self.quantized.get(name)) for name, m in found.matrices.items()]
        return rounded + [(tensor, None) for tensor in found.kept.values()]

    def fingerprint(self) -> Fingerprint:
        """What decides what it computes, part by part."""
        return fingerprint_model(self)

    def check(self) -> None:
        """Raise ModelError where it is not what it says, or would not come back from its files."""
        check_kept(self.network, self.attachments)
        check_rounded(self)

    def save(self, folder: Path) -> dict[str, Any]:
        """Weights (safetensors), configuration, tokenizer, parameters of formats into `folder`."""
        self.network.save_pretrained(folder, max_shard_size="4GB")
        self.tokenizer.save_pretrained(folder)
        parameters = {
            f"{layer}:{name}": tensor.clone()  # tied layers share theirs
            for layer, own in self.format_parameters.items()
            for name, tensor in own.items()
        }
        if parameters:
            save_file(parameters, folder / _PARAMETERS)
        return {
            "latent": self.latent,
            "own_code": type(self.network).__module__.startswith("transformers_modules."),
            "attention": self.network.config._attn_implementation,
            "dtype": str(self.network.dtype).removeprefix("torch."),
            "quantized": {name: dataclasses.asdict(q) for name, q in self.quantized.items()},
            "attachments": identify(self.attachments, whole=True),
        }

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any], on_host: bool = False) -> Model:
        """`on_host`: mapped, so that it takes no memory, as a latent one is in any case."""
        latent = bool(facts["latent"])
        model = read_model(
            str(folder),
            DTYPES[facts["dtype"]],
            latent or on_host,
            attn_implementation=facts.get("attention"),
            trust_remote_code=facts.get("own_code"),
        )
        model.latent = latent
        model.quantized = {name: Quantized(**q) for name, q in facts["quantized"].items()}
        # Values that were kept before there were attachments have none.
        model.attachments = tuple(map(read_component, facts.get("attachments", ())))
        for each in model.attachments:
            each.attach(model.network)
        if (folder / _PARAMETERS).exists():
            for name, tensor in load_file(folder / _PARAMETERS).items():
                layer, _, own = name.rpartition(":")
                model.format_parameters.setdefault(layer, {})[own] = tensor
        return model


def read_model(
    where: str, dtype: torch.dtype | str, on_host: bool = False, **options: Any
) -> Model:
    """Load weights and tokenizer from a folder or the hub onto `device()`, for inference.

    `on_host`: the weights stay there, and where the files have them in `dtype` they take no memory:
    they are mapped. So it is too where several processes share a model.
    `options` go to transformers: revision, gguf_file, trust_remote_code, attn_implementation.
    """
    chosen = {name: option for name, option in options.items() if option}
    # Unset, the library would ask on standard input whether to run code that comes with a model.
    options = {"trust_remote_code": False, **chosen}
    network = _network(where, dtype, **options)
    options.pop("attn_implementation", None)
    tokenizer = read_tokenizer(where, where, **options)
    network.requires_grad_(False)
    # Where several processes share it, each takes its part of it.
    stays = on_host or is_kept_on_host() or torch.distributed.is_initialized()
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


def check_loadable(folder: str, trust_remote_code: bool) -> None:
    """Raise ModelError where a folder's weights do not fit its configuration, by their headers."""
    with bounded(folder):
        _network(folder, "auto", device_map="meta", trust_remote_code=trust_remote_code)


def _network(where: str, dtype: torch.dtype | str, **options: Any) -> PreTrainedModel:
    """The weights; with device_map="meta" none, but every check of them that needs no content.

    Raises ModelError where one is missing or of another shape: the library would make one up.
    """
    if "gguf_file" in options:
        # Else the library keeps the file's blocks packed, and there are no weights to round.
        options["quantization_config"] = GgufConfig(dequantize=True)
    file_name = "/".join(part for part in (where, options.get("gguf_file")) if part)
    attention = options.get("attn_implementation")
    asked = f"with attention {attention!r}: " if attention else ""
    with explained(file_name, f"it cannot be loaded: {asked}"):
        known = {"revision", "gguf_file", "trust_remote_code"} & options.keys()
        config = AutoConfig.from_pretrained(where, **{name: options[name] for name in known})
        network, report = find_class(config).from_pretrained(
            where, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    for name, has, wants in sorted(report["mismatched_keys"]):
        raise ModelError(
            f"model {file_name!r}: weight {name} has shape {tuple(has)}, its configuration says "
            f"{tuple(wants)}"
        )
    if missing := sorted(report["missing_keys"]):
        number = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"model {file_name!r}: weight {missing[0]}{number} is missing from its files"
        )
    if hasattr(network.config, "rescale_every"):
        # RWKV would halve its weights in place as it is first run, against overflow in float16.
        network.config.rescale_every = 0
    return network
