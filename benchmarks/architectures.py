"""Which architectures work with which method, on tiny random models; docs/architectures.md.

    python -m benchmarks.architectures                    # all; goes on where it was stopped
    python -m benchmarks.architectures --only gemma3 mamba2

Of each architecture in `tests.support.architectures` a model is saved in a folder, and a grid of
each method is read and run on it: perplexity, a task of choices and one of answers. A method works,
or the grid is refused as it is read, with the reason; what fails after that is a fault of the
project, and ends the benchmark with an error. The perplexity of the 16-bit model is compared with
that of transformers' own forward pass, window by window.
Not here: real models, whether scores are any good.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch

ROOT = Path(__file__).parents[1]
CSV, PAGE = ROOT / "benchmarks" / "architectures.csv", ROOT / "docs" / "architectures.md"
METHODS = ("bf16", "rtn", "awq", "awq-clip", "llm-qat", "bitdistiller")
WINDOW, WINDOWS = 64, 4
GRID = """\
model: {folder}
dtype: float32
method: {method}
seed: 0
defaults:
  format.bits: 2
  format.group_size: 32
  format.tail: true  # some have matrices of a few inputs
  init.text: testbed
  init.sequences: 4
  init.length: 64
  init.tokens: 64
  data.text: testbed
  data.sequences: 8
  data.length: 48
  train.steps: 2
  train.batch_size: 4
  train.micro_batch: 4
  train.lr: 1e-3
  train.dtype: float32
  train.checkpoint_every: 0
evaluate:
  - testbed-ppl: {{window: {window}, limit: {windows}}}
  - testbed_knowledge: {{limit: 4}}
  - testbed_arithmetic: {{limit: 4}}
