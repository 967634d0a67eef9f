"""What a search and a rounding hold, and the evaluation of what they give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from harness.core.stage import Stage
from harness.data import Packed
from harness.models import (
    Model,
    Pretrained,
    blocks,
    pretrained,
    pretrained_of,
)
from harness.models.dry_run import estimate_memory
from harness.testing.watching import Counting
from methods.quantization.awq import ScaleSearch
from methods.quantization.block_ap import BlockAP
from methods.quantization.formats import IntAsym
from methods.quantization.gptaq import GPTAQ
from methods.quantization.gptq import GPTQ
from methods.quantization.inits import ClipSearch
from methods.quantization.mixed import Mixed
from methods.quantization.omniquant import OmniQuant
from methods.quantization.rotation import Rotated
from methods.quantization.rounding import Round, RoundBlocks, WalkedRounding
from methods.quantization.signround import SignRound
from tests.support import architectures
from tests.support.memory import (
    FORMAT,
    build_scoring,
    build_training,
)


@pytest.fixture(scope="module")
def base(tiny_folder: Path) -> Pretrained:
    return pretrained(str(tiny_folder), "bfloat16")


@pytest.fixture(scope="module")
def model(base: Pretrained) -> Model:
    return base.run(Path())


def _measure_block(network: PreTrainedModel) -> int:
    """Bytes of the largest block's parameters."""
    sizes = (sum(p.nbytes for p in block.parameters()) for block in blocks(network).values())
    return max(sizes)


def test_searches_hold_a_block_and_what_it_observes(base: Pretrained, model: Model) -> None:
    """Of a model that lies on the host: however many blocks it has."""
    calibrated = Packed([], base, 64, 128)
    search = ClipSearch(base, calibrated, FORMAT, 20, 10, 512)
    stages: list[Stage[Any]] = [search, ScaleSearch(base, calibrated, FORMAT, 20, 512)]
    learnt = SignRound(length=128), OmniQuant(length=128), BlockAP(length=128)
    for rounding in (GPTQ(), GPTAQ(), *learnt):
        stages.append(RoundBlocks(base, base, calibrated, FORMAT, rounding))
    for each in stages:
        memory = estimate_memory(each)
        assert memory is not None and memory.parameters == _measure_block(model.network)
        assert memory.gradients == memory.optimizer == 0 < memory.activations + memory.other
    assert pretrained_of(search) == base


@pytest.mark.parametrize(
    ("rounding", "gib"),
    [
        (None, 24),
        (GPTQ(), 24),
        (GPTAQ(), 40),
        (SignRound(), 80),
        (OmniQuant(equivalent=True), 80),
        (BlockAP(), 80),
    ],
    ids=["clip", "gptq", "gptaq", "sign", "omni", "block"],
)
def test_a_model_of_70b_is_walked_on_one_gpu(
    tmp_path: Path, rounding: WalkedRounding | None, gib: int
) -> None:
    """Two blocks of its size: the others lie on the host."""
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 2}
    LlamaConfig(num_attention_heads=64, num_key_value_heads=8, **sizes).save_pretrained(tmp_path)
    huge = Pretrained(str(tmp_path), "of no weights", "bfloat16")
    tokens = Packed([], huge, 2048, 128)
    stage: Stage[Any] = ClipSearch(huge, tokens, FORMAT, 20, 10, 512)
    if rounding is not None:
        stage = RoundBlocks(huge, huge, tokens, FORMAT, rounding)
    memory = estimate_memory(stage)
    assert memory is not None and 1.5 * 2**30 < memory.total < gib * 2**30


