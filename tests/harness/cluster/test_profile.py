"""Profiles: what jobs ask for, merged from three places; errors that name file, line and key."""

from __future__ import annotations

import shlex
from pathlib import Path

import pydantic
import pytest
from hypothesis import given, settings
from submitit.slurm.slurm import _make_sbatch_string

from harness.cluster import profile as cluster
from harness.cluster.profile import Profile, Request
from harness.core.errors import BitgridError, ClusterError
from harness.run.plan import Node
from tests.support.hostile_texts import hostile

KINDS = ("train", "lm-eval", "perplexity")
NODE = Node("train", "t", True, (), "code", {}, gpus=8, memory_gib=23.0, hours=6.0)


def load(tmp_path: Path, text: str) -> Profile:
    (tmp_path / "c.yaml").write_text(text)
    return cluster.load(tmp_path / "c.yaml", KINDS)


def test_a_profile_says_for_all_for_a_kind_and_for_a_retry(tmp_path: Path) -> None:
    profile = load(
        tmp_path,
        """
partition: gpu
hours: 4
sbatch: {mail-type: FAIL, nice: 10}
stages:
  train: {hours: 12, cpus: 8, sbatch: {nice: 0}}
large: {constraint: a100-80g, memory_gib: 128}
""",
    )
    asked = profile.request("train", NODE)
    assert (asked.partition, asked.hours, asked.memory_gib, asked.cpus) == ("gpu", 12, 23.0, 8)
    assert asked.sbatch == {"mail-type": "FAIL", "nice": "0"}
    asked = profile.request("train", NODE, large=True)
    assert (asked.hours, asked.memory_gib, asked.constraint) == (12, 128, "a100-80g")
    asked = profile.request("lm-eval", NODE)
    assert (asked.hours, asked.cpus, asked.sbatch["nice"]) == (4, None, "10")
    assert profile.large is not None and profile.array_parallelism == 256


def test_an_empty_profile_asks_for_what_the_stage_says(tmp_path: Path) -> None:
    asked = load(tmp_path, "").request("train", NODE, large=True)
    assert asked == Request(hours=6.0, memory_gib=23.0)


def test_what_sbatch_gets_is_what_stands_there(tmp_path: Path) -> None:
    profile = load(
        tmp_path,
        """
account: 012345
qos: on
partition: 1e3
constraint: 1.10
setup: [0x10, module load cuda]
sbatch:
  time-min: 1:30:00
  nodelist: 1e3
  nice: 010
  begin: 2026-11-25
  reservation: no
  exclusive: true
  kill-on-invalid-dep: false
  comment: ~
""",
    )
    assert (profile.account, profile.qos, profile.partition) == ("012345", "on", "1e3")
    assert (profile.constraint, profile.setup) == ("1.10", ["0x10", "module load cuda"])
    assert profile.sbatch == {
        "time-min": "1:30:00",
        "nodelist": "1e3",
        "nice": "010",
        "begin": "2026-11-25",
        "reservation": "no",
        "exclusive": True,
        "kill-on-invalid-dep": False,
        "comment": None,
    }


def test_what_a_site_asks_for_is_taken(tmp_path: Path) -> None:
    lines = ["#SBATCH -C a100 -p gpu", "#SBATCH --hint=nomultithread", "#DW jobdw -o x"]
    for scratch in ("/scratch/me_2.x", "$TMPDIR", "${SLURM_TMPDIR}/a", "/local/$USER/b-c"):
        profile = load(tmp_path, f"node_scratch: {scratch}\ndirectives: {lines}\n")
        assert (profile.node_scratch, profile.directives) == (scratch, lines)