"""


@dataclass(frozen=True)
class Outcome:
    """What became of one method on one architecture."""

    architecture: str
    method: str
    outcome: str  # works | refused | fails
    reason: str = ""
    network: str = ""
    ppl: float | None = None
    bits_per_weight: float | None = None
    seconds: float = 0.0


def try_architecture(name: str, methods: Iterable[str] = METHODS) -> list[Outcome]:
    """Each method on one architecture."""
    from tests.support.architectures import build, make

    _be_quiet()
    kind = type(make(name)).__name__
    with tempfile.TemporaryDirectory() as scratch:
        folder = build(name, Path(scratch) / "model")
        return [_try_method(name, kind, method, folder, Path(scratch)) for method in methods]


def _try_method(name: str, kind: str, method: str, folder: Path, scratch: Path) -> Outcome:
    from harness.core.errors import BitgridError
    from harness.core.store import Store
    from harness.grid import expand
    from harness.run import plan as plans
    from harness.run.runner import run

    began = time.monotonic()

    def conclude(outcome: str, **facts: Any) -> Outcome:
        seconds = round(time.monotonic() - began, 1)
        return Outcome(name, method, outcome, network=kind, seconds=seconds, **facts)

    path = scratch / f"{method}.yaml"
    path.write_text(GRID.format(folder=folder, method=method, window=WINDOW, windows=WINDOWS))
    try:
        grid = expand.load(path)
    except BitgridError as error:
        return conclude("refused", reason=_shorten(str(error), folder, path))
    except Exception as error:  # any, since none may be left to a user
        return conclude("fails", reason=f"as the grid is read: {type(error).__name__}: {error}")
    store = Store(scratch / "store")
    plan = plans.build(grid)
    try:
        outcome = run(plan, store, _Silent())
    except Exception as error:
        return conclude("fails", reason=f"{type(error).__name__}: {error}")
    for key in outcome.failed:
        record = store.failure(key) or {}
        reason = f"{plan.nodes[key].kind}: {record.get('error')}: {record.get('message')}"
        return conclude("fails", reason=_shorten(reason, folder, path))
    (cell,) = plan.cells
    values = [
        store.load(stage) for stage in plan.stages(cell.scores).values() if stage.key in cell.scores
    ]
    (ppl,) = (row.value for value in values for row in value.rows if row.metric == "ppl")
    bits = values[0].model.bits_per_weight
    scores = [row.value for value in values for row in value.rows]
    if not all(map(math.isfinite, scores)):
        return conclude("fails", reason=f"a score is not finite: {scores}")
    if method == "bf16" and not math.isclose(ppl, _plain_perplexity(folder), rel_tol=1e-5):
        return conclude(
            "fails", reason=f"PPL {ppl}, by a plain forward pass {_plain_perplexity(folder)}"
        )
    return conclude("works", ppl=ppl, bits_per_weight=bits)


@torch.no_grad()
def _plain_perplexity(folder: Path) -> float:
    """Of the first windows of the testbed's held-out text, by transformers alone, one by one."""
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoTokenizer,
    )

    from harness.testbed.world import documents

    config = AutoConfig.from_pretrained(folder)
    try:
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except ValueError:  # "Unrecognized configuration class"
        network = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert type(network.config).__name__ in (
        type(config).__name__,
        type(config.get_text_config()).__name__,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids: list[int] = []
    for text in documents("heldout"):
        inside = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += [tokenizer.bos_token_id, *inside, tokenizer.eos_token_id]
        if len(ids) >= WINDOWS * WINDOW:
            break
    losses = []
    for window in torch.tensor(ids[: WINDOWS * WINDOW]).view(WINDOWS, 1, WINDOW):
        logits = network.eval()(input_ids=window).logits[0, :-1].double()
        losses.append(-logits.log_softmax(-1).gather(-1, window[0, 1:, None]).mean())
    return float(torch.stack(losses).mean().exp())


class _Silent:
    """A watcher of a run that shows nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def _be_quiet() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")


def _shorten(message: str, folder: Path, path: Path) -> str:
    """A message of one line, without this run's folders."""
    return " ".join(message.split()).replace(str(folder), "FOLDER").replace(str(path), "GRID")


def _read(path: Path) -> list[Outcome]:
    if not path.exists():
        return []
    return [Outcome(**json.loads(line)) for line in path.read_text().splitlines()]


def write_tables(outcomes: Iterable[Outcome], names: Iterable[str], raw: Path, page: Path) -> None:
    """The CSV of all outcomes, and the page: a row an architecture, a column a method."""
    by_place = {(each.architecture, each.method): each for each in outcomes}
    rows = [
        by_place[name, method] for name in names for method in METHODS if (name, method) in by_place
    ]
    with raw.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    page.write_text("\n".join(describe(rows)) + "\n")


def describe(rows: list[Outcome]) -> Iterator[str]:
    names = list(dict.fromkeys(row.architecture for row in rows))
    counts = {
        kind: sum(row.outcome == kind for row in rows) for kind in ("works", "refused", "fails")
    }
    yield "# Architectures"
    yield ""
    yield (
        f"{len(names)} architectures of transformers as tiny random models, each with the six "
        "methods at 2 bits in groups of 32: reading, calibration, generation of training data, two "
        "steps of training, rounding, storing, perplexity, a task of choices and one of answers. "
        f"{counts['works']} of {len(rows)} combinations work, {counts['refused']} are refused as "
        f"the grid is read, {counts['fails']} fail later. Raw: `benchmarks/architectures.csv`. "
        "Made by"
    )
    yield ""
    yield '```sh title="Not run by the tests: takes hours"'
    yield "python -m benchmarks.architectures"
    yield "```"
    yield ""
    yield "**✓** works; a number: refused as the grid is read, for the reason below the table."
    yield ""
    yield "| architecture | class | " + " | ".join(METHODS) + " |"
    yield "|" + " --- |" * (2 + len(METHODS))
    reasons: dict[str, int] = {}
    for name in names:
        cells = []
        own = [row for row in rows if row.architecture == name]
        for row in own:
            if row.outcome == "works":
                cells.append("✓")
            elif row.outcome == "refused":
                cells.append(str(reasons.setdefault(_reason(row), len(reasons) + 1)))
            else:
                cells.append("**fails**")
        yield f"| {name} | {own[0].network} | " + " | ".join(cells) + " |"
    yield ""
    for reason, number in reasons.items():
        yield f"{number}. {reason}"


def _reason(row: Outcome) -> str:
    """The reason of a refusal without the place in the grid."""
    return row.reason.partition("GRID:")[2].partition(": ")[2] or row.reason


def main() -> int:
    from tests.support.families import ARCHITECTURES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=ARCHITECTURES, default=None)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--work", type=Path, default=Path("architectures.jsonl"), help="what is done already"
    )
    arguments = parser.parse_args()
    names = arguments.only or list(ARCHITECTURES)
    done = [] if arguments.only else _read(arguments.work)
    left = [name for name in names if name not in {each.architecture for each in done}]
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        for job in as_completed([pool.submit(try_architecture, name) for name in left]):
            for outcome in job.result():
                print(
                    f"{outcome.architecture:20}{outcome.method:14}{outcome.outcome:9}"
                    f"{outcome.seconds:6.1f} s  {outcome.reason}",
                    flush=True,
                )
                done.append(outcome)
            if not arguments.only:
                arguments.work.write_text("".join(f"{json.dumps(asdict(o))}\n" for o in done))
    if not arguments.only:
        write_tables(done, names, CSV, PAGE)
    return int(any(each.outcome == "fails" for each in done))


if __name__ == "__main__":
    sys.exit(main())
