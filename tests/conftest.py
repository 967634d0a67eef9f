"""What tests share: a tiny random Llama in Hugging Face's format; shared/ where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.pop("BITGRID_MIRROR", None)
os.environ.pop("COLUMNS", None)  # of whoever started the tests

import torch

# Tiny models gain nothing from a second thread, and lose a lot to it on a busy machine.
torch.set_num_threads(1)


# What takes minutes, the longest first; whatever else there is fits around it.
LONGEST = ("test_trainings.py", "test_launch.py", "test_contract.py", "test_parallel.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left alone with one at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model: 2 layers, hidden 64, ffn 128, 4 heads, 2 kv heads, byte-level BPE of 300."""
    from harness.testing import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def known_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that reaches the hub: data sets have a commit, so stages can be built."""
    from harness.data import hub

    monkeypatch.setattr(hub, "_commit", lambda path: f"commit-of-{path}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real models and texts: BITGRID_SHARED, default ../shared; skipped where absent."""
    folder = Path(os.environ.get("BITGRID_SHARED", Path(__file__).parents[1].parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real models and texts: {folder} does not exist (set BITGRID_SHARED)")
    return folder
