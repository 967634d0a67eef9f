"""What authors may import to make a part of a recipe, or a recipe of parts: this list.

    from methods.parts import IntSym, Recipe                # a method that is a point of the space
    from methods.parts import Objective, TokenLogits        # an objective of one's own

What changes here is told in the changelog. Not here: what the engine has for authors
(`harness.api`).
"""

from methods.grouped_integers import GroupedIntegers
from methods.quantization.block_ap import BlockAP
from methods.quantization.folding import Rotation, fold_rotation
from methods.quantization.formats import NF, Bits, Format, Grouped, IntAsym, IntSym, bounds
from methods.quantization.fp4 import MXFP4, NVFP4
from methods.quantization.gptaq import GPTAQ
from methods.quantization.gptq import GPTQ
from methods.quantization.gradients import pass_gradient
from methods.quantization.inits import Clip, Init
from methods.quantization.int_step import IntStep
from methods.quantization.learned import Learned
from methods.quantization.lsq import IntLSQ
from methods.quantization.omniquant import OmniQuant
from methods.quantization.readings import Reading
from methods.quantization.rounding import BlockRounding, Nearest, Rounding, quantize_model
from methods.quantization.seq import IntSEQ
from methods.quantization.signround import SignRound
from methods.quantization.spans import check_groups
from methods.quantization.ternary import Ternary
from methods.quantization.walking import Block, sequentially
from methods.recipe import Recipe
from methods.training.forward import widen
from methods.training.objectives import BlockStates, Objective, TokenLogits
from methods.training.settings import Training

__all__ = [
    "GPTAQ",
    "GPTQ",
    "MXFP4",
    "NF",
    "NVFP4",
    "Bits",
    "Block",
    "BlockAP",
    "BlockRounding",
    "BlockStates",
    "Clip",
    "Format",
    "Grouped",
    "GroupedIntegers",
    "Init",
    "IntAsym",
    "IntLSQ",
    "IntSEQ",
    "IntStep",
    "IntSym",
    "Learned",
    "Nearest",
    "Objective",
    "OmniQuant",
    "Reading",
    "Recipe",
    "Rotation",
    "Rounding",
    "SignRound",
    "Ternary",
    "TokenLogits",
    "Training",
    "bounds",
    "check_groups",
    "fold_rotation",
    "pass_gradient",
    "quantize_model",
    "sequentially",
    "widen",
]
