"""SLURM's commands as far as a launch calls them, as shell scripts on PATH: no daemon behind them.

`queue` is what squeue prints; what was submitted and cancelled is read back. The real ones are met
in tests/slurm.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.cluster.launches import Launch, Placed

SCRIPTS = {
    "squeue": 'test -f $LAB/down && { cat $LAB/down >&2; exit 1; }; echo "$@" >> $LAB/asked\n'
    "cat $LAB/queue",
    "sbatch": 'n=$(($(cat $LAB/count) + 1)); echo $n > $LAB/count; eval "file=\\${$#}"\n'
    "test -f $LAB/refuse && test $n -ge $(head -1 $LAB/refuse) &&"
    " { tail -n +2 $LAB/refuse >&2; exit 1; }\n"
    'cp "$file" $LAB/sbatch.$n; name=$(sed -n "s/^#SBATCH --job-name=//p" "$file")\n'
    'echo "bitgrid|$n|N/A|PENDING|Priority||1:00:00|$name" >> $LAB/queue\n'
    "cat $LAB/noise; test -f $LAB/late && { cat $LAB/late >&2; exit 1; }\n"
    "echo $n",
    "scancel": 'echo "$@" >> $LAB/cancelled',
    "scontrol": 'cat $LAB/noise $LAB/partitions; echo "MaxArraySize            = 1001"',
    "sacctmgr": 'cat $LAB/noise; case "$*" in *assoc*) cat $LAB/limits;; *) cat $LAB/qos;; esac',
    "sacct": 'echo "$@" >> $LAB/accounted; cat $LAB/accounts',
    "srun": "exit 1",
}


EMPTY = dict.fromkeys(("queue", "limits", "qos", "partitions", "accounts", "noise"), "")


@dataclass(frozen=True)
class Slurm:
    folder: Path

    def limit(self, assoc: str = "", qos: str = "", partitions: str = "") -> None:
        """Lines as sacctmgr and scontrol print them."""
        for name, text in {"limits": assoc, "qos": qos, "partitions": partitions}.items():
            (self.folder / name).write_text(text)

    def queue(self, *lines: str, noise: str = "", nodes: str = "", left: str = "1:00:00") -> None:
        """Jobs as id|index|state|reason|name, in the form that squeue is asked for."""
        entries = [line.split("|", 4) for line in lines]
        asked = [
            f"bitgrid|{job}|{task}|{state}|{reason}|{nodes}|{left}|{name}\n"
            for job, task, state, reason, name in entries
        ]
        (self.folder / "queue").write_text(noise + "".join(asked))

    def down(
        self, words: str = "slurm_load_jobs error: Unable to contact slurm controller"
    ) -> None:
        (self.folder / "down").write_text(words + "\n")

    def refuse(self, words: str, since: int = 1) -> None:
        """sbatch says `words` from its call number `since` on."""
        (self.folder / "refuse").write_text(f"{since}\n{words}\n")

    @property
    def submitted(self) -> list[str]:
        """The text of each file that was submitted."""
        found = sorted(self.folder.glob("sbatch.*"), key=lambda path: int(path.suffix[1:]))
        return [path.read_text() for path in found]

    def said(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """The commands in `folder`, before all others on PATH."""
    (folder / "bin").mkdir(parents=True)
    for name, text in SCRIPTS.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/sh\nLAB={folder}\n{text}\n")
        path.chmod(0o755)
    for name, text in (EMPTY | {"count": "0\n"}).items():
        (folder / name).write_text(text)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return Slurm(folder)


def launched(
    store: Path, grid: Path, jobs: list[tuple[str, ...]], made: str = "20261123-061917-ab12"
) -> Launch:
    """The record of one array of jobs, as if it had been submitted as SLURM's job 7."""
    placed = tuple(Placed(keys, 0, task, 1) for task, keys in enumerate(jobs))
    launch = Launch(
        id=made,
        grid=grid.stem,
        path=str(grid.resolve()),
        store=str(store),
        code=str(store / "code" / "abc"),
        cluster="slurm",
        created=1000.0,
        visible_s=60.0,
        jobs=placed,
    )
    launch.write()
    launch.note(0, "7")
    return launch
