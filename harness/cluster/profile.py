"""A cluster's profile: what jobs ask for, and where they go. One YAML file, shared by all grids.

    partition: gpu
    account: nlp
    gpu: gpu:a100            # the gres of one GPU; none: jobs ask for no GPU
    array_parallelism: 32    # of one array at once
    gpus: 64                 # that one may hope for; or types of them, the smallest that holds it
    setup: [module load cuda/12.4]
    stages:                  # by kind of stage; `bitgrid plan` names the kinds of a grid
      train: {hours: 12, cpus: 8}
      lm-eval: {hours: 2, memory_gib: 32}
    large: {constraint: a100-80g, memory_gib: 128}   # for a retry after memory ran out

Not here: which stages share a job (`waves`), how jobs are submitted (`launch`).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field

from harness.config.document import Document
from harness.core.checked import AsWritten
from harness.core.errors import UNSHOWABLE, ClusterError, nearest
from harness.core.misfit import explain, show
from harness.core.paths import read_path
from harness.run.plan import Node

DEFAULT = Path("~/.config/bitgrid/cluster.yaml")


def _refuse_clock(value: object) -> object:
    """SLURM reads 1:30 as minutes and seconds, people as hours and minutes: refuse it."""
    if isinstance(value, str) and ":" in value:
        raise ValueError(f"{value!r} should be a number of hours, as 1.5 for an hour and a half")
    return value


def _check_line(text: str) -> str:
    """Raise ValueError for text that would be more than one line of a batch script."""
    if found := re.search(f"[{UNSHOWABLE}]", text):
        raise ValueError(
            f"{show(text)} has the character U+{ord(found[0]):04X}, and should be one line of what "
            "can be seen; of 'setup', a line is an item of the list"
        )
    return text


def _check_option(name: str) -> str:
    """Raise ValueError for what is no long name of a parameter of sbatch, or a launch's own."""
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_-]*", name):
        raise ValueError(f"{show(name)} should be a long name of sbatch's, as mail-type")
    if (own := name.replace("_", "-")) in RESERVED:
        raise ValueError(f"'{own}' is a launch's own to set: {RESERVED[own]}")
    return name


def _check_directive(line: str) -> str:
    """Raise ValueError for what is no comment of a script, or sets what is a launch's own."""
    if not line.startswith("#"):
        raise ValueError(f"{show(line)} should begin with '#', as '#DW jobdw …'; see 'setup'")
    for name in re.findall(r"--([A-Za-z][A-Za-z0-9_-]*)", line):
        _check_option(name)
    if line.startswith("#SBATCH"):
        for letter in re.findall(r"\s-([A-Za-z])", line):
            _check_option(_SHORT.get(letter, letter))
    return line


def _check_gpu(gres: str) -> str:
    """Raise ValueError for what is no gres of one GPU."""
    if gres != "none" and not re.fullmatch(r"(?:gpu|shard|mps)(?::[\w.-]*[A-Za-z][\w.-]*)?", gres):
        raise ValueError(
            f"{show(gres)} should be the gres of one GPU without a number, as gpu or gpu:a100, or "
            "none; how many is the grid's to say (train.gpus)"
        )
    return gres


def _check_scratch(path: str) -> str:
    """Raise ValueError for what is no whole path, also with a node's variables put in."""
    if not re.fullmatch(r"(?:/|\$\w|\$\{\w+\})(?:[\w./@:+=,-]|\$\w|\$\{\w+\})*", path):
        raise ValueError(
            f"{show(path)} should be a folder of the nodes' own by its whole path, as /scratch or "
            "$TMPDIR, of letters, digits and ._@:+=,-"
        )
    return path


def _check_fields(setting: object) -> object:
    """Raise ValueError for a field of a parameter's text that there is not."""
    if isinstance(setting, str):
        for name in re.findall(r"\{(\w+)\}", setting):
            if name not in FIELDS:
                raise ValueError(f"{show(setting)} has {{{name}}}; {nearest(name, FIELDS)}")
    return setting


# What a launch relies on, and the key that says it.
RESERVED = {
    "array": "array_parallelism is how many jobs of one run at once",
    "dependency": "jobs wait for those that compute their inputs",
    "output": "logs are in the launch's folder, where status and logs look",
    "error": "logs are in the launch's folder, where status and logs look",
    "open-mode": "a job that is queued again writes on in its log",
    "signal": "signal_delay_s is how long before its end a job is told",
    "time": "hours",
    "requeue": "requeues; 0 for none",
    "no-requeue": "requeues; 0 for none",
    "job-name": "jobs are found by their names",
    "wrap": "prefix is what comes before Python",
    "parsable": "the job's number is read",
    "wait": "status --watch waits",
    "test-only": "launch --dry submits nothing",
    "ntasks": "a job is one task a node; its GPUs are train.gpus, its nodes train.nodes",
    "ntasks-per-node": "a job is one task a node; its GPUs are train.gpus, its nodes train.nodes",
}
# Of these sbatch's short names.
_SHORT = {
    "a": "array",
    "d": "dependency",
    "o": "output",
    "e": "error",
    "t": "time",
    "J": "job-name",
    "n": "ntasks",
    "W": "wait",
}
# Fields in the text of a parameter of sbatch: what the job asks for.
FIELDS = ("gpus", "cpus", "mib", "mib_per_cpu", "mib_per_gpu")

