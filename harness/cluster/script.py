"""The shell lines of a job's script between sbatch's parameters and the job itself.

A command that fails ends the job there, with a line `bitgrid: ended: …` in its log. Not here: the
parameters (`harness.cluster.submit`).
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.cluster.snapshots import SUMS
from harness.core.errors import ClusterError
from harness.core.paths import NODE_SCRATCH

# Of the line before; `ends` reads what it says.
_CHECK = 'bitgrid_check() { [ "$1" -eq 0 ] || { echo "bitgrid: ended: $2"; exit 1; }; }'


def write_lines(setup: Iterable[str], code: Path, scratch: str | None = None) -> list[str]:
    """A profile's `setup`, each command followed by a look at its status; then the snapshot's code.

    scratch: the profile's `node_scratch`. Raises ClusterError where bash cannot read the setup.
    """
    lines = [_CHECK]
    for command in _split_commands(setup):
        lines += [*command, _check(f"the line of setup {'; '.join(command)!r} failed")]
    if scratch:
        # A variable that is not set there would leave another path, as `/` of `$TMPDIR/`.
        lines += [f'( set -u; : "{scratch}" ) 2> /dev/null']
        lines += [_check(f"node_scratch: a variable of {scratch} is not set on the node")]
        lines += [f'export {NODE_SCRATCH}="{scratch}"']
    return [*lines, *_take_code(code)]


def _split_commands(setup: Iterable[str]) -> Iterator[list[str]]:
    """Lines by the command that they are of, which may go over several. Raises ClusterError."""
    command: list[str] = []
    why = ""
    for line in setup:
        command.append(line)
        if not line.endswith("\\"):
            words = ["bash", "-n", "-c", "\n".join(command)]
            why = subprocess.run(words, capture_output=True, text=True).stderr
            if not why:
                yield command
                command = []
    if command:
        last = why.strip().splitlines()[-1:] or ["it ends in the middle of a line"]
        raise ClusterError(f"setup: bash cannot read {command[0]!r}: {last[0]}")


def _take_code(code: Path) -> list[str]:
    """The snapshot's code, not that of the folder one is in; and the CPUs asked for, which srun no
    longer takes over by itself.

    What the snapshot lacks would be imported from elsewhere, or be missed in a traceback.
    """
    folder = shlex.quote(str(code))
    lacking = f"the snapshot {code} is not the code that was launched; launch again"
    return [
        f"(cd {folder} && sha256sum --status --check {SUMS}) 2> /dev/null",
        _check(lacking),
        f"export PYTHONPATH={folder}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
        # A profile may ask for CPUs by GPU, or for a whole node.
        "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}",
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}",
    ]


def _check(words: str) -> str:
    return f"bitgrid_check $? {shlex.quote(words)}"
