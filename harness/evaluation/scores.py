"""What an evaluation says of a model: `Scores`, and what every row of them tells of the model.

Not here: how anything is measured (`perplexity`, `lm_eval`), the records themselves
(`harness.core.records`).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.core.errors import ModelError
from harness.core.records import ItemScores, Precision, Score
from harness.models import Model, find_ends

EVALUATION_TOKENS = 16_384  # a batch: as many sequences as fit


@dataclass(frozen=True)
class Scores:
    """What one task says of one model: rows, and the items behind them for paired statistics."""

    rows: list[Score]
    model: Precision
    items: list[ItemScores] = field(default_factory=list)

    def save(self, folder: Path) -> dict[str, Any]:
        text = "".join(json.dumps(asdict(item)) + "\n" for item in self.items)
        (folder / "items.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        return {"rows": [asdict(row) for row in self.rows], "model": asdict(self.model)}

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any]) -> Scores:
        lines = gzip.decompress((folder / "items.jsonl.gz").read_bytes()).decode().splitlines()
        return cls(
            [Score(**row) for row in facts["rows"]],
            Precision(**facts["model"]),
            [ItemScores(**json.loads(line)) for line in lines],
        )


def join_caveats(*caveats: str | None) -> str | None:
    """All that must be known of a score, each thing once; None where there is nothing."""
    return " ".join(dict.fromkeys(filter(None, caveats))) or None


def check_evaluable(model: Model) -> Model:
    """The model, where it is what a format can represent. Raises ModelError for latent weights."""
    if model.latent:
        raise ModelError("latent weights are never evaluated: round them with the format first")
    return model


def describe_precision(model: Model) -> Precision:
    """What the weights of a model were rounded to, and what it does while it runs; where layers
    differ the mean of their bits, and the largest of their groups."""
    ends = find_ends(model.network)
    inside = [record for name, record in model.quantized.items() if name not in ends]
    kinds = sorted({(q.format, q.bits, q.group_size) for q in inside})
    formats = [format for format, _, _ in kinds] or ["none"]
    return Precision(
        format="+".join(dict.fromkeys(formats)),
        bits=model.nominal_bits(),
        # 0, a whole row of the matrix, is the largest.
        group_size=max((size for _, _, size in kinds), key=lambda size: size or math.inf)
        if kinds
        else None,
        bits_per_weight=round(model.bits_per_weight(), 4),
        dtype=str(model.network.dtype).removeprefix("torch."),
        rounded=model.rounded_share() if kinds else None,
        kept=", ".join(model.list_kept()) or None if kinds else None,
        ends=model.describe_ends(),
        size_bytes=model.count_bytes(),
        attachments="".join(each.label for each in model.attachments) or None,
    )


def describe_tokenizer(model: Model) -> str:
    """Size of the vocabulary, and a digest that tells two of one size apart."""
    entries = json.dumps(sorted(model.tokenizer.get_vocab().items()))
    count = len(model.tokenizer.get_vocab())
    return f"{count} tokens, {hashlib.sha256(entries.encode()).hexdigest()[:8]}"


def make_item_scores(row: Score, scored: Iterable[tuple[int, float]]) -> ItemScores:
    """The record of a row's items, of (item, score) in order."""
    pairs = list(scored)
    numbers = [item for item, _ in pairs]
    return ItemScores(
        task=row.task,
        metric=row.metric,
        filter=row.filter,
        items=None if numbers == list(range(len(pairs))) else numbers,
        scores=[int(score) if score.is_integer() else score for _, score in pairs],
    )
