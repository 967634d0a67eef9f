"""What verbs share: a grid that names a mirror keeps libraries from asking the hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import harness

CODE = """
import os, sys
from pathlib import Path
from harness.cli.verb import go_offline, load_grid
from harness.core.store import Store
plain, mirrored = map(Path, sys.argv[1:])
go_offline(plain)
assert "HF_HUB_OFFLINE" not in os.environ
os.environ["HF_HUB_OFFLINE"] = "0"
go_offline(mirrored)
assert os.environ.pop("HF_HUB_OFFLINE") == "0"
assert "huggingface_hub" not in sys.modules
load_grid(mirrored, store=Store.default())
from huggingface_hub import constants
print(constants.HF_HUB_OFFLINE)
"""


def test_a_mirror_goes_before_the_hub_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    grids = {"plain.yaml": "", "mirrored.yaml": "mirror: m\n"}
    for name, setting in grids.items():
        text = f"# Offline?\nmodel: testbed\nmethod: bf16\n{setting}evaluate: [testbed-ppl]\n"
        (tmp_path / name).write_text(text)
    hub = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "BITGRID_MIRROR")
    environment = {name: value for name, value in os.environ.items() if name not in hub}
    environment |= {"PYTHONPATH": str(Path(harness.__file__).parents[1])}
    command = [sys.executable, "-c", CODE, *(str(tmp_path / name) for name in grids)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
