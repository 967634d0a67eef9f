"""Raw figures of a benchmark, each repetition, with what they were measured on.

    record = Record("objectives", baseline="published")
    record.add("1024 tokens", "ours", "s", seconds["ours"], tokens=1024)
    record.finish(write=True)                           # benchmarks/results/objectives.json

    python -m benchmarks.record > docs/speed.md         # all results that are there, as tables

A case is what all forms of a benchmark do; the baseline is the form that the others are compared
with, measured in the same run. Sizes (`tokens=1024`) are what a cost may grow with: of three or
more, the table says with which power it does.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

from harness.core.provenance import describe_machine, find_commit, find_versions

ROOT = Path(__file__).parents[1]
FOLDER, PAGE = ROOT / "benchmarks/results", ROOT / "docs/speed.md"


@dataclass(frozen=True)
class Figure:
    """What one form took of one case: `values` are all repetitions, in `unit`."""

    case: str
    form: str
    unit: str
    values: list[float]
    sizes: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return median(self.values)


@dataclass
class Record:
    """The figures of one benchmark. `baseline`: the form that others are compared with, if any."""

    name: str
    baseline: str | None = None
    figures: list[Figure] = field(default_factory=list)

    def add(
        self, case: str, form: str, unit: str, values: Sequence[float], **sizes: float
    ) -> Figure:
        """Keep a figure: every repetition, in `unit` (s, MiB, tokens/s). Raises ValueError where
        there is none, or one is no finite number."""
        if not values or not all(math.isfinite(each) for each in values):
            raise ValueError(f"{self.name}: {case}, {form}: no finite figures: {list(values)}")
        figure = Figure(case, form, unit, [float(f"{each:.4g}") for each in values], sizes)
        self.figures.append(figure)
        return figure

    def finish(self, write: bool = False) -> None:
        """Print the figures as a table; where asked, write them to benchmarks/results/."""
        print("\n".join(_tabulate(self.figures, self.baseline)))
        if write:
            FOLDER.mkdir(exist_ok=True)
            text = json.dumps({**self.describe(), **asdict(self)}, indent=1)
            (FOLDER / f"{self.name}.json").write_text(text + "\n")

    def describe(self) -> dict[str, Any]:
        """What the figures were measured on, when and by what command."""
        from harness.models import device

        machine = describe_machine(device())
        del machine["host"]
        if machine["device"] == "cpu":
            machine["device_name"] = _find_processor() or machine["device_name"]
        words = ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
        return {
            "command": " ".join(words),
            "date": time.strftime("%Y-%m-%d"),
            "commit": find_commit(ROOT.glob("*/**/*.py")),
            **machine,
            "versions": find_versions(["transformers"]),
        }


def time_in_turn(
    forms: Mapping[str, Callable[[], object]],
    repetitions: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """The seconds of each form, one after another in turn, so that what else the machine does meets
    all of them; after one run of each that is not counted.

    clock: `time.process_time` for those of the processor, which is what one thread takes on an idle
    machine, nearly, however busy this one is.
    """
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for repetition in range(repetitions + 1):
        for form, run in forms.items():
            began = clock()
            run()
            if repetition:
                seconds[form].append(clock() - began)
    return seconds


def compare(figure: Figure, baseline: Figure) -> str:
    """A figure in words of its baseline's: `0.51 ×`, and `1/183` of what is much less."""
    ratio = figure.median / baseline.median
    return f"{ratio:.3g} ×" if ratio >= 0.1 else f"1/{1 / ratio:.3g}"


def measure_growth(figures: Iterable[Figure], size: str) -> float | None:
    """The power of a size with which medians grow: the slope of their logarithms; None below three
    sizes."""
    places = [(f.sizes[size], f.median) for f in figures if size in f.sizes]
    if len({place for place, _ in places}) < 3:
        return None
    logs = [(math.log(place), math.log(cost)) for place, cost in places]
    return linear_regression(*zip(*logs, strict=True)).slope


def _find_processor() -> str | None:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return None


def _tabulate(figures: Sequence[Figure], baseline: str | None) -> Iterator[str]:
    yield "| case | form | median | least to most | of how many | to the baseline |"
    yield "| :-- | :-- | --: | --: | --: | --: |"
    bases = {(f.case, f.unit): f for f in figures if f.form == baseline}
    for figure in figures:
        base = bases.get((figure.case, figure.unit))
        ratio = "–" if base is None or base is figure else compare(figure, base)
        spread = f"{min(figure.values):.4g} to {max(figure.values):.4g}"
        cells = (figure.case, figure.form, f"{figure.median:.4g} {figure.unit}", spread)
        yield f"| {' | '.join(cells)} | {len(figure.values)} | {ratio} |"


def _describe_growth(figures: Sequence[Figure]) -> Iterator[str]:
    order = sorted(figures, key=lambda f: (f.form, f.unit))
    for (form, unit), group in groupby(order, key=lambda f: (f.form, f.unit)):
        alike = list(group)
        for size in dict.fromkeys(size for figure in alike for size in figure.sizes):
            # Others are held: of two sizes that both vary, each is followed where the other stands.
            others: dict[Any, list[Figure]] = {}
            for each in alike:
                rest = tuple(sorted(item for item in each.sizes.items() if item[0] != size))
                others.setdefault(rest, []).append(each)
            slopes = [measure_growth(some, size) for some in others.values()]
            for power in [slope for slope in slopes if slope is not None][:1]:
                yield f"`{form}` ({unit}) grows with {size} to the power of {power:.2f}."


