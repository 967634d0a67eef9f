"""`harness.run.lane` of toys: `python -m tests.support.toy_lane STORE`."""

import sys

import tests.support.toys  # noqa: F401  (for what it registers)
from harness.run.lane import main

if __name__ == "__main__":
    main(sys.argv[1:])
