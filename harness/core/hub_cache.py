"""What lies in the local cache of Hugging Face's hub, which models and data sets share.

Not here: what is asked of the hub itself (`harness.models`, `harness.data`).
"""

from __future__ import annotations

from pathlib import Path


def cached_commit(kind: str, name: str, revision: str = "main") -> str | None:
    """The commit that the cache has of `name`, of the `models` or `datasets`; None: it has none."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE, f"{kind}--{name.replace('/', '--')}")
    if (folder / "snapshots" / revision).is_dir():
        return revision
    reference = folder / "refs" / revision
    return reference.read_text().strip() if reference.is_file() else None
