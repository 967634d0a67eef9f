"""What authors of methods may import of the engine: this list, and nothing else of it.

    from harness.api import Method, Model, Quantized, Tokens, matrices, register

What changes here is told in the changelog; other modules change without a word. The parts of a
recipe (formats, inits, roundings, objectives) are in `methods.parts`.
"""

from harness.core.checked import Count, Seed
from harness.core.component import Component, Several
from harness.core.errors import BitgridError, FormatError, ModelError, SettingError
from harness.core.seeds import Seeds, add_seeds, redraw
from harness.core.stage import (
    Input,
    Resources,
    Stage,
    added,
    incidental,
    report,
    value,
)
from harness.data import Tokens, calibration, texts
from harness.method import Method, Step, register
from harness.models import (
    Attachment,
    Matrix,
    Model,
    Quantized,
    blocks,
    change_caches,
    change_inputs,
    device,
    host_gib,
    matrices,
    run_trunk,
)

__all__ = [
    "Attachment",
    "BitgridError",
    "Component",
    "Count",
    "FormatError",
    "Input",
    "Matrix",
    "Method",
    "Model",
    "ModelError",
    "Quantized",
    "Resources",
    "Seed",
    "Seeds",
    "SettingError",
    "Several",
    "Stage",
    "Step",
    "Tokens",
    "add_seeds",
    "added",
    "blocks",
    "calibration",
    "change_caches",
    "change_inputs",
    "device",
    "host_gib",
    "incidental",
    "matrices",
    "redraw",
    "register",
    "report",
    "run_trunk",
    "texts",
    "value",
]
