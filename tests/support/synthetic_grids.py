"""Synthetic exported grids for the tests of reports."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.core.records import ITEM_KEY, NO_FILTER, SCHEMA
from harness.testbed.world import CAVEAT
from reports import plots
from reports.numbers import effects, summary
from reports.numbers.effects import Effect
from reports.numbers.summary import Summary
from reports.plots.context import Drawing
from reports.reading.export import Export

TASKS = ["testbed_knowledge", "testbed_story", "testbed_arithmetic"]


def row(**given: Any) -> dict[str, Any]:
    """A valid row; the cell and the model follow from what tells rows apart, unless given."""
    base: dict[str, Any] = {
        "schema": SCHEMA,
        "grid": "tiny",
        "method": "rtn",
        "label": "RTN",
        "settings": {},
        "seed": 0,
        "model": "testbed",
        "bits": 2,
        "format": "int-asym",
        "group_size": 128,
        "bits_per_weight": None,
        "dtype": "float32",
        "task": TASKS[0],
        "metric": "acc",
        "filter": NO_FILTER,
        "group": None,
        "primary": True,
        "value": 0.5,
        "stderr": None,
        "n": 200,
        "higher_is_better": True,
        "aggregation": "mean",
        "num_fewshot": 5,
        "bos": False,
        "chat_template": None,
        "limit": None,
        "protocol": "multiple choice",
        "window": None,
        "tokenizer": None,
        "task_version": "1",
        "lm_eval": "0.4.13",
        "caveat": CAVEAT,
        "key": "e" * 8,
        "stale": None,
    }
    made = {**base, **given}
    if "bits_per_weight" not in given and made["bits"] < 16:
        made["bits_per_weight"] = made["bits"] + 0.14
    identity = f"{made['label']}-{made['bits']}-{json.dumps(made['settings'], sort_keys=True)}"
    made.setdefault("cell", f"{identity}-{made['seed']}")
    made.setdefault("model_key", made["cell"])
    return made


def ppl(**given: Any) -> dict[str, Any]:
    base = {
        "task": "testbed-ppl",
        "metric": "ppl",
        "higher_is_better": False,
        "aggregation": "exp_mean",
        "num_fewshot": None,
        "lm_eval": None,
        "protocol": "windows of 512 tokens",
    }
    return row(**{**base, **given})


def measured(scores: list[float], **given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row and the line of its items."""
    mean = sum(scores) / len(scores)
    make = ppl if given.get("metric") == "ppl" else row
    value = math.exp(mean) if make is ppl else mean
    made = make(**{"value": value, "n": len(scores), **given})
    made["key"] = f"{made['model_key']}-{made['task']}"
    line = {"schema": SCHEMA, "items": None, "scores": scores}
    return made, {**line, **{name: made[name] for name in ITEM_KEY}}


def write(
    folder: Path,
    rows: Iterable[dict[str, Any]],
    curves: Iterable[dict[str, Any]] | None = None,
    items: Iterable[dict[str, Any]] = (),
    **grid: Any,
) -> Path:
    """An exported grid in `folder`."""
    rows = list(rows)
    head = {
        "schema": SCHEMA,
        "name": "tiny",
        "question": "Which method survives?",
        "model": "testbed",
        "report": {},
        "cells": len({each["cell"] for each in rows}),
        "holes": [],
        **grid,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grid.json").write_text(json.dumps(head))
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    if items:
        text = "".join(json.dumps(each) + "\n" for each in items)
        (folder / "items.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    if curves is not None:
        lines = "".join(json.dumps({"schema": SCHEMA, **each}) + "\n" for each in curves)
        (folder / "curves.jsonl").write_text(lines)
    return folder


def summary_of(folder: Path) -> Summary:
    """The table of an exported grid."""
    return summary.summarise(Export(folder))


def effects_of(folder: Path) -> tuple[Effect, ...]:
    """The effects in an exported grid."""
    return effects.compute_effects(Export(folder))


def drawn_of(folder: Path) -> set[str]:
    """Names of the plots of an exported grid."""
    return set(drawings_of(folder))


def drawings_of(folder: Path) -> dict[str, Drawing]:
    """The plots of an exported grid by name."""
    export = Export(folder)
    context = plots.Context(export, summary.summarise(export))
    found = {plot.name: plot.draw(context) for plot in plots.PLOTS}
    return {name: each for name, each in found.items() if each is not None}


def _make_curve(label: str, bits: int, seed: int, kept: float) -> list[dict[str, Any]]:
    """The points of a training whose loss falls to a level that depends on what is kept."""
    common = {"cell": f"{label}-{bits}-{seed}", "label": label, "seed": seed, "bits": bits}
    common |= {"settings": {"format.bits": bits}, "grad_norm": 1.0, "lr": 1e-4}
    points = []
    for step in range(1, 201):
        noise = 0.25 * math.sin(step * 12.9898 + seed) * math.sin(step * 78.2 + bits)
        loss = (1.4 - kept) * (0.4 + 3 / bits * math.exp(-step / 40)) + 0.3 * noise
        points.append({**common, "step": step, "tokens": step * 4096, "loss": abs(loss)})
    return points


def quickstart(folder: Path, seeds: int = 3) -> Path:
    """Five methods at two widths, trained ones over seeds, with curves, a hole and a stale row."""
    rows, curves = [], []
    strength = {"RTN": 0.1, "AWQ-clip": 0.3, "LLM-QAT": 0.6, "BitDistiller": 0.8}

    def cell(label: str, bits: int, seed: int, kept: float, wobble: float) -> None:
        trained = label in ("LLM-QAT", "BitDistiller")
        common = {
            "label": label,
            "method": label.lower(),
            "bits": bits,
            "settings": {} if bits == 16 else {"format.bits": bits},
            "seed": seed,
            "cell": f"{label}-{bits}-{seed}",
            "model_key": f"{label}-{bits}-{seed if trained else 0}",
        }
        rows.append(ppl(**common, value=math.exp(2.1 + 5 * (1 - kept) ** 2 + wobble)))
        for number, task in enumerate(TASKS):
            best = 0.92 - 0.07 * number
            value = 0.25 + (best - 0.25) * kept + wobble / 5
            metric = "exact_match" if task == TASKS[2] else "acc"
            rows.append(row(**common, task=task, metric=metric, value=value, stderr=0.02))

    cell("BF16", 16, 0, 1.0, 0.0)
    for bits in (3, 2):
        for label, kept in strength.items():
            for seed in range(seeds):
                wobble = 0.0 if kept < 0.5 else 0.05 * math.sin(7 * seed + bits + kept)
                cell(label, bits, seed, kept if bits == 2 else 0.7 + 0.3 * kept, wobble)
                if kept >= 0.5:
                    curves += _make_curve(label, bits, seed, kept)
    rows[-1]["stale"] = "methods/training/train.py changed"
    holes = [
        {
            "cell": "GPTQ-2-0",
            "label": "GPTQ",
            "settings": {"format.bits": 2},
            "seed": 0,
            "reason": "failed: NaN at step 12 in layer model.layers.3",
        },
        {
            "cell": "GPTQ-3-0",
            "label": "GPTQ",
            "settings": {"format.bits": 3},
            "seed": 0,
            "reason": "not run yet",
        },
    ]
    return write(
        folder,
        rows,
        curves,
        name="quickstart",
        question="Which method keeps the most of the reference model at 3 and 2 bits?",
        holes=holes,
        cells=len({each["cell"] for each in rows}) + len(holes),
    )
