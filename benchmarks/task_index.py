"""What lm-eval's index of tasks costs a process, made by lm-eval and read from the user's cache.

    python -m benchmarks.task_index [--write] [--runs 3]

Each plan, worker and job that names a task of lm-eval's needs it. CPU seconds, the two in turn, the
import of lm-eval left out; the cache is a folder of its own.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

from lm_eval.tasks import TaskManager

from benchmarks.record import Record, time_in_turn
from harness import compat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="keep the figures")
    options = parser.parse_args()

    def read_kept() -> None:
        compat.make_task_manager.cache_clear()
        compat.make_task_manager(None)

    record = Record("task_index", baseline="lm-eval")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BITGRID_CACHE"] = folder
        forms = {"lm-eval": TaskManager, "kept": read_kept}
        seconds = time_in_turn(forms, options.runs, time.process_time)
    count = len(compat.make_task_manager(None).all_tasks)
    for form, values in seconds.items():
        record.add(f"index of {count} tasks, groups and tags", form, "CPU s", values)
    record.finish(options.write)


if __name__ == "__main__":
    main()
