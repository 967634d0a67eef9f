"""`bitgrid` in a fork of the tests' process: a new Python would import torch first, for seconds.

What a fork changes, in memory or in its environment, is its own. Where the process is the point (it
is killed, is another user's, must not import torch) or what is registered in it, a new one is
started.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import NoReturn

from harness.cli.main import main


def run_forked(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    seconds: float = 900,
) -> CompletedProcess[str]:
    """What becomes of `bitgrid words` in a folder, and what it prints.

    A plan that it keeps rests on what tests have registered here, and is made anew by other
    processes. environment: as of this process by default; seconds: how long it may take on a busy
    host; then it is killed, and TimeoutError raised.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: threads sleep
            child = os.fork()
        if child == 0:
            streams = {1: out.fileno(), 2: err.fileno()}
            _run(words, folder, os.environ if environment is None else environment, streams)
        end = time.monotonic() + seconds
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise TimeoutError(f"bitgrid {' '.join(words)}: not at its end after {seconds} s")
            time.sleep(0.02)
        printed = []
        for stream in (out, err):
            stream.seek(0)
            printed.append(stream.read().decode(errors="replace"))
    return CompletedProcess(list(words), os.waitstatus_to_exitcode(ended[1]), *printed)


def _run(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], streams: Mapping[int, int]
) -> NoReturn:
    """Never returns: what the tests' process had begun is its own to end."""
    status = 1
    try:
        for number, file in streams.items():
            os.dup2(file, number)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        given = dict(environment)
        os.environ.clear()
        os.environ.update(given)
        os.chdir(folder)
        status = main(words)
    except SystemExit as left:  # of a command line that is none
        status = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
