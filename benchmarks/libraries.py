"""Ours against the libraries' on one model, text and evaluation, at equal bits and group sizes.

    OMP_NUM_THREADS=1 python -m benchmarks.libraries --out benchmarks/libraries.csv \\
        --models testbed:64 $BITGRID_SHARED/models/stories260K:0

Each case is a process of its own on the CPU: perplexity by `testbed-ppl`, its first 64 windows of
512 tokens; processor seconds of the method alone, of one thread, since other work may run on the
machine (what it computes of the model, its text read already; a library's import apart); the peak
of the process's memory until then, PyTorch and the model in it. A case that the plan refuses is a
row with the reason. Bits differ where a library stores scales or zero points in other types.
Methods that the installation lacks are left out, and named. MODEL:0 compares per channel. With
`--only METHOD ...` the file's rows of other methods stay as they are.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import multiprocessing
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from harness.config.settings import configure
from harness.core.errors import BitgridError
from harness.core.execution import execute
from harness.core.stage import closure
from harness.evaluation.evaluations import build_evaluation
from harness.evaluation.scores import Scores
from harness.method import METHODS
from harness.models import Model, pretrained, read_layer_shapes

WINDOWS = 64
MODULES = {"nvidia-modelopt": "modelopt.torch.quantization"}  # named otherwise than the package
COLUMNS = ["model", "compared", "method", "settings", "bits_per_weight", "ppl", "seconds"]
COLUMNS += ["import_seconds", "peak_mib", "versions", "refused"]
TUNED = {"text": "testbed", "sequences": 32, "length": 256, "batch_size": 8, "iterations": 30}


def list_cases(group: int) -> list[tuple[str, str, dict[str, Any]]]:
    """What is compared with what: heading, method, settings."""
    cases: list[tuple[str, str, dict[str, Any]]] = [("16 bits", "bf16", {})]
    for bits in (3, 2):
        for symmetric, kind in ((False, "int-asym"), (True, "int-sym")):
            heading = f"nearest {kind} {bits} bits"
            format = {"name": kind, "bits": bits, "group_size": group}
            theirs = {"bits": bits, "group_size": group, "symmetric": symmetric}
            cases += [(heading, "rtn", {"format": format})]
            cases += [(heading, name, theirs) for name in ("torchao", "compressed-tensors")]
        tuned = {"bits": bits, "group_size": group}
        for scales in ("max", "mse"):
            theirs = tuned | {"scales": scales}
            cases += [(f"nearest int-sym {bits} bits", "modelopt", theirs)]
    if group:
        nf = {"name": "nf", "bits": 4, "group_size": group, "asymmetric": False}
        cases += [("nearest nf 4 bits", "rtn", {"format": nf})]
        for double in (False, True):
            theirs = {"group_size": group, "double_quant": double}
            cases += [("nearest nf 4 bits", "bitsandbytes", theirs)]
    for bits in (3, 2) if group else ():
        tuned = {"bits": bits, "group_size": group}
        cases += [(f"signround {bits} bits", "auto-round", tuned | {"symmetric": False} | TUNED)]
        read = {key: TUNED[key] for key in ("text", "sequences", "length", "batch_size")}
        rounding = {"name": "signround", "steps": TUNED["iterations"], **read}
        ours = {"format": {"name": "int-asym", **tuned}, "rounding": rounding}
        cases += [(f"signround {bits} bits", "signround", ours)]
        cases += [(f"hqq {bits} bits", "hqq", tuned)]
        read = {key: TUNED[key] for key in ("text", "sequences", "length")}
        cases += [(f"gptq {bits} bits", "llmcompressor", tuned | {"symmetric": False} | read)]
        rounding = {"name": "gptq", "true_sequential": True, "act_order": True, **read}
        ours = {"format": {"name": "int-asym", **tuned}, "rounding": rounding}
        cases += [(f"gptq {bits} bits", "gptq", ours)]
    learned = {"bits": 2, "group_size": group, "lr": 1e-4} | TUNED
    return [*cases, ("nearest int-sym 2 bits", "torchao-qat", learned)]


def measure(model: str, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The figures of one case, computed in this process."""
    method = configure(METHODS.find(name).method, settings)
    shapes = read_layer_shapes(model)
    method.check(shapes)
    base = pretrained(model, "bfloat16")
    root = method.build(base, 0)
    began = time.process_time()
    for package in method.needs:
        importlib.import_module(MODULES.get(package, package.replace("-", "_")))
    imported = time.process_time() - began
    values, spent, peak = dict[str, Any](), 0.0, 0
    with tempfile.TemporaryDirectory() as work:
        for stage in closure([root, build_evaluation(root, "testbed-ppl", base, limit=WINDOWS)]):
            folder = Path(work, stage.key)
            folder.mkdir()
            began = time.process_time()
            values[stage.key] = value = execute(stage, values, folder)
            if isinstance(value, Model) and (stage is not base or root is base):
                spent += time.process_time() - began
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    quantised, scores = values[root.key], value
    assert isinstance(scores, Scores)
    packages = ("torch", "transformers", *method.needs)
    return {
        "bits_per_weight": f"{quantised.bits_per_weight():.4f}",
        "ppl": f"{scores.rows[0].value:.4f}",
        "seconds": f"{spent:.2f}",
        "import_seconds": f"{imported:.2f}" if method.needs else "",
        "peak_mib": peak,
        "versions": ", ".join(f"{each} {version(each)}" for each in packages),
    }


def run_case(model: str, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """`measure`, or why the plan refuses it."""
    torch.set_num_threads(1)
    try:
        return measure(model, name, settings)
    except BitgridError as error:
        return {"refused": str(error)}


def read_rows(file: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """The rows of an earlier run, by model, heading, method and settings."""
    with file.open(newline="") as lines:
        return {tuple(row[each] for each in COLUMNS[:4]): row for row in csv.DictReader(lines)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path)
    options.add_argument("--models", nargs="+", default=["testbed:64"])
    options.add_argument("--only", nargs="+", metavar="METHOD", help="methods to run")
    chosen = options.parse_args()
    before = read_rows(chosen.out) if chosen.only else {}
    known, rows, fork = METHODS.load(), [], multiprocessing.get_context("fork")
    for model, group in (each.rsplit(":", 1) for each in chosen.models):
        for heading, name, settings in list_cases(int(group)):
            if chosen.only and name not in chosen.only:
                key = (Path(model).name, heading, name, json.dumps(settings))
                rows += [before[key]] if key in before else []
                continue
            if name not in known:
                print(f"{heading}: no method {name} is installed", flush=True)
                continue
            first = {"model": Path(model).name, "compared": heading, "method": name}
            with fork.Pool(1) as pool:
                figures = pool.apply(run_case, (model, name, settings))
            row = first | {"settings": json.dumps(settings)} | figures
            rows.append(row)
            print(*row.values(), flush=True)
    if chosen.out is not None:
        with chosen.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