@dataclass(frozen=True)
class Goal:
    """What was aimed at of a figure: in words of its baseline, or of its own."""

    what: str
    aim: str
    name: str = ""  # of the benchmark; "" where there is none yet
    case: str = ""
    form: str = ""
    unit: str = "CPU s"
    is_absolute: bool = False  # the figure itself, not what it is of its baseline
    remark: str = ""

    def say(self) -> str:
        """What was measured."""
        path = FOLDER / f"{self.name}.json"
        if not self.name or not path.exists():
            return self.remark or "not measured"
        kept = json.loads(path.read_text())
        at = {
            (f["form"], f["unit"]): Figure(**f) for f in kept["figures"] if f["case"] == self.case
        }
        figure = at[self.form, self.unit]
        base = at.get((kept["baseline"], self.unit), figure)
        said = f"{figure.median:.3g} {self.unit}" if self.is_absolute else compare(figure, base)
        return f"{said} ({self.remark})" if self.remark else said


_FAKE, _LAYER = "fake_quantization", "linear 1536 x 576, 1024 tokens, bfloat16"
_STEP = "step of SmolLM2-135M, 4 x 256 tokens, bfloat16"
_CAKLD = "cakld, 1024 tokens, 49152 words, bfloat16"
GOALS = (
    Goal(
        "clip search of 256 x 512, to the published form",
        "1/300",
        "clip_search",
        "int-asym 2 bits, 512 tokens, 10 x 10 candidates, 256 x 512",
        "this search",
    ),
    Goal("CAKLD from states to gradient, time", "0.25 ×", "objectives", _CAKLD, "ours"),
    Goal("the same, memory", "1/20", "objectives", _CAKLD, "ours", "MiB"),
    Goal("linear layer rounded to NF3, to the plain one", "1.2 ×", _FAKE, _LAYER, "nf3"),
    Goal("step at int2, to an unquantised one", "1.05 ×", _FAKE, _STEP, "int2"),
    Goal("step at NF3", "1.05 ×", _FAKE, _STEP, "nf3"),
    Goal(
        "step with the teacher's states stored, to one that runs the teacher",
        "0.6 ×",
        "teacher_states",
        "step in bfloat16, 4 × 256 tokens, 49152 words",
        "states stored",
        remark="without any teacher it is as long",
    ),
    Goal(
        "tasks of lm-eval in float32, to the lm-eval command",
        "0.5 ×",
        "evaluation-float32",
        "all 4",
        "harness",
        remark="8 items a task, and lm-eval loads the model for each; not measured in bfloat16",
    ),
    Goal(
        "planning 1,000 cells",
        "2 s",
        "engine",
        "plan of 1000 cells, seeds",
        "anew",
        is_absolute=True,
        remark="half of it imports",
    ),
    Goal("methods, after the code changed", "0.5 s", "engine", "methods", "read", is_absolute=True),
    Goal("methods, remembered", "0.5 s", "engine", "methods", "remembered", is_absolute=True),
    Goal(
        "a finished grid at a new place",
        "1 s",
        "engine",
        "a grid of 10 values",
        "finished, at a new place",
        is_absolute=True,
        remark="its report",
    ),
    Goal("GPTQ and clip of SmolLM2-135M, to the libraries' own", "faster than each"),
    Goal("`make demo` on two cores, after installation", "180 s"),
    Goal("anything on a GPU", "see `benchmarks/gpu.py`", "gpu", remark="not measured"),
)


def write_page() -> Iterator[str]:
    """The lines of docs/speed.md: what was aimed at, then each file of benchmarks/results/."""
    yield "# Speed\n"
    yield "What runs cost, each beside a plain or published form in the same run. All figures are"
    yield "medians of `benchmarks/results/*.json`, which have every repetition, the device,"
    yield "versions and the commit. CPU s are seconds of a processor, which others on the machine"
    yield "disturb least. Nothing was measured on a GPU; `python -m benchmarks.gpu --write` does."
    yield "This page is made by `python -m benchmarks.record`.\n"
    yield "| what | aimed at | measured |\n| :-- | --: | --: |"
    for goal in GOALS:
        yield f"| {goal.what} | {goal.aim} | {goal.say()} |"
    for path in sorted(FOLDER.glob("*.json")):
        kept = json.loads(path.read_text())
        figures = [Figure(**each) for each in kept["figures"]]
        yield f"\n## {kept['name']}\n\n`{kept['command']}`\n"
        versions = ", ".join(f"{name} {number}" for name, number in kept["versions"].items())
        threads = f"{kept['threads']} thread{'s' * (kept['threads'] != 1)}"
        yield f"{kept['device_name']}, {threads}, Python {kept['python']}, {versions};"
        base = f" Baseline: {kept['baseline']}." if kept["baseline"] else ""
        yield f"{kept['date']}, commit {str(kept['commit'])[:9]}.{base}\n"
        yield from _tabulate(figures, kept["baseline"])
        growth = list(_describe_growth(figures))
        if growth:
            yield "\n" + "\n".join(growth)


if __name__ == "__main__":
    print("\n".join(write_page()))