Line = Annotated[str, AfterValidator(_check_line)]
Option = Annotated[str, AfterValidator(_check_option)]
Gres = Annotated[Line, AfterValidator(_check_gpu)]
Scratch = Annotated[Line, AfterValidator(_check_scratch)]
Hours = Annotated[float, Field(gt=0, le=10_000), BeforeValidator(_refuse_clock)]
Many = Annotated[int, Field(gt=0, le=10_000_000)]


class Request(AsWritten, pydantic.BaseModel):
    """What a job asks for. None: what the profile says for all, or else the stage itself."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    hours: Hours | None = None
    memory_gib: Annotated[float, Field(gt=0, le=1e6)] | None = None
    cpus: Annotated[int, Field(gt=0, le=100_000)] | None = None
    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    gpu: Gres | None = None
    # Further parameters of sbatch by their long names: text as it is written, true for a flag
    # alone, false for the flag with no- before it, null to leave one out.
    sbatch: dict[Option, Annotated[Line | bool | None, AfterValidator(_check_fields)]] = {}

    def over(self, other: Request) -> Request:
        """This request where it says something, `other` elsewhere."""
        own = {k: v for k, v in self.model_dump().items() if v is not None and k != "sbatch"}
        return other.model_copy(update={**own, "sbatch": {**other.sbatch, **self.sbatch}})


class Gpu(AsWritten, pydantic.BaseModel):
    """A type of GPU that a site has: its gres, and its memory."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    gres: Gres
    gib: Annotated[float, Field(gt=0, le=100_000)]


class Profile(Request):
    """The keys of a profile: a request for all kinds of stages, and how to submit."""

    cluster: Literal["slurm", "local", "debug"] = "slurm"
    stages: dict[str, Request] = {}
    large: Request | None = None
    array_parallelism: Many = 256
    launch_parallelism: Many | None = None  # over all arrays of a launch
    models_per_job: Many = 1
    gpus: Many | list[Gpu] | None = None  # that one may hope for at once; or the site's types
    max_jobs: Many | None = None  # submitted at once; else asked of SLURM
    requeues: Annotated[int, Field(ge=0, le=10_000)] = 20  # of a job, at its time limit
    # Between the warning and the end of a job, and how late a host may see another one's files.
    signal_delay_s: Annotated[int, Field(ge=5, le=86_400)] = 90
    visible_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    setup: list[Line] = []
    directives: list[Annotated[Line, AfterValidator(_check_directive)]] = []  # before `setup`
    srun: list[Line] = []  # arguments of srun
    prefix: Line | None = None  # shell words before Python, as of a container
    python: Line | None = None  # else the one that launches
    node_scratch: Scratch | None = None  # a folder of each node, for copies of models
    notify: Line | None = None  # a command, run once when the last job of a launch has ended

    @property
    def hoped_gpus(self) -> int | None:
        """How many GPUs one may hope for at once, where it is said."""
        return self.gpus if isinstance(self.gpus, int) else None

    @property
    def gpu_types(self) -> list[Gpu]:
        """The site's types of GPUs by memory, where they are said."""
        types = self.gpus if isinstance(self.gpus, list) else []
        return sorted(types, key=lambda gpu: gpu.gib)

    def request(
        self, kind: str, node: Node, large: bool = False, gres: str | None = None
    ) -> Request:
        """What a stage of `kind` asks for, with nothing left open but what SLURM decides.

        gres: of a GPU that holds it, where nothing else is said.
        """
        whole = Request(**{name: getattr(self, name) for name in Request.model_fields})
        asked = self.stages.get(kind, Request()).over(whole)
        if large and self.large is not None:
            asked = self.large.over(asked)
        least = Request(hours=node.hours or 1.0, memory_gib=node.memory_gib or 4.0, gpu=gres)
        return asked.over(least)


def load(path: Path | None, kinds: Collection[str] | None = None) -> Profile:
    """The profile in `path`, or the user's own. `kinds`: all kinds of stages that there are; None
    where they are not known yet.

    Raises ClusterError with file, line and the nearest valid key.
    """
    place = read_path(str(path or DEFAULT), ClusterError)
    if not place.is_file():
        raise ClusterError(
            f"cluster profile {place} does not exist; write one (docs/slurm.md) or name another "
            "with --cluster"
        )
    document = Document(place)
    keys = {} if document.data is None else document.data
    if not isinstance(keys, dict):
        raise ClusterError(str(document.error((), "a cluster profile is a mapping")))
    try:
        profile = Profile.model_validate(keys)
    except pydantic.ValidationError as error:
        known = {"": Profile, "stages": Request, "large": Request, "gpus": Gpu}
        raise ClusterError(str(document.error(*explain(error, keys, known)))) from None
    for kind in profile.stages:
        if kinds is not None and kind not in kinds:
            message = f"stages: the kind {kind!r} is unknown; {nearest(kind, kinds)}"
            raise ClusterError(str(document.error(("stages", kind), message)))
    return profile