def test_a_profile_may_build_on_another(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("account: nlp\npartition: gpu\n")
    profile = load(tmp_path, "base: base.yaml\npartition: long\n")
    assert (profile.account, profile.partition) == ("nlp", "long")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("account: a\npartitoin: gpu\n", 2, "key 'partitoin' is unknown; did you mean 'partition'"),
        ("stages:\n  Train:\n    hour: 3\n", 3, "key 'hour' is unknown; did you mean 'hours'"),
        ("large: {memory: 3}\n", 1, "key 'memory' is unknown; did you mean 'memory_gib'"),
        (
            "\nstages:\n  trian: {hours: 3}\n",
            3,
            "the kind 'trian' is unknown; did you mean 'train'",
        ),
        ("hours: soon\n", 1, "hours: 'soon' should be a number"),
        ("hours: 1:30\n", 1, "hours: '1:30' should be a number of hours, as 1.5 for an hour and"),
        ("stages:\n  train: {hours: 0:45}\n", 2, "stages.train.hours: '0:45' should be a number"),
        ("hours: .inf\n", 1, "hours: .inf should be a finite number"),
        ("hours: true\n", 1, "hours: true should be a number"),
        ("memory_gib: 1_000\n", 1, "memory_gib: '1_000' should be a number; did you mean 1000?"),
        ("memory_gib: 1,5\n", 1, "memory_gib: '1,5' should be a number; did you mean 1.5?"),
        ("cpus: '2,5'\n", 1, "cpus: '2,5' should be a whole number"),
        ("cpus: 2.5\n", 1, "cpus: 2.5 should be a whole number"),
        ("account: true\n", 1, 'account: true should be text; did you mean "true", in quotes?'),
        ("sbatch: {exclude: [a, b]}\n", 1, "sbatch.exclude: ['a', 'b'] should be text or true or"),
        ("hours: 0\n", 1, "hours: 0 should be more than 0"),
        ("cluster: slrum\n", 1, "cluster: 'slrum' should be 'slurm', 'local' or 'debug'"),
        ("setup: module load cuda\n", 1, "setup: 'module load cuda' should be a list"),
        ("stages: {train: 3}\n", 1, "stages.train: 3 should be a mapping"),
        (
            'partition: "gpu\\nscancel"\n',
            1,
            "partition: 'gpu\\nscancel' has the character U+000A",
        ),
        (
            'stages:\n  train: {qos: "a\\tb"}\n',
            2,
            "stages.train.qos: 'a\\tb' has the character U+0009",
        ),
        (
            "setup:\n- module load a\n- |\n  one\n  two\n",
            3,
            "one line of what can be seen; of 'setup'",
        ),
        ('sbatch: {comment: "a\\n#SBATCH --x"}\n', 1, "sbatch.comment: "),
        ('sbatch: {"mail-type=ALL\\n#SBATCH --x": a}\n', 1, "should be a long name of sbatch's"),
        ("sbatch: {time: '1:30'}\n", 1, "'time' is a launch's own to set: hours"),
        ("large: {sbatch: {job_name: a}}\n", 1, "'job-name' is a launch's own to set: jobs are"),
        (
            "sbatch: {requeue: false}\n",
            1,
            "'requeue' is a launch's own to set: requeues; 0 for none",
        ),
        ("sbatch: {array: 0-3}\n", 1, "'array' is a launch's own to set: array_parallelism is"),
        (
            "directives: ['#SBATCH --output=x']\n",
            1,
            "'output' is a launch's own to set: logs are in",
        ),
        ("directives: ['#SBATCH -p x -t 10']\n", 1, "'time' is a launch's own to set: hours"),
        ("directives: ['#SBATCH -oout']\n", 1, "'output' is a launch's own to set: logs are in"),
        ("node_scratch: scratch\n", 1, "node_scratch: 'scratch' should be a folder of the nodes'"),
        ("node_scratch: '/x$(id)'\n", 1, "'/x$(id)' should be a folder of the nodes' own by its"),
        ("node_scratch: '/x\"; id; \"'\n", 1, "should be a folder of the nodes' own by its whole"),
        ("launch_parallelism: 0\n", 1, "launch_parallelism: 0 should be more than 0"),
        ("directives: [module load x]\n", 1, "'module load x' should begin with '#'"),
        ("gpu: a100\n", 1, "gpu: 'a100' should be the gres of one GPU without a number, as gpu or"),
        ("gpu: gpu:2\n", 1, "gpu: 'gpu:2' should be the gres of one GPU"),
        ("stages: {train: {gpu: 'gpu:a100:4'}}\n", 1, "stages.train.gpu: 'gpu:a100:4' should be"),
        ("sbatch: {mem-per-gpu: '{gib}G'}\n", 1, "'{gib}G' has {gib}; did you mean"),
        ("gpus: [{gres: gpu:a40}]\n", 1, "gib"),
        ("gpus: [{gres: a40, gib: 48}]\n", 1, "'a40' should be the gres of one GPU"),
        ("sbatch: {-x y: a}\n", 1, "'-x y' should be a long name of sbatch's, as mail-type"),
        ("- partition\n", 1, "a cluster profile is a mapping"),
        ("partition: [gpu\n", 2, "not YAML"),
        ("hours: 1\nhours: 2\n", 2, "key 'hours' is given twice"),
    ],
)
def test_errors_name_file_line_and_the_nearest_key(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    with pytest.raises(BitgridError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'c.yaml'}:{line}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(hostile, hostile)
@settings(max_examples=60, deadline=None)
def test_what_is_taken_is_one_line_of_the_script_and_stays_what_it_is(one: str, two: str) -> None:
    try:
        taken = Profile(partition=one, setup=[two], sbatch={"comment": two})
    except pydantic.ValidationError:
        return
    extra = {"comment": taken.sbatch["comment"]}
    text = _make_sbatch_string(
        "run", "/logs", partition=taken.partition, setup=taken.setup, additional_parameters=extra
    )
    plain = _make_sbatch_string(
        "run", "/logs", partition="p", setup=["s"], additional_parameters={"comment": "c"}
    )
    assert len(text.splitlines()) == len(plain.splitlines())
    options = [shlex.split(line)[1] for line in text.split("\n") if line.startswith("#SBATCH ")]
    assert f"--partition={one}" in options and f"--comment={two}" in options


def test_types_of_gpus_or_how_many(tmp_path: Path) -> None:
    assert load(tmp_path, "gpus: 64\n").hoped_gpus == 64
    profile = load(tmp_path, "gpus: [{gres: gpu:h100, gib: 80}, {gres: gpu:1g.5gb, gib: 5}]\n")
    assert profile.hoped_gpus is None
    assert [gpu.gres for gpu in profile.gpu_types] == ["gpu:1g.5gb", "gpu:h100"]
    assert profile.request("train", NODE, gres="gpu:h100").gpu == "gpu:h100"
    profile = load(tmp_path, "gpus: [{gres: gpu:h100, gib: 80}]\nstages: {train: {gpu: gpu}}\n")
    assert profile.request("train", NODE, gres="gpu:h100").gpu == "gpu"


def test_a_profile_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match=r"nowhere.yaml does not exist"):
        cluster.load(tmp_path / "nowhere.yaml", KINDS)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ClusterError, match=r"\.config/bitgrid/cluster\.yaml does not exist"):
        cluster.load(None, KINDS)


def test_each_key_is_explained() -> None:
    text = (Path(__file__).parents[3] / "docs/slurm.md").read_text()
    assert {name for name in Profile.model_fields if f"`{name}`" not in text} == set()
