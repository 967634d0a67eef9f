"""What tests do to Python inside a job: make stages slow, and files seen late. Nothing elsewhere.

TEST_STEP_S: seconds that each step of a training takes more. TEST_LATE_S: how much later than
it was written a value is seen. TEST_HOG_GIB: memory that is asked for at step TEST_HOG_STEP, by
TEST_HOG_BY: `python`, which writes to it, or `torch`.
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
            if done == int(os.environ.get("TEST_HOG_STEP", "0")):
                take(int(float(os.environ["TEST_HOG_GIB"]) * 2**30))

    def take(size):
        if os.environ["TEST_HOG_BY"] == "torch":
            import torch

            torch.empty(size, dtype=torch.uint8)
        else:
            held = b"x" * size
            time.sleep(10)  # longer than SLURM takes to look
            del held

    def late(self, key):
        manifest = Path(self.root) / "values" / key / "manifest.json"
        wanted = float(os.environ.get("TEST_LATE_S", "0"))
        return seen(self, key) and time.time() - manifest.stat().st_mtime >= wanted

    run._Progress.__call__ = slow
    store.Store.has = late
    run.PROGRESS_S = 0.0
