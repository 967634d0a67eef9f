"""One of the processes that share a grid on a machine: `python -m harness.run.lane STORE`.

It reads jobs from standard input, a JSON object a line,

    {"plan": FILE, "keys": [KEY, …], "gpus": "0,1", "log": FILE}

computes their stages in order, has what is printed meanwhile in the log, and says on standard
output what it does, an object a line:

    {"begin": KEY}  {"step": [DONE, TOTAL, METRICS]}  {"end": [KEY, STATE, REASON]}
    {"waiting": [OWNER, …]}  {"note": TEXT}  {"over": null}

It ends as soon as standard input is closed, however whoever started it ended. Not here: which
process gets which job (`harness.cluster.workers`).
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from harness.core.errors import BitgridError, show_text
from harness.core.secrets import hide_secrets
from harness.core.store import Store
from harness.run import plan as plans
from harness.run.plan import Plan
from harness.run.runner import Share, run
from harness.run.worker import own_stdout

CLOCK = r"\d\d:\d\d:\d\d "  # opens what a lane itself writes into a log


@dataclass(frozen=True)
class Told:
    """A watcher that passes on what it is told."""

    out: TextIO
    plan: Plan

    def begin(self, key: str) -> None:
        self._tell(begin=key)
        self._log(f"begin {self._name(key)}")

    def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        self._tell(step=[done, total, dict(metrics)])

    def end(self, key: str, state: str, reason: str) -> None:
        self._tell(end=[key, state, reason])
        self._log(f"{state} {self._name(key)}{reason and ': ' + reason}")

    def waiting(self, owners: list[str]) -> None:
        self._tell(waiting=owners)

    def note(self, text: str) -> None:
        self._tell(note=text)
        self._log(f"note: {text}")

    def over(self) -> None:
        self._tell(over=None)

    def _name(self, key: str) -> str:
        node = self.plan.nodes[key]
        return f"{node.kind} {node.title} ({key[:8]})"

    def _log(self, text: str) -> None:
        print(time.strftime("%H:%M:%S"), hide_secrets(show_text(text)), file=sys.stderr, flush=True)

    def _tell(self, **message: Any) -> None:
        print(json.dumps(message), file=self.out, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="harness.run.lane", description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--retry-before", type=float, default=0.0)
    options = parser.parse_args(arguments)
    out, jobs = own_stdout(), queue.SimpleQueue[str]()
    threading.Thread(target=_read_jobs, args=[jobs], daemon=True).start()
    store, read_plan = Store(options.store), lru_cache(1)(plans.read)
    while True:
        job = json.loads(jobs.get())
        with open(job["log"], "a") as log:  # of this job, from here on
            for stream in (sys.stdout, sys.stderr):
                os.dup2(log.fileno(), stream.fileno())
        plan = read_plan(Path(job["plan"]))
        told = Told(out, plan)
        if job["gpus"]:  # of a stage that several processes compute: those see these alone
            os.environ["CUDA_VISIBLE_DEVICES"] = job["gpus"]
        share = Share(tuple(job["keys"]), patience_s=0.0)
        try:
            run(plan, store, told, options.retry_before, share)
        except BitgridError as error:  # this machine lacks what a stage needs
            told.note(str(error))
            for key in share.keys:
                if not store.has(key):
                    told.end(key, "failed", str(error))
        told.over()


def _read_jobs(jobs: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
