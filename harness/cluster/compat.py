"""Private parts of submitit, each with the version that it was read in.

Not here: what is submitted (`harness.cluster.submit`).
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

import submitit
from submitit.core.utils import UncompletedJobError


def end_without_error(explain: Callable[[], None]) -> None:
    """In a job: where it is not queued again at its time limit, say why and end.

    submitit (1.5.4) raises UncompletedJobError out of its handler of the signal, in the midst of
    whatever is being computed, which would be taken for a failure of that.
    """
    number = submitit.JobEnvironment._usr_sig()
    handle = signal.getsignal(number)
    if not callable(handle):
        return

    def handle_softly(number: int, frame: FrameType | None) -> None:
        try:
            handle(number, frame)
        except UncompletedJobError:
            explain()
            raise SystemExit(1) from None

    signal.signal(number, handle_softly)


def write_submission_file(executor: submitit.AutoExecutor, jobs: int) -> str:
    """The text of the file that sbatch would be given for an array of `jobs` jobs (1.5.4).

    submitit itself writes the same file, and hands it to sbatch at once.
    """
    inner = executor._executor
    if jobs > 1:
        inner.parameters["map_count"] = jobs
    return str(inner._make_submission_file_text(inner._submitit_command_str, "dry"))
