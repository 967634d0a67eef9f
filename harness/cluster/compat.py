"""Private parts of submitit, each with the version that it was read in.

Not here: what is submitted (`harness.cluster.submit`).
"""

from __future__ import annotations

import submitit


def write_submission_file(executor: submitit.AutoExecutor, jobs: int) -> str:
    """The text of the file that sbatch would be given for an array of `jobs` jobs (1.5.4).

    submitit itself writes the same file, and hands it to sbatch at once.
    """
    inner = executor._executor
    if jobs > 1:
        inner.parameters["map_count"] = jobs
    return str(inner._make_submission_file_text(inner._submitit_command_str, "dry"))
