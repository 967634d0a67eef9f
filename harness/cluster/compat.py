"""Private parts of submitit, each with the version that it was read in.

Not here: what is submitted (`harness.cluster.submit`).
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import submitit
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission
from submitit.slurm.slurm import SlurmExecutor

from harness.cluster import scheduler


def end_without_error(explain: Callable[[], None]) -> None:
    """In a job: where it is not queued again at its time limit, say why and end.

    submitit (1.5.4) raises UncompletedJobError out of its handler of the signal, in the midst of
    whatever is being computed, which would be taken for a failure of that; and CalledProcessError
    where SLURM does not take the job back.
    """
    number = submitit.JobEnvironment._usr_sig()
    handle = signal.getsignal(number)
    if not callable(handle):
        return

    def handle_softly(number: int, frame: FrameType | None) -> None:
        try:
            handle(number, frame)
        except (UncompletedJobError, subprocess.CalledProcessError):
            explain()
            raise SystemExit(1) from None

    signal.signal(number, handle_softly)


class Submitter(SlurmExecutor):  # type: ignore[misc]
    """submitit's executor (1.5.4), for parameters that it cannot leave out or repeat in an array.

    unset: parameters of sbatch that are not written; directives: lines that are, after the others.
    """

    def __init__(self, folder: Path, requeues: int, python: str | None = None) -> None:
        super().__init__(folder, max_num_timeout=requeues, python=python)
        self.unset: frozenset[str] = frozenset()
        self.directives: Sequence[str] = ()

    def write_script(self, jobs: int) -> str:
        """The text that sbatch would be given for an array of `jobs` jobs."""
        if jobs > 1:
            self.parameters["map_count"] = jobs
        return self._make_submission_file_text(self._submitit_command_str, "dry")

    def submit_array(self, calls: Sequence[DelayedSubmission]) -> str:
        """Submit calls, as an array where they are several; SLURM's id. Raises ClusterError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        script = self.folder / "submission.sh"
        script.write_text(self.write_script(len(calls)))
        pickles = [self.folder / f"{number}.pkl" for number in range(len(calls))]
        for call, pickle in zip(calls, pickles, strict=True):
            call.set_timeout(self.parameters["time"], self.max_num_timeout)
            call.dump(pickle)
        id = scheduler.submit(script, self.parameters["job_name"])
        for number, pickle in enumerate(pickles):
            name = id if len(calls) == 1 else f"{id}_{number}"
            submitit.SlurmJob(folder=self.folder, job_id=name, tasks=[0]).paths.move_temporary_file(
                pickle, "submitted_pickle"
            )
        return id

    def submit_command(self, command: str) -> str:
        """Submit a shell command in the place of calls; SLURM's id. Raises ClusterError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        script = self.folder / "submission.sh"
        script.write_text(self._make_submission_file_text(command, ""))
        return scheduler.submit(script, self.parameters["job_name"])

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        lines = super()._make_submission_file_text(command, uid).split("\n")
        named = re.compile(r"#SBATCH --([\w-]+)")
        kept = [line for line in lines if not ((at := named.match(line)) and at[1] in self.unset)]
        last = max(number for number, line in enumerate(kept) if named.match(line))
        return "\n".join([*kept[: last + 1], *self.directives, *kept[last + 1 :]])
