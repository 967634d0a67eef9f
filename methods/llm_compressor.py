"""llm-compressor's GPTQ: `oneshot` with its `GPTQModifier`, on the tokens that others calibrate on.

An adapter: llmcompressor (0.14 was run, on a CPU, without its pins: docs/libraries.md) rounds a
copy of the model in memory. Counted is what its packed file holds: codes, scales in the model's
dtype and zero points of `bits`, where there are any.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness import api
from harness.api import Count, Model, Tokens, matrices
from methods.compressed_tensors_int import CompressedTensors


@dataclass(frozen=True)
class LLMCompressor(CompressedTensors):
    """GPTQ of llm-compressor with its own defaults; per row with group_size 0."""

    needs, layer_classes = ("llmcompressor", "compressed-tensors"), ("Linear",)
    text: str = "c4"  # calibration text
    sequences: Count = 128  # of calibration text
    length: Count = 2048  # of each, in tokens

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        from compressed_tensors.quantization import QuantizationScheme
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import GPTQModifier

        assert calibration is not None
        scratch: Any = copy.deepcopy(model.network)
        scratch.config.save_pretrained(work)  # it reads the configuration from a path
        scratch.name_or_path = scratch.config._name_or_path = str(work)
        layers, result = list(matrices(scratch)), model.fork()
        scheme = QuantizationScheme(targets=layers, weights=self.make_arguments())
        rows = [{"input_ids": ids} for ids in calibration.ids.split(1)]
        data: Any = torch.utils.data.DataLoader(rows, batch_size=None)  # type: ignore[arg-type]
        recipe = GPTQModifier(config_groups={"group_0": scheme})
        oneshot(model=scratch, processor=model.tokenizer, dataset=data, recipe=recipe)
        for matrix, values, layer in self.match(result, scratch, "weight_scale"):
            beside = self.count_beside(layer.weight_scale, values)
            self.give(result, matrix, values, "llmcompressor", beside)
        return result


api.register(
    "llmcompressor", LLMCompressor(), title="llm-compressor", about="GPTQ of llm-compressor"
)
