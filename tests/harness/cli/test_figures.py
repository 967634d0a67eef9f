"""`bitgrid verify NAME`: a list of figures that the test computes itself, on a random OPT."""

from __future__ import annotations

import copy
import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from harness.cli.main import main
from harness.grid.published import COLUMNS
from harness.testing.tiny import make_tokenizer
from tests.support import mirror

WINDOW = 64
LINES = [
    "",
    " = A title = \n",
    "",
    *(f" Line {n} has {n * n} words of no sense .\n" for n in range(60)),
]
GRID = """# Does it give what the test computed?
model: {model}
dtype: float32
method: rtn
vary:
  format: [{{name: int-asym, bits: 4, group_size: 0}}, {{name: int-asym, bits: 3, group_size: 32}}]
compare: [bf16]
mirror: ../mirror
evaluate: [{{wikitext2: {{window: {window}, bos: true}}}}]
published: {{name: tiny, model: Tiny, tolerance: {{RTN: 0.05, ppl: 1%}}}}
"""


def _make_opt(folder: Path) -> OPTForCausalLM:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=64, ffn_dim=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, word_embed_proj_dim=64, init_std=0.2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = OPTForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def _measure(model: OPTForCausalLM) -> float:
    """exp of the mean NLL over windows of the lines joined by blank lines, in float64."""
    ids = [1, *make_tokenizer()("\n\n".join(LINES), add_special_tokens=False)["input_ids"]]
    losses = []
    for start in range(0, len(ids) - WINDOW + 1, WINDOW):
        window = torch.tensor([ids[start : start + WINDOW]])
        with torch.no_grad():
            logits = model(window).logits[0].double().numpy()
        norm = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
        label = window[0, 1:].numpy()
        losses.append((norm[:-1] - logits[np.arange(WINDOW - 1), label]).mean())
    return float(np.exp(np.mean(losses)))


def _round(model: OPTForCausalLM, bits: int, width: int) -> OPTForCausalLM:
    """Asymmetric min-max of each group, as GPTQ's paper has RTN; width 0: of each row."""
    rounded, top = copy.deepcopy(model), 2**bits - 1
    for layer in rounded.model.decoder.layers:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                weight = module.weight.detach().numpy()
                groups = weight.reshape(-1, width or weight.shape[1])
                least = np.minimum(groups.min(1, keepdims=True), 0)
                most = np.maximum(groups.max(1, keepdims=True), 0)
                scale = np.float16((most - least) / np.float32(top)).astype(np.float32)
                zero = np.round(-least / scale)
                codes = np.clip(np.round(groups / scale) + zero, 0, top)
                module.weight.data = torch.tensor(((codes - zero) * scale).reshape(weight.shape))
    return rounded


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, a mirror of the text, the figures and the grid behind them."""
    folder = tmp_path_factory.mktemp("place")
    model = _make_opt(folder / "tiny-model")
    rows = [{"text": line} for line in LINES]
    mirror.write(folder / "mirror", "Salesforce/wikitext", "wikitext-2-raw-v1", "test", rows)
    full, four, three = (
        _measure(each) for each in (model, _round(model, 4, 0), _round(model, 3, 32))
    )
    assert min(abs(full - four), abs(full - three)) > 0.2  # else every number would do
    figures = [
        ("FP", 16, "", WINDOW, full * 1.005),
        ("RTN", 4, "channel", WINDOW, four),
        ("RTN", 3, 32, WINDOW, three + 0.1),
        ("RTN", 3, 64, WINDOW, three),
        ("RTN", 4, "channel", 2048, four),
        ("RTN", 2, 32, WINDOW, three),
        ("OmniQuant", 4, "channel", WINDOW, four),
    ]
    (folder / "published").mkdir()
    with (folder / "published/tiny.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "protocol", "seed"])
        for method, bits, group, window, value in figures:
            told = ["A paper", "table", "Tiny", method, bits, group, "wikitext2", "", window]
            writer.writerow([*told, "ppl", f"{value:.3f}", "raw test joined by blank lines", ""])
    (folder / "experiments").mkdir()
    grid = GRID.format(model="tiny-model", window=WINDOW)
    (folder / "experiments/published-tiny.yaml").write_text(grid)
    grid = GRID.format(model="gone", window=WINDOW)
    (folder / "experiments/published-gone.yaml").write_text(grid)
    (folder / "published/gone.csv").write_text((folder / "published/tiny.csv").read_text())
    (folder / "published/alone.csv").write_text((folder / "published/tiny.csv").read_text())
    return folder


def test_each_figure_is_held_against_what_is_measured(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.delenv("BITGRID_MIRROR", raising=False)
    assert main(["verify", "tiny"]) == 1  # one is outside
    head, *lines, counts = capsys.readouterr().out.splitlines()
    assert head == "tiny: experiments/published-tiny.yaml"
    full, four, three, other, window, narrow, missing = lines
    assert full.startswith("  ✓ FP, 16 bits: WikiText-2 ppl ")
    assert four.startswith("  ✓ RTN, 4 bits, channel: WikiText-2 ppl ") and "±0.05" in four
    assert four.endswith("  [A paper]")
    assert three.startswith("  ✗ RTN, 3 bits, group 32: ")
    assert other.startswith("  – RTN, 3 bits, group 64: ") and "(not compared): group size" in other
    assert "(not compared): window 64, theirs 2048" in window
    assert "not run" in narrow and "measured at 4, 3 bits only" in narrow
    assert "not run" in missing and "the grid has no method called OmniQuant" in missing
    assert counts == "2 within, 1 outside, 2 not compared, 2 not run"


def test_what_cannot_be_verified_is_said(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main(["verify", "gone"]) == 1
    *lines, reason = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and all("not run" in line for line in lines[1:])
    assert reason.startswith("7 not run: ") and "model 'gone'" in reason
    assert main(["verify", "alone"]) == 1
    reason = capsys.readouterr().out.splitlines()[-1]
    missing = "experiments/published-alone.yaml is missing"
    assert reason == f"7 not run: alone: no grid measures these figures: {missing}"
    assert main(["verify", "tiny", "--discard"]) == 2
    assert "--discard is about stored values" in capsys.readouterr().err
