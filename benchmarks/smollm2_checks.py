"""SmolLM2-135M on real data: what the harness says, beside what independent computations say.

    python -m benchmarks.smollm2_checks [--windows N] [--limit N] [--tasks piqa hellaswag]

WikiText-2 perplexity over the whole raw test split, computed once by the harness and once in the
lines of `reference` below, which share no code with it; and lm-eval's scores through the harness
beside those of lm-eval's own model on the same folder and items. Texts and items are the real ones
under BITGRID_SHARED (default ../shared). Two cores take about ten minutes.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import compat
from harness.core.execution import execute
from harness.data import hub
from harness.evaluation.evaluations import build_evaluation
from harness.evaluation.lm_eval import task_batch
from harness.evaluation.scores import Scores
from harness.models import Model, device, pretrained, read_model, smollm2
from tests.support import mirror

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--windows", type=int, help="of 2048 tokens (default: all)")
    parser.add_argument("--limit", type=int, default=50, help="items a task")
    parser.add_argument("--tasks", nargs="*", default=["piqa", "hellaswag", "arc_challenge"])
    given = parser.parse_args()
    shared = Path(os.environ.get("BITGRID_SHARED", ROOT.parent / "shared"))
    with tempfile.TemporaryDirectory() as made:
        os.environ["BITGRID_MIRROR"] = str(mirror.build(shared / "data", Path(made)))
        model = read_model(str(smollm2.unpacked_folder()), torch.float32)
        began = time.monotonic()
        ours = scores(model, "wikitext2", given.windows).rows[0]
        middle = time.monotonic()
        theirs = reference(shared / "data", given.windows)
        print(f"wikitext2, {ours.n} windows of 2048 tokens")
        print(f"  harness      {ours.value:.6f}  in {middle - began:.0f} s")
        print(f"  independent  {theirs:.6f}  in {time.monotonic() - middle:.0f} s")
        for task in given.tasks:
            rows = {row.metric: row.value for row in scores(model, task, given.limit).rows}
            print(f"{task}, {given.limit} items")
            print(f"  harness      {rows}")
            print(f"  lm-eval      {direct(task, given.limit, task_batch(model.context))}")


def scores(model: Model, task: str, limit: int | None, **options: Any) -> Scores:
    """A task's scores through the harness."""
    base = pretrained(smollm2.NAME, str(model.network.dtype).removeprefix("torch."))
    stage = build_evaluation(base, task, base, limit=limit, **options)
    with tempfile.TemporaryDirectory() as work:
        values: dict[str, Any] = {base.key: model}
        for above in stage.inputs:
            if above.key not in values:
                values[above.key] = execute(above, {}, Path(work))
        return execute(stage, values, Path(work))


@torch.inference_mode()
def reference(data: Path, windows: int | None, length: int = 2048) -> float:
    """GPTQ's protocol, from the text file on: lines joined by blanks, whole windows, no BOS."""
    folder = smollm2.unpacked_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lines = mirror.read(data / "wikitext2_raw_test.txt.gz").split("\n")
    text = "\n\n".join(f"{line}\n" if line.strip() else "" for line in lines)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    total = 0.0
    count = min(len(ids) // length, windows or len(ids))
    for number in range(count):
        window = torch.tensor(ids[number * length : (number + 1) * length])
        logits = network(window.unsqueeze(0)).logits[0, :-1].double()
        chosen = logits.gather(1, window[1:, None]).squeeze(1)
        total += (logits.logsumexp(1) - chosen).mean().item()
    return math.exp(total / count)


def direct(
    task: str, limit: int, batch: int, dtype: str = "float32", shots: int | None = None
) -> dict[str, float]:
    """A task's scores by lm-eval's own command path: its model class on the folder, its task."""
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    def mirrored(path: str, name: str | None = None, **_: object) -> datasets.DatasetDict:
        files = hub.find_access().mirrored(path, name)
        found = {split: datasets.Dataset.from_json(str(file)) for split, file in files.items()}
        return datasets.DatasetDict({"train": next(iter(found.values())), **found})

    load, datasets.load_dataset = datasets.load_dataset, mirrored
    try:
        model = HFLM(
            str(smollm2.unpacked_folder()),
            dtype=dtype,
            device=str(device()),
            batch_size=batch,
            add_bos_token=False,
        )
        found = simple_evaluate(
            model=model,
            tasks=[task],
            limit=limit,
            num_fewshot=shots,
            task_manager=compat.make_task_manager(None),
        )
    finally:
        datasets.load_dataset = load
    assert found is not None
    return {
        metric.removesuffix(",none"): score
        for metric, score in sorted(found["results"][task].items())
        if "," in metric and "_stderr" not in metric
    }


if __name__ == "__main__":
    main()
