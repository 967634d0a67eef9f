"""What tests do to Python inside a job: make stages slow, and files seen late. Nothing elsewhere.

TEST_STEP_S: seconds that each step of a training takes more. TEST_LATE_S: how much later than
it was written a value is seen.
"""

import os
import sys

if "SLURM_JOB_ID" in os.environ and "submitit.core._submit" in " ".join(sys.orig_argv):
    import time
    from pathlib import Path

    from harness.core import store
    from harness.run import runner as run

    said, seen = run._Progress.__call__, store.Store.has

    def slow(self, done, total, metrics):
        said(self, done, total, metrics)
        if "loss" in metrics:
            time.sleep(float(os.environ.get("TEST_STEP_S", "0")))

    def late(self, key):
        manifest = Path(self.root) / "values" / key / "manifest.json"
        wanted = float(os.environ.get("TEST_LATE_S", "0"))
        return seen(self, key) and time.time() - manifest.stat().st_mtime >= wanted

    run._Progress.__call__ = slow
    store.Store.has = late
    run.PROGRESS_S = 0.0
