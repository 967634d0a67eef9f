"""Tried before a model is read: whether its blocks can be walked, and AWQ's scales folded into it.

Not here: the twins on which that is tried (`harness.models.rehearsal`).
"""

from __future__ import annotations

from functools import cache

from harness.models import Pretrained, find_pretrained, meta_network
from harness.models.rehearsal import find_twin, rehearse
from methods.quantization.awq import ScaleSearch, find_foldable
from methods.quantization.folding import fold_rotation
from methods.quantization.formats import Format
from methods.quantization.inits import ClipSearch
from methods.quantization.omniquant import OmniQuant
from methods.quantization.rotation import Rotated, make_rotation
from methods.quantization.rounding import Round, RoundBlocks, find_rounded
from methods.quantization.static_activations import InputRanges
from methods.quantization.walking import check_walk


@rehearse.register
def of_walk(stage: ClipSearch | InputRanges) -> None:
    """Raises ModelError where the model's blocks cannot be run one after the other."""
    if (base := find_pretrained(stage.model)) is not None:
        _check_walkable(base)


@rehearse.register
def of_rounding(stage: Round) -> None:
    """Raises FormatError where a format that differs by layer names a layer that is not there."""
    if (base := find_pretrained(stage.model)) is not None:
        _check_layers(base, stage.format)


@rehearse.register
def of_block_rounding(stage: RoundBlocks) -> None:
    """Raises FormatError as `of_rounding`, and ModelError where the model's blocks cannot be run
    one after the other, or scales that the rounding learns cannot be folded."""
    if (base := find_pretrained(stage.model)) is not None:
        _check_layers(base, stage.format)
        _check_walkable(base)
        if isinstance(stage.rounding, OmniQuant) and stage.rounding.equivalent:
            _check_foldable(base, stage.rounding.name)


@rehearse.register
def of_scale_search(stage: ScaleSearch) -> None:
    """Raises ModelError, naming the class, where `find_foldable` does."""
    if (base := find_pretrained(stage.model)) is not None:
        _check_walkable(base)
        _check_foldable(base, "awq")


@rehearse.register
def of_rotation(stage: Rotated) -> None:
    """Raises ModelError where a rotation cannot be folded into the model."""
    if (base := find_pretrained(stage.model)) is not None:
        _check_rotatable(base)


@cache
def _check_layers(base: Pretrained, format: Format) -> None:
    if format.kinds() == (format,):
        return  # one of all layers: `Recipe.check` has seen them
    network = meta_network(base.source, base.trust_remote_code, base.digest)
    for name, (matrix, own) in find_rounded(network, format).items():
        own.check(name, matrix.in_features)


@cache
def _check_rotatable(base: Pretrained) -> None:
    if (twin := find_twin(base)) is not None:
        width = twin.network.get_input_embeddings().weight.shape[1]
        fold_rotation(twin, make_rotation(width, 0))


@cache
def _check_walkable(base: Pretrained) -> None:
    if (twin := find_twin(base)) is not None:
        check_walk(twin)


@cache
def _check_foldable(base: Pretrained, method: str) -> None:
    if (twin := find_twin(base)) is not None:
        find_foldable(twin, method)
