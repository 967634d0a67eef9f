"""What would be a new Python as a fork of the tests' process: a new one would import torch first,
for ten seconds of a processor.

What a fork changes, in memory or in its environment, is its own. Where the process is the point (it
is another user's, must not import torch) or what is registered in it, a new one is started.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NoReturn

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from harness.cli.main import main


def run_forked(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    seconds: float = 900,
    before: Callable[[], None] = lambda: None,
) -> CompletedProcess[str]:
    """What becomes of `bitgrid words` in a folder, and what it prints.

    A plan that it keeps rests on what tests have registered here, and is made anew by other
    processes. environment: as of this process by default; seconds: how long it may take on a busy
    host; then it is killed, and TimeoutError raised; before: what is done first in the fork.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: threads sleep
            child = os.fork()
        if child == 0:
            streams = {1: out.fileno(), 2: err.fileno()}
            _run(words, folder, environment, streams, before)
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


class ForkedPopen(subprocess.Popen[Any]):
    """Popen whose `python -m module …` and `python -c code …` are forks; others are as ever."""

    def __init__(self, args: Any, *rest: Any, env: Any = None, **options: Any) -> None:
        program, *words = map(str, args)
        if words[:1] == ["-u"]:
            del words[0]
        if program == sys.executable and words[0] in ("-m", "-c"):
            # Called where the child has its streams, folder and session, it does not come back.
            options["preexec_fn"] = partial(_become, _name_forks(), words, env)
        super().__init__(args, *rest, env=env, **options)


def fork_processes(patch: pytest.MonkeyPatch) -> None:
    """Have processes that are started here, and by those, torchrun's too, be forks."""
    patch.setattr(subprocess, "Popen", ForkedPopen)
    patch.setattr(subprocess_handler, "Popen", ForkedPopen)


def find_forks() -> list[psutil.Process]:
    """Those of this process and of its forks, also where whoever started them is gone."""
    name = _name_forks()
    return [each for each in psutil.process_iter(["name"]) if each.info["name"] == name]


def _name_forks() -> str:
    own = Path("/proc/self/comm").read_text().strip()
    return own if own.startswith("fork-") else f"fork-{os.getpid()}"


def _become(name: str, words: Sequence[str], environment: Mapping[str, str] | None) -> NoReturn:
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # so that Popen has nothing to wait for
    Path("/proc/self/comm").write_text(name)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    option, code, *rest = words
    sys.stdin, sys.argv = os.fdopen(0, closefd=False), [option, *rest]

    def run_code() -> None:
        if option == "-m":
            runpy.run_module(code, run_name="__main__", alter_sys=True)
        else:
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})

    _leave_with(run_code, environment)


def _run(
    words: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None,
    streams: Mapping[int, int],
    before: Callable[[], None],
) -> NoReturn:
    def run_verb() -> int:
        os.chdir(folder)
        before()
        return main(words)

    for number, file in streams.items():
        os.dup2(file, number)
    _leave_with(run_verb, environment)


def _leave_with(act: Callable[[], int | None], environment: Mapping[str, str] | None) -> NoReturn:
    """Do something and end: what the tests' process had begun is its own to end."""
    status: int | None = 1
    try:
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        if environment is not None:
            given = dict(environment)
            os.environ.clear()
            os.environ.update(given)
        status = act()
    except SystemExit as left:  # of a command line that is none
        status = left.code if isinstance(left.code, int | None) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
