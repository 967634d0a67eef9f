"""What verbs share: a grid that names a mirror keeps libraries from asking the hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import harness

CODE = """
import sys
from pathlib import Path
from harness.cli.verb import load_grid
from harness.core.store import Store
assert "huggingface_hub" not in sys.modules
load_grid(Path(sys.argv[1]), store=Store.default())
from huggingface_hub import constants
print(constants.HF_HUB_OFFLINE)
"""


@pytest.mark.parametrize(
    ("setting", "said", "offline"),
    [
        ("", {}, "False"),
        ("mirror: m\n", {}, "True"),
        ("mirror: m\n", {"HF_HUB_OFFLINE": "0"}, "False"),
    ],
)
def test_a_mirror_goes_before_the_hub(
    tmp_path: Path, setting: str, said: dict[str, str], offline: str
) -> None:
    (tmp_path / "m").mkdir()
    grid = tmp_path / "grid.yaml"
    grid.write_text(f"# Offline?\nmodel: testbed\nmethod: bf16\n{setting}evaluate: [testbed-ppl]\n")
    hub = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "BITGRID_MIRROR")
    environment = {name: value for name, value in os.environ.items() if name not in hub}
    environment |= {"PYTHONPATH": str(Path(harness.__file__).parents[1]), **said}
    command = [sys.executable, "-c", CODE, str(grid)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == offline, done.stderr
