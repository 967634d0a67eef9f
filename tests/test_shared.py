"""A real pre-trained model and real texts, where shared/ is there: figures known from elsewhere."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest
import torch

from harness.data import pack
from harness.models import Model, read_layer_shapes, read_model
from methods.quantization.formats import IntAsym
from methods.quantization.rounding import quantize_model


@pytest.fixture(scope="module")
def stories(shared: Path) -> Model:
    """A Llama of 260,032 parameters: input sizes 64 and 172, which 32 and 64 do not divide."""
    return read_model(str(shared / "models" / "stories260K"), "float32")


def _perplexity(model: Model, text: str, window: int, limit: int) -> float:
    ids = torch.tensor(model.tokenizer(text, add_special_tokens=False)["input_ids"])[:limit]
    losses = []
    with torch.inference_mode():
        for start in range(0, len(ids) - window + 1, window):
            part = ids[start : start + window].unsqueeze(0)
            losses.append(model.network(part, labels=part).loss.item())
    return math.exp(sum(losses) / len(losses))


def test_greedy_text_is_the_published_transcript(stories: Model) -> None:
    start = torch.tensor([[stories.tokenizer.bos_token_id]])
    ids = stories.network.generate(start, max_new_tokens=40, do_sample=False)[0]
    text = stories.tokenizer.decode(ids, skip_special_tokens=True)
    assert text.strip().startswith(
        "Once upon a time, there was a little girl named Lily. "
        "She loved to play outside in the park."
    )


def test_rtn_of_a_real_model_falls_off_as_measured_elsewhere(stories: Model, shared: Path) -> None:
    """16 bits 4.17, 4 bits 4.55, 3 bits 7.71, 2 bits 386 on 19k TinyStories tokens, group 32."""
    text = gzip.decompress((shared / "data/tinystories_train_head.txt.gz").read_bytes()).decode()
    found = {
        bits: _perplexity(
            stories if bits == 16 else quantize_model(stories, IntAsym(bits, 32, tail=True)),
            text,
            window=512,
            limit=19_000,
        )
        for bits in (16, 4, 3, 2)
    }
    assert found[16] < found[4] < found[3] < found[2]
    assert found[16] == pytest.approx(4.17, rel=0.1)
    assert found[4] == pytest.approx(4.55, rel=0.15)
    assert found[3] == pytest.approx(7.71, rel=0.3)
    assert found[2] > 100


def test_tail_groups_where_no_group_size_divides(stories: Model, shared: Path) -> None:
    from harness.core.errors import FormatError

    shapes = read_layer_shapes(str(shared / "models" / "stories260K"))
    sizes = {in_features for _, in_features in shapes.values()}
    assert sizes == {64, 172}
    with pytest.raises(FormatError, match=r"172.*tail: true"):
        IntAsym(2, 32).check("mlp.down_proj", 172)
    for layer, (_, in_features) in shapes.items():
        IntAsym(2, 32, tail=True).check(layer, in_features)


def test_real_text_packs(stories: Model, shared: Path) -> None:
    text = gzip.decompress((shared / "data/wikitext2_raw_valid.txt.gz").read_bytes()).decode()
    tokens = pack(text.split("\n"), stories.tokenizer, 256, 8)
    assert tokens.ids.shape == (8, 256)
    assert int(tokens.ids.max()) < stories.network.config.vocab_size