def test_rows_are_worked_on_together_as_on_the_device(tmp_path: Path) -> None:
    """A layer of 2**22 weights at once on a GPU, of 2**18 on a CPU."""
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 1}
    LlamaConfig(vocab_size=512, num_attention_heads=8, **shape).save_pretrained(tmp_path)
    wide = Pretrained(str(tmp_path), "of no weights", "bfloat16")
    on_gpu, on_cpu = (
        estimate_memory(Round(wide, wide, FORMAT), device=on) for on in ("cuda", "cpu")
    )
    assert on_gpu is not None and on_cpu is not None
    assert on_gpu.total - on_cpu.total >= 4 * 2**22


@pytest.mark.parametrize("name", ["mixtral", "gpt2"])
def test_experts_are_estimated_too(name: str, tmp_path: Path) -> None:
    """Of a mixture training and searching take what its weights say, whatever is sent where."""
    source = pretrained(str(architectures.build(name, tmp_path)), "float32")
    network = source.run(tmp_path).network
    weights = sum(p.nbytes for p in network.parameters())
    calibrated = Packed([], source, 64, 128)
    search = estimate_memory(ClipSearch(source, calibrated, FORMAT, 20, 10, 512))
    trained = estimate_memory(build_training(source))
    assert search is not None and search.parameters == _measure_block(network)
    assert trained is not None and trained.gradients > 0.5 * weights


def test_rounding_holds_one_layer_beside_what_is_scored(tmp_path: Path) -> None:
    """In 16 bits the base and the new model: the latent weights would be as much again."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 24}
    LlamaConfig(vocab_size=512, **shape).save_pretrained(tmp_path)
    deep = Pretrained(str(tmp_path), "of no weights", "bfloat16")
    (weights,) = {of.parameters for of in (estimate_memory(build_scoring(deep)),) if of}
    trained, plain = Round(build_training(deep), deep, FORMAT), Round(deep, deep, FORMAT)
    made, scored = estimate_memory(trained), estimate_memory(build_scoring(trained))
    assert made is not None and scored is not None
    assert scored.parameters == 2 * weights
    assert 1.9 * weights < made.total < 2.2 * weights
    assert scored.total >= made.total  # whichever is more is what the evaluation needs
    shares, ends = estimate_memory(build_scoring(plain)), 2 * 2 * 512 * 256
    assert shares is not None and shares.parameters == pytest.approx(2 * weights - ends, rel=0.01)


def _hold(*networks: PreTrainedModel) -> int:
    """Bytes of all their tensors, each storage once."""
    tensors = [each for n in networks for each in (*n.parameters(), *n.buffers())]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
    return sum(each.nbytes() for each in storages.values())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("named", [("lm_head",), ("model.embed_tokens",), ()])
@pytest.mark.parametrize("rotated", [True, False])
def test_embeddings_and_head_of_its_own_are_counted(
    tied: bool, named: tuple[str, ...], rotated: bool, base: Pretrained, tmp_path: Path
) -> None:
    """Against what is really held while the model is rounded, and by it and the base then."""
    source = base
    if not tied:
        config = LlamaConfig.from_pretrained(base.source, tie_word_embeddings=False)
        LlamaForCausalLM(config).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(base.source).save_pretrained(tmp_path)
        source = pretrained(str(tmp_path), "bfloat16")
    format = Mixed(FORMAT, dict.fromkeys(named, IntAsym(8, 64)))
    given: Stage[Model] = Rotated(source, 0) if rotated else source
    held = start = source.run(tmp_path)
    if rotated:
        start = replace(given, model=held).run(tmp_path)
    stage = Round(given, source, format)
    with Counting(start.network) as counted:
        rounded = replace(stage, model=start, base=held).run(tmp_path)
    made, scored = estimate_memory(stage, device="cpu"), estimate_memory(build_scoring(stage))
    if not rotated:
        peak = _hold(held.network) + counted.peak().total
        assert made is not None and made.total == pytest.approx(peak, rel=1e-3)
    assert scored is not None
    norms = 0 if not rotated else sum(p.nbytes for p in start.network.parameters() if p.dim() == 1)
    assert scored.parameters == _hold(held.network, rounded.network) - norms
