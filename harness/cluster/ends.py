"""Why a job is gone: by the log of its last attempt, and by SLURM's accounting where there is.

Not here: failures of stages, which are records in the store (`harness.run.compute`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from harness.cluster.scheduler import Account

NOTHING_KEPT = "and nothing was kept"  # of a time limit: what a job says that would only meet it
MEMORY = "out of memory (of the host)"


@dataclass(frozen=True)
class End:
    """Why a job ended that left no value and no record, in words.

    lacks: `hours` or `memory_gib`, where it would end so again with no more of that.
    """

    words: str
    lacks: str = ""


def explain_end(
    log: Path | None, account: Account | None = None, memory_gib: float = 0.0, hours: float = 0.0
) -> End:
    """Why a job ended that asked for so much memory and time.

    What the log tells comes first. Raises OSError where it cannot be read.
    """
    log_text = log.read_text(errors="replace") if log else ""
    text = re.split(_BEGIN, log_text)[-1]
    if own := re.findall(_OWN, text, re.MULTILINE):
        return End(own[-1], "hours" if NOTHING_KEPT in own[-1] else "")
    state = account.state if account else ""
    reason = _find_reason(text) or _STATES.get(state, "")
    if state == "OUT_OF_MEMORY" or reason == MEMORY:
        over = _OVER.search(text)
        share = int(over[1]) / max(1, int(over[2])) if over else 0.0
        peak = max(share * memory_gib, account.peak_gib if account else 0.0)
        return End(MEMORY + _describe_memory(peak, memory_gib), "memory_gib")
    if reason:
        return End(f"time limit of {hours:.3g} h" if reason == "time limit" and hours else reason)
    if log is None:
        return End(f"it ended as {state} before it wrote a log" if state else _UNSTARTED)
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return End(f"ended without a record; last line: {last.strip()[:100]}")


def _find_reason(text: str) -> str:
    return next((reason for pattern, reason in _ENDS if re.search(pattern, text)), "")


def _describe_memory(peak_gib: float, asked_gib: float) -> str:
    peak = [f"{peak_gib:.3g} GiB at its peak"] if peak_gib else []
    asked = [f"{asked_gib:.3g} GiB asked"] if asked_gib else []
    told = ", ".join([*peak, *asked])
    return f": {told}" if told else ""


_UNSTARTED = "cancelled before it started"
_OWN = r"^(?:bitgrid:|[\d:]{8}) ended: (.+)$"  # of a job's script, and of the job
_BEGIN = r"Starting with \w*JobEnvironment"  # submitit's, at each attempt
_OVER = re.compile(r"exceeded (?:\w+ )?memory limit \((\d+) > (\d+)\)")  # OverMemoryKill's
_ENDS = (  # the telling ones first: SLURM may log several for one end
    (r"exceeded (?:\w+ )?memory limit", MEMORY),
    (r"DUE TO TIME LIMIT", "time limit"),
    (r"DUE TO PREEMPTION", "preempted"),
    (r"DUE TO NODE FAILURE|NODE_FAIL", "node failure"),
    (r"oom[-_ ]kill|Out Of Memory", MEMORY),
    (r"DefaultCPUAllocator: can't allocate|^MemoryError|Cannot allocate memory", MEMORY),
    (r"User defined signal", "told of its end by `signal_delay_s` before it had begun"),
    (r"DUE TO JOB REQUEUE", "requeued"),
    (r"CANCELLED AT", "cancelled"),
    (r"error: .*: Killed\b", MEMORY),  # SIGKILL that SLURM did not send: the kernel's
)
_STATES = {
    "TIMEOUT": "time limit",
    "DEADLINE": "its deadline came",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node failure",
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "cancelled",
}
