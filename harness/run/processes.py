"""Runs one stage in several processes, of this machine or of all nodes of a SLURM job.

torchrun starts them, on several nodes one of its own each, which srun starts. This process keeps
the claim and shows the progress; the others (`worker`) compute, and the first of them commits the
value. They end when this process does, however it ends: they watch their standard input, which
nobody else holds open. What the first wrote for all to read is removed once they have ended.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import IO, Any

import torch

from harness.core.errors import BitgridError, Outbid
from harness.core.files import write_json
from harness.core.installation import SAFE_PATH
from harness.core.scratch import Scratch
from harness.core.stage import Reporter, Stage, closure
from harness.core.store import Store
from harness.models import device
from harness.run.compute import Failed

PATIENCE_S = 20.0
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
# A scheduler tells each process of a step that its time ends; whoever has the claim acts on it.
_DEAF = ("bash", "-c", 'trap "" USR2; exec "$@"', "bash")
STAGES = "stages.json"  # in a stage's scratch folder: what it is made from again, inputs first
INPUTS = "inputs"  # in a stage's scratch folder: the copies of inputs that processes share


def check(stage: Stage[Any]) -> None:
    """Raise BitgridError where a stage asks for more nodes than this job has, or for more GPUs of
    each than there are here; of CPUs are enough."""
    nodes, there = stage.resources.nodes, torch.cuda.device_count()
    of_job = int(os.environ.get("SLURM_JOB_NUM_NODES", 1))
    if nodes > of_job:
        raise BitgridError(
            f"{stage} asks for {nodes} nodes and there is {of_job} here: `bitgrid launch` it on a "
            "SLURM cluster, or set nodes"
        )
    asked = stage.resources.gpus // nodes
    if asked > 1 and device().type == "cuda" and asked > there:
        raise BitgridError(f"{stage} asks for {asked} GPUs and this machine has {there}: set gpus")


def run_together(
    stage: Stage[Any],
    store: Store,
    scratch: Scratch,
    step: Reporter,
    note: Callable[[str], None],
) -> None:
    """Compute a stage into the store, in as many processes as it asks for GPUs.

    The processes make the stage again from its description, which lies in its scratch folder.
    `note` is told what a user should know of the inputs.

    Raises Failed where a process left a record, BitgridError where it was killed, Outbid where
    another owner has taken the stage over.
    """
    nodes, log = stage.resources.nodes, scratch.path / "processes.log"
    count = stage.resources.gpus // nodes
    starter = _on_nodes(nodes, scratch.path.name) if nodes > 1 else [*TORCHRUN, "--standalone"]
    command = [*starter, "--nproc-per-node", str(count)]
    command += ["-m", "harness.run.worker", "--attached", str(store.root), str(scratch.path)]
    worker_input = {above.key: above.description() for above in closure([stage])}
    write_json(log.parent / STAGES, worker_input)
    # Else torchrun allows one thread a process, and nothing would use the other cores.
    threads = max(1, torch.get_num_threads() // count)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, **SAFE_PATH}
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C comes to this process alone, which ends the others
        )
        assert process.stdin and process.stdout
        try:
            try:
                _follow(process.stdout, step, note)
            except Outbid:
                if not store.has(stage.key):
                    raise  # else they had kept the value, and what they told came late
            process.wait()
        finally:
            process.stdin.close()
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
            # Here, since a process that fails has the others ended before they could clean up.
            shutil.rmtree(log.parent / INPUTS, ignore_errors=True)
    if not store.has(stage.key):
        scratch.require()
        raise _cause(stage, store, log.read_text())


def _on_nodes(nodes: int, name: str) -> list[str]:
    """The command that starts torchrun on each node of this SLURM job, and ends all as one ends.

    The step shares what this process's own has. They meet at a free port of this node.
    """
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    step = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    step += ["--kill-on-bad-exit=1", "--unbuffered", "--input=all", *_DEAF, *TORCHRUN]
    step += ["--nnodes", str(nodes), "--rdzv-backend", "c10d", "--rdzv-id", name]
    return [*step, "--rdzv-endpoint", f"{socket.gethostname()}:{port}"]


def _follow(lines: IO[str], step: Reporter, note: Callable[[str], None]) -> None:
    """Pass on what the first process reports, a JSON object a line; a library may print others."""
    for line in lines:
        if line.startswith('{"done":'):
            progress = json.loads(line)
            step(progress["done"], progress["total"], progress["metrics"])
        elif line.startswith('{"note":'):
            note(json.loads(line)["note"])


def _cause(stage: Stage[Any], store: Store, log: str) -> BitgridError:
    """Why the processes ended: one that was killed explains what the others then met."""
    ended = re.findall(r"rank +: (\d+) .*\n +exitcode +: -(\d+)", log)
    # Not torchrun's SIGTERM, nor the SIGABRT by which a backend follows another process's error.
    killed = [(rank, signal) for rank, signal in ended if signal in ("4", "7", "9", "11")]
    if killed:
        rank, signal = killed[0]
        memory = ", as the system does where memory runs out" if signal == "9" else ""
        return BitgridError(f"process {rank} was killed by signal {signal}{memory}")
    for above in closure([stage]):
        record = store.failure(above.key)
        if record is not None and not store.has(above.key):
            own = above.key == stage.key
            message = record["message"]
            return Failed(above.key, message if own else f"{above.kind} failed: {message}")
    complaint = re.search(r"^(?:\[rank\d+\]: )?([\w.]+(?:Error|Exception)\b.*)$", log, re.MULTILINE)
    why = complaint[1] if complaint else "they do not say why"
    return BitgridError(f"the processes ended without a value: {why}")
