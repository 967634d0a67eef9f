"""The stage of a model as published, and what is known of it before its weights are read.

`pretrained` makes the stage of a model named as in a grid. Not here: where such a model lies
(`sources`), how its weights are read (`model`), its memory (`footprint`).
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.core.errors import ModelError, nearest
from harness.core.reads import Read
from harness.core.stage import Input, Stage, closure, incidental
from harness.models import sources
from harness.models.devices import device
from harness.models.layers import matrices
from harness.models.model import DTYPES, Model, check_loadable, is_mapped, read_model
from harness.models.parts import read_context, read_text_config
from harness.models.reading import explained, find_class
from harness.models.registry import Pin
from harness.models.sizes import bounded
from harness.models.staging import staged
from harness.models.storage import Storage

_FLASH = "flash_attention_2"
ATTENTION = ("sdpa", "eager", _FLASH)


@dataclass(frozen=True)
class Pretrained(Stage[Model]):
    """A full-precision model as published. `digest` pins the content: commit, or hash of files."""

    kind: ClassVar[str] = "pretrained"
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

    @property
    def caveat(self) -> str | None:
        """What must be known of every score of the model, in words."""
        told = (
            sources.find_source(self.source).caveat,
            self._tell_storage(),
            self._tell_part(),
        )
        return ". ".join(filter(None, told)) or None

    @property
    def storage(self) -> Storage | None:
        """What its files hold its weights as, else what its configuration says; None: unknown."""
        found = sources.storage(self.source, Pin(self.source, self.digest, self.revision))
        return found or Storage.plain(self._declared_dtype())

    @property
    def weights(self) -> Storage | None:
        """What its weights are once they are read: no more than was published, nor than `dtype`
        holds. None where neither is known before they are read."""
        storage, dtype = self.storage, self._computed_dtype()
        return Storage.plain(dtype) if storage is None else storage.read_as(dtype)

    @property
    def title(self) -> str:
        """What tables call the model itself: see `Storage`."""
        return "Full precision" if (weights := self.weights) is None else weights.title

    def reads(self) -> tuple[Read, ...]:
        return sources.find_source(self.source).reads(Pin(self.source, self.digest, self.revision))

    def is_mapped(self, result: Model) -> bool:
        return is_mapped(result.network)

    def run(self, work: Path) -> Model:
        source = sources.find_source(self.source)
        pin = Pin(self.source, self.digest, self.revision)
        # Code of its own is imported by the name of the folder that it lies in.
        own_code = contextlib.nullcontext(source.place(self.digest))
        with own_code if self.trust_remote_code else staged(source, pin) as place:
            return read_model(
                **place,
                dtype=DTYPES.get(self.dtype, "auto"),
                trust_remote_code=self.trust_remote_code,
                attn_implementation=self.attention,
            )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer alone, for what can be known of a model before it is loaded."""
        return sources.tokenizer(self.source, self.digest, self.trust_remote_code)

    def _declared_dtype(self) -> str | None:
        config = sources.config(self.source, self.digest, self.trust_remote_code)
        dtype = getattr(config, "dtype", None) or getattr(read_text_config(config), "dtype", None)
        return None if dtype is None else str(dtype).removeprefix("torch.")

    def _computed_dtype(self) -> str | None:
        return self.dtype if self.dtype in DTYPES else self._declared_dtype()

    def _tell_storage(self) -> str | None:
        """That it was published in few bits, or in more than it is computed in."""
        storage, dtype = self.storage, self._computed_dtype()
        return None if storage is None else storage.tell(self.source, dtype)

    def _tell_part(self) -> str | None:
        """That it is the language model of something larger."""
        config = sources.config(self.source, self.digest, self.trust_remote_code)
        if read_text_config(config) is config:
            return None
        return f"The language model of {config.model_type}; no other part is used or quantised"

    def context(self) -> int | None:
        """As `Model.context`."""
        return read_context(sources.config(self.source, self.digest, self.trust_remote_code))


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
    origin = sources.find_source(source)
    name, digest, revision = origin.pin(source)
    folder = origin.folder()
    if folder is not None and folder.is_dir():
        # A hub's or a packed model is not fetched or unpacked to look at it.
        sources.config(name, digest, trust_remote_code)  # first: it tells what cannot be loaded
        check_loadable(str(folder), trust_remote_code)
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
    teacher = pretrained(source, base.dtype, base.trust_remote_code, base.attention)
    sources.config(teacher.source, teacher.digest, teacher.trust_remote_code)
    ours, theirs = (_vocabulary(s.source, s.digest, s.trust_remote_code) for s in (base, teacher))
    if ours != theirs:
        unlike = {token for token, _ in ours ^ theirs}
        raise ModelError(
            f"teacher {source!r} and model {base.source!r} differ in vocabulary: {len(theirs)} and "
            f"{len(ours)} tokens, {len(unlike)} of them not alike (for instance {min(unlike)!r})"
        )
    return teacher


@cache
def _vocabulary(source: str, digest: str, trust: bool) -> frozenset[tuple[str, int]]:
    return frozenset(sources.tokenizer(source, digest, trust).get_vocab().items())


@cache
def read_layer_shapes(source: str, trust_remote_code: bool = False) -> dict[str, tuple[int, int]]:
    """(O, I) of each matrix that quantisation is about, from the configuration alone.

    Of experts in one parameter it is that of each. Raises ModelError as `matrices` does.
    """
    network = meta_network(source, trust_remote_code)
    return {n: (m.out_features, m.in_features) for n, m in matrices(network).items()}


def meta_network(
    source: str, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedModel:
    """The network of a model named as in a grid, without weights: parameters on `meta`."""
    config = copy.deepcopy(sources.config(source, revision, trust_remote_code))
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # a GGUF file's; its weights are unpacked on loading
    with explained(source), bounded(source), torch.device("meta"):
        return find_class(config).from_config(config, trust_remote_code=trust_remote_code)


def pretrained_of(model: Input[Any]) -> Pretrained:
    """The published model that a graph begins with. Raises ModelError where there is none."""
    if (base := find_pretrained(model)) is None:
        raise ModelError(f"{model}: no published model among its inputs")
    return base


def find_pretrained(model: Input[Any]) -> Pretrained | None:
    """As `pretrained_of`; None where a graph begins with something else."""
    above = closure([model]) if isinstance(model, Stage) else ()
    return next((stage for stage in above if isinstance(stage, Pretrained)), None)
