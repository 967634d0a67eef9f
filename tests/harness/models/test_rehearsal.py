"""What a plan finds out on a twin of a model: each verdict beside what the model itself does."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from harness.core.errors import GridError, ModelError
from harness.grid import expand
from harness.models import blocks, pretrained
from harness.models import rehearsal as rehearsals
from harness.models.rehearsal import find_twin, rehearse
from tests.support.architectures import build, configure

GRID = """\
model: {folder}
method: {{name: {method}, format.group_size: 32}}
defaults:
  format.bits: 2
  format.tail: true
  init.text: testbed
  init.length: 64
  data.text: testbed
  data.length: 48
evaluate: [{{testbed-ppl: {{window: 64}}}}]
"""


def _load(name: str, method: str, tmp_path: Path) -> expand.Grid:
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID.format(folder=build(name, tmp_path / name), method=method))
    return expand.load(grid)


@pytest.mark.parametrize("name", ["opt-post-norm", "nanochat"])
def test_awq_that_cannot_fold_is_refused_as_the_grid_is_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(GridError, match=r"grid.yaml:2: AWQ: \w+ForCausalLM: .*(scaling|no operat)"):
        _load(name, "awq", tmp_path)


@pytest.mark.parametrize("name", ["llama", "opt", "bloom"])
def test_awq_that_folds_is_not_refused(name: str, tmp_path: Path) -> None:
    assert len(_load(name, "awq", tmp_path).cells) == 1


@pytest.mark.parametrize("name", ["bert", "paligemma"])
def test_a_model_that_sees_what_comes_after_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(GridError, match=r"grid.yaml:1: .* is not a causal language model"):
        _load(name, "rtn", tmp_path)


@pytest.mark.parametrize("method", ["llm-qat", "bitdistiller"])
@pytest.mark.parametrize("name", ["rwkv", "xlstm", "minimax", "zamba2"])
def test_a_cache_that_cannot_be_used_is_found(name: str, method: str, tmp_path: Path) -> None:
    with pytest.raises(GridError, match=r"cannot write training data: .*ground-truth needs none"):
        _load(name, method, tmp_path)


def test_a_class_that_does_not_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = pretrained(str(build("llama", tmp_path / "model")))
    network = type(rehearsals._make(configure("llama"), False, 1, True))

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel for it")

    find_twin.cache_clear()
    monkeypatch.setattr(network, "forward", broken)
    with pytest.raises(ModelError, match="cannot be run: RuntimeError: no kernel"):
        rehearse(base)
    find_twin.cache_clear()


def test_a_model_that_cannot_be_shrunk_is_let_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = pretrained(str(build("bert", tmp_path / "model")))
    monkeypatch.setattr(rehearsals, "_LARGEST", 10)
    find_twin.cache_clear()
    assert find_twin(base) is None
    rehearse(base)
    find_twin.cache_clear()


REAL = [
    "llama",
    "mixtral",
    "gemma3",
    "qwen3_next",
    "deepseek_v3",
    "falcon_h1",
    "gpt_oss",
    "nemotron_h",
]


@pytest.mark.parametrize("kind", REAL)
def test_twins_of_real_sizes_are_small_and_run(kind: str) -> None:
    config = AutoConfig.for_model(kind)  # the library's defaults: a published model's sizes
    before = copy.deepcopy(config.to_dict())
    network = rehearsals._make(config, False, 16, True)
    assert network is not None
    assert sum(p.numel() for p in network.parameters()) < 2**26
    with torch.no_grad():
        logits = network(input_ids=torch.arange(12)[None], use_cache=False).logits
    assert bool(logits.isfinite().all())
    assert config.to_dict() == before


@pytest.mark.parametrize(("name", "kept"), [("jamba", 2), ("llama", 2), ("mllama", 3)])
def test_a_twin_has_every_kind_of_block(name: str, kept: int) -> None:
    config: PreTrainedConfig = configure(name)
    network = rehearsals._make(config, False, 1, True)
    assert network is not None
    assert len(blocks(network)) == kept


def test_rehearsals_move_no_random_numbers(tmp_path: Path) -> None:
    base = pretrained(str(build("llama", tmp_path / "model")))
    find_twin.cache_clear()
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    rehearse(base)
    assert torch.equal(torch.rand(2), wanted)


def test_rows_of_a_model_that_sees_say_what_was_quantised(tmp_path: Path) -> None:
    caveat = pretrained(str(build("gemma3", tmp_path / "seeing"))).caveat
    part = "The language model of gemma3; no other part is used or quantised"
    assert caveat is not None and caveat.endswith(part)
    alone = pretrained(str(build("gemma3-text", tmp_path / "text"))).caveat
    assert alone is None or "language model of" not in alone
