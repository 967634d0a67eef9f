"""Why a job ended: its log's last attempt, accounting, and what is said of memory and time."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cluster.ends import MEMORY, End, explain_end
from harness.cluster.scheduler import Account

BEGIN = "submitit INFO (2026-11-23 06:00:00,123) - Starting with JobEnvironment(job_id=7_1)\n"
TORN = "slurmstepd: error: *** STEP 7.0 ON node1 CANCELLED AT 2026-11-23T07:00:00"
OVER = "slurmstepd: error: StepId=7.0 exceeded memory limit (3221225472 > 2147483648), being killed"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{BEGIN}{TORN} DUE TO TIME LIMIT ***\n", "time limit of 2 h"),
        (f"{BEGIN}{TORN} DUE TO PREEMPTION ***\n", "preempted"),
        (f"{BEGIN}{TORN} DUE TO JOB REQUEUE ***\n", "requeued"),
        (
            "srun: error: node1: task 0: User defined signal 2\n",
            "told of its end by `signal_delay_s` before it had begun",
        ),
        (f"{BEGIN}{TORN} DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***\n", "node failure"),
        (f"{BEGIN}{TORN} ***\nsrun: error: node1: task 0: Killed\n", "cancelled"),
        (
            f"{BEGIN}{TORN.replace('STEP 7.0', 'JOB 7')} DUE TO TIME LIMIT ***\n{TORN} ***\n",
            "time limit of 2 h",
        ),
        (f"{BEGIN}{TORN} DUE TO PREEMPTION ***\n{BEGIN}{TORN} ***\n", "cancelled"),
        (
            f"{BEGIN}{TORN} DUE TO TIME LIMIT ***\n{BEGIN}Bus error\n\n",
            "ended without a record; last line: Bus error",
        ),
        (
            f"{BEGIN}{TORN} DUE TO TIME LIMIT ***\nbitgrid: ended: the line of setup 'x' failed\n",
            "the line of setup 'x' failed",
        ),
    ],
)
def test_why_a_job_ended_is_read_from_the_log_of_its_last_attempt(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "log").write_text(text)
    assert explain_end(tmp_path / "log", hours=2.0) == End(words)


@pytest.mark.parametrize(
    ("text", "account", "peak"),
    [
        (f"{OVER}\n{TORN} ***\n", None, "3 GiB at its peak, "),
        (
            f"{OVER.replace('StepId=7.0', 'Job 7')}\n",
            Account("CANCELLED", 2.5),
            "3 GiB at its peak, ",
        ),
        (
            "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks\n",
            None,
            "",
        ),
        ("slurmstepd: error: Detected 2 oom-kill event(s) in step 7.0 cgroup.\n", None, ""),
        (
            "srun: error: node1: task 0: Out Of Memory\n",
            Account("FAILED", 1.97),
            "1.97 GiB at its peak, ",
        ),
        ("srun: error: node1: task 0: Killed\n", None, ""),
        (
            "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you\n",
            None,
            "",
        ),
        (f"{TORN} ***\n", Account("OUT_OF_MEMORY", 2.0), "2 GiB at its peak, "),
        (None, Account("OUT_OF_MEMORY"), ""),
    ],
)
def test_memory_of_the_host_in_all_forms(
    tmp_path: Path, text: str | None, account: Account | None, peak: str
) -> None:
    log = None if text is None else tmp_path / "log"
    if log is not None:
        log.write_text(f"{BEGIN}{text}")
    end = explain_end(log, account, memory_gib=2.0)
    assert end == End(f"{MEMORY}: {peak}2 GiB asked", "memory_gib")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("", "cancelled before it started"),
        ("CANCELLED", "cancelled"),
        ("NODE_FAIL", "node failure"),
        ("TIMEOUT", "time limit of 2 h"),
        ("FAILED", "it ended as FAILED before it wrote a log"),
    ],
)
def test_without_a_log_accounting_says_it(state: str, words: str) -> None:
    assert explain_end(None, Account(state) if state else None, hours=2.0) == End(words)
