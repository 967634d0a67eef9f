"""One of the processes that compute a stage together: `python -m harness.run.worker STORE SCRATCH`.

Whoever starts them (torchrun for `processes`, srun) sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR
and MASTER_PORT. Each makes the stage from its description, loads the inputs, which the first
rebuilds for all, and runs it; the first keeps the value and writes its progress, and what a user
should know of the inputs, to standard output, a JSON object a line. The first failure is kept as
the stage's record. SCRATCH is `<store>/work/<key>/<token>`, the folder of whoever starts them and
has the claim; its name says which stage it is.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist

from harness.core.errors import Outbid
from harness.core.scratch import Scratch
from harness.core.secrets import hide_secrets
from harness.core.stage import Stage, listening
from harness.core.store import Store
from harness.models import device
from harness.run.compute import Failed, Values, compute, fail
from harness.run.plan import rebuild_stages
from harness.run.processes import INPUTS, STAGES

# Longer than it takes the first to write a large checkpoint while the others wait for it.
TIMEOUT = datetime.timedelta(hours=2)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.attached:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    progress, leads = own_stdout(), os.environ["RANK"] == "0"
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a scheduler's, for whoever started this one
    store = Store(options.store)
    scratch = Scratch(options.scratch)
    described = json.loads((scratch.path / STAGES).read_text())
    stage = rebuild_stages(described)[scratch.path.parent.name]
    try:
        join_processes()
        with _reporting(progress) if leads else contextlib.nullcontext():
            note = partial(_note, progress)
            compute(stage, _shared(stage, store, scratch, note), scratch, keeps=leads)
    except (Failed, Outbid) as failed:
        print(failed, file=sys.stderr)
        return 1
    except Exception as error:
        # What breaks in one process breaks the others' connections to it, a moment later.
        own = scratch.stands and store.failure(stage.key) is None
        if own and (unkept := fail(stage, error, store)):
            print(unkept, file=sys.stderr)
        print(hide_secrets(traceback.format_exc()), file=sys.stderr)
        return 1
    dist.destroy_process_group()
    return 0


def _shared(
    stage: Stage[Any], store: Store, scratch: Scratch, note: Callable[[str], None]
) -> Values:
    """The stage's inputs, of which those that are not kept are made by the first process.

    It writes them beside the stage's checkpoint and all read them from there, mapped, so that a
    machine holds a model once however many processes share it. A published model whose own files
    are mapped needs no copy: each process reads those.

    The copies stay as long as the processes do. A mapping holds no open file, so whether it
    outlives its file's name is up to the file system; whoever started the processes removes them.
    """
    leads = dist.get_rank() == 0
    folder, values = scratch.path / INPUTS, Values(store, check=False)
    if leads:
        shutil.rmtree(folder, ignore_errors=True)
    for above in (above for above in stage.inputs if not above.stored):
        own_files = [False]
        if leads:
            result = Values(store).of(above)
            if notice := above.notice(result):
                note(notice)
            own_files = [above.is_mapped(result)]
            if not own_files[0]:
                Store(folder).commit(above, result, {})
            del result  # what all hold is the copy
        dist.broadcast_object_list(own_files)  # the others wait here until it is written
        if own_files[0]:
            values.of(above)
        else:
            values.held[above.key] = Store(folder).load(above, check=False)
    return values


def join_processes() -> None:
    """One process, one device; and the group of all of them."""
    named = os.environ.get("BITGRID_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    if not named.startswith("cuda"):
        dist.init_process_group("gloo", timeout=TIMEOUT)
        return
    # First of all: whatever touches CUDA before would make a context on the first GPU as well. A
    # scheduler may show each process its own GPU alone, which is number 0 whatever LOCAL_RANK is.
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    os.environ["BITGRID_DEVICE"] = f"cuda:{torch.cuda.current_device()}"
    dist.init_process_group("cpu:gloo,cuda:nccl", timeout=TIMEOUT, device_id=device())


@contextlib.contextmanager
def _reporting(progress: TextIO) -> Iterator[None]:
    def say(done: int, total: int, metrics: Mapping[str, float]) -> None:
        _tell(progress, {"done": done, "total": total, "metrics": metrics})

    with listening(say):
        yield


def _tell(progress: TextIO, message: Mapping[str, Any]) -> None:
    print(json.dumps(message), file=progress, flush=True)


def _note(progress: TextIO, text: str) -> None:
    _tell(progress, {"note": text})


def own_stdout() -> TextIO:
    """Standard output for progress alone: what libraries print there goes to standard error."""
    progress = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return progress


def _leave(code: int) -> None:
    """End with `code`; after a failure at once.

    NCCL, taken down in order, waits for processes that wait for this one. Once it is gone, whoever
    started them ends them.
    """
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit()


def _end_with_stdin() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="harness.run.worker", description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument(
        "--attached", action="store_true", help="end as soon as standard input is closed"
    )
    return parser


if __name__ == "__main__":
    _leave(main())
