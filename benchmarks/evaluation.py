"""The seconds of lm-eval's tasks on SmolLM2-135M: through the harness, and by lm-eval's own code.

    python -m benchmarks.evaluation [--limit N] [--tasks piqa …] [--dtype bfloat16] [--write]

Both forms build their requests, encode them and answer them, in one process and in turn, with
batches of as many texts; lm-eval also loads the model, about a second of a task. CPU seconds are
counted, since others may use the machine. The scores of both must be equal as printed: it ends with
an error where they are not. MMLU has `--limit` items in all, of its 57 subjects alike, with five
examples each. Items come from BITGRID_MIRROR, or are the real ones under BITGRID_SHARED (default
../shared).
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from benchmarks.record import Record
from benchmarks.smollm2_checks import ROOT, direct, scores
from harness.evaluation.lm_eval import FEWSHOT, task_batch
from harness.models import Model, read_model, smollm2
from tests.support import mirror

TASKS = ("piqa", "hellaswag", "winogrande", "arc_challenge", "mmlu")
SUBJECTS = 57


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=int, default=200, help="items a task")
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        if "BITGRID_MIRROR" not in os.environ:
            shared = Path(os.environ.get("BITGRID_SHARED", ROOT.parent / "shared"))
            os.environ["BITGRID_MIRROR"] = str(mirror.build(shared / "data", Path(made)))
        model = read_model(str(smollm2.unpacked_folder()), given.dtype)
        record = Record(f"evaluation-{given.dtype}", baseline="lm-eval")
        total = {"harness": 0.0, "lm-eval": 0.0}
        for task in given.tasks:
            for form, seconds in compare(model, task, given.limit, given.dtype).items():
                record.add(f"{task}, {given.limit} items", form, "CPU s", [seconds])
                total[form] += seconds
        for form, seconds in total.items():
            record.add(f"all {len(given.tasks)}", form, "CPU s", [seconds])
        record.finish(write=given.write)


def compare(model: Model, task: str, limit: int, dtype: str) -> dict[str, float]:
    """CPU seconds of each form. Raises ValueError where their scores differ."""
    items = math.ceil(limit / SUBJECTS) if task == "mmlu" else limit
    batch = task_batch(model.context)
    forms: dict[str, Callable[[int], dict[str, Any]]] = {
        "harness": lambda count: {
            row.metric: row.value for row in scores(model, task, count).rows if row.group is None
        },
        "lm-eval": lambda count: direct(task, count, batch, dtype, FEWSHOT.get(task)),
    }
    seconds, said = {}, {}
    for form, run in forms.items():
        run(1)  # reads files and the index of tasks, which the other form then finds read
        began = time.process_time()
        said[form] = run(items)
        seconds[form] = time.process_time() - began
    ours, theirs = said["harness"], said["lm-eval"]
    if any(not math.isclose(ours[metric], theirs[metric]) for metric in ours | theirs):
        raise ValueError(f"{task}: the scores differ: {said}")
    return seconds


if __name__ == "__main__":
    main()
