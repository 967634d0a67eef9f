"""Pre-trained models: where they lie, how they are read, held, forked and kept.

What authors of methods and of models use is imported from here, which imports torch.
"""

from harness.models.attaching import Attach, build_attached, find_attachments
from harness.models.attachments import Attachment, change_caches, change_inputs
from harness.models.devices import device
from harness.models.finite import are_distributions, find_first_broken, run_finite
from harness.models.footprint import PROCESS_GIB, host_gib, states_gib, weights_gib
from harness.models.integrity import check_applied
from harness.models.layers import Matrix, Quantized, find_ends, matrices, survey
from harness.models.local import FolderModel
from harness.models.model import DTYPES, Model, read_model
from harness.models.parts import (
    blocks,
    carries_states,
    count_vocabulary,
    find_cache_name,
    find_text_model,
    find_trunk,
    read_text_config,
    run_trunk,
)
from harness.models.passes import Pass, list_passes
from harness.models.products import meet_products
from harness.models.registry import ModelSource, Pin, register_model
from harness.models.stage import (
    Pretrained,
    another,
    check_length,
    find_pretrained,
    meta_network,
    pretrained,
    pretrained_of,
    read_layer_shapes,
)

__all__ = [
    "DTYPES",
    "PROCESS_GIB",
    "Attach",
    "Attachment",
    "FolderModel",
    "Matrix",
    "Model",
    "ModelSource",
    "Pass",
    "Pin",
    "Pretrained",
    "Quantized",
    "another",
    "are_distributions",
    "blocks",
    "build_attached",
    "carries_states",
    "change_caches",
    "change_inputs",
    "check_applied",
    "check_length",
    "count_vocabulary",
    "device",
    "find_attachments",
    "find_cache_name",
    "find_ends",
    "find_first_broken",
    "find_pretrained",
    "find_text_model",
    "find_trunk",
    "host_gib",
    "list_passes",
    "matrices",
    "meet_products",
    "meta_network",
    "pretrained",
    "pretrained_of",
    "read_layer_shapes",
    "read_model",
    "read_text_config",
    "register_model",
    "run_finite",
    "run_trunk",
    "states_gib",
    "survey",
    "weights_gib",
]
