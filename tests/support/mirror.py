"""A mirror of hub data sets made from the real texts and items under BITGRID_SHARED.

`build` writes them in the hub's own column names, so that what reads the hub reads them. Only parts
of some splits are at hand (a thousand items of HellaSwag, twenty a subject of MMLU).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
WIKITEXT = ("wikitext-2-raw-v1", {"test": "test", "validation": "valid"})


def build(data: Path, mirror: Path) -> Path:
    """Write the mirror of everything that `data` (a shared folder's `data/`) has."""
    config, files = WIKITEXT
    for split, name in files.items():
        lines = read(data / f"wikitext2_raw_{name}.txt.gz").split("\n")
        # The hub's rows are lines with their end; an empty line is an empty row.
        rows = [{"text": f"{line}\n" if line.strip() else ""} for line in lines]
        write(mirror, "Salesforce/wikitext", config, split, rows)
        pages = ({"page": page} for page in _pages(lines))
        write(mirror, "EleutherAI/wikitext_document_level", config, split, pages)
    hellaswag = map(_hellaswag, _rows(data / "hellaswag_val_1000.jsonl.gz"))
    write(mirror, "Rowan/hellaswag", None, "validation", hellaswag)
    write(mirror, "baber/piqa", None, "validation", _rows(data / "piqa_val.jsonl.gz"))
    winogrande = _rows(data / "winogrande_xl_val.jsonl.gz")
    write(mirror, "allenai/winogrande", "winogrande_xl", "validation", winogrande)
    arc = _rows(data / "arc_challenge_val.jsonl.gz")
    write(mirror, "allenai/ai2_arc", "ARC-Challenge", "validation", arc)
    arc = [
        _arc(number, row) for number, row in enumerate(_rows(data / "arc_challenge_test.jsonl.gz"))
    ]
    write(mirror, "allenai/ai2_arc", "ARC-Challenge", "test", arc)
    for split, name in (("dev", "dev"), ("test", "test_20_per_subject")):
        subjects: dict[str, list[Row]] = {}
        for row in _rows(data / f"mmlu_{name}.jsonl.gz"):
            subjects.setdefault(row["subject"], []).append(row)
        for subject, rows in subjects.items():
            write(mirror, "cais/mmlu", subject, split, rows)
    for split in ("train", "test"):
        write(mirror, "openai/gsm8k", "main", split, _rows(data / f"gsm8k_{split}.jsonl.gz"))
    humaneval = _rows(data / "humaneval.jsonl.gz")
    write(mirror, "openai/openai_humaneval", None, "test", humaneval)
    write(mirror, "allenai/c4", "en", "validation", _rows(data / "c4_demo_300.jsonl.gz"))
    for split, name in (("train", "train_head"), ("validation", "other_30k")):
        stories = read(data / f"tinystories_{name}.txt.gz").split("\n\n")
        write(mirror, "roneneldan/TinyStories", None, split, ({"text": s} for s in stories))
    return mirror


def write(mirror: Path, path: str, config: str | None, split: str, rows: Iterable[Row]) -> Path:
    """One split of the mirror."""
    file = mirror / path / (config or "default") / f"{split}.jsonl.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode(), 1, mtime=0))
    return file


def read(path: Path) -> str:
    """The text of a gzip file."""
    return gzip.decompress(path.read_bytes()).decode()


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in read(path).split("\n") if line]


def _pages(lines: list[str]) -> list[str]:
    """WikiText's articles, each from its heading on."""
    found: list[list[str]] = [[]]
    for line in lines:
        if line.startswith(" = ") and not line.startswith(" = ="):
            found.append([])
        found[-1].append(line)
    return ["\n".join(page) for page in found if any(map(str.strip, page))]


def _arc(number: int, row: Row) -> Row:
    """The test split is at hand as ready-made questions, with the number of the right choice."""
    letters = "ABCDE"[: len(row["choices"])]
    return {
        "id": f"test-{number}",
        "question": row["query"].removeprefix("Question: "),
        "choices": {"text": row["choices"], "label": list(letters)},
        "answerKey": letters[row["gold"]],
    }


def _hellaswag(row: Row) -> Row:
    """The hub has the context in two parts, the second the beginning of a sentence, or nothing."""
    first, stop, second = row["ctx"].rpartition(". ")
    whole = not second[:1].islower()
    parts = (row["ctx"], "") if whole else (first + stop.rstrip(), second)
    return {**row, "label": str(row["label"]), "ctx_a": parts[0], "ctx_b": parts[1]}
