"""The testbed as a client of the registries: what a grid may name of it.

Found by the entry points of this package, as those of any other. Not here: the world itself
(`world`), how its model was made (`pretrain`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import TextError, nearest
from harness.data.hub import Access
from harness.data.sources import TextSource, register_text
from harness.evaluation.evaluations import register_evaluation
from harness.evaluation.lm_eval import register_folder
from harness.evaluation.perplexity import PerplexityTask, Protocol
from harness.models.local import FolderModel
from harness.models.registry import register_model
from harness.testbed import world


@dataclass(frozen=True)
class TestbedText(TextSource):
    """Documents of the invented world; the part is one of its domains, or all of them mixed."""

    about = "documents of the embedded miniature world"
    caveat = world.CAVEAT
    whole_prompts = True

    def resolve(self, part: str) -> str:
        if part and part not in world.DOMAINS:
            raise TextError(f"domain {part!r} is unknown; {nearest(part, world.DOMAINS)}")
        return part

    def pin(self, part: str, split: str, access: Access) -> str:
        return f"world-{world.VERSION}"

    def documents(self, part: str, split: str, access: Access) -> list[str]:
        return list(world.documents(split, part or None))

    def prompts(self, part: str, split: str, access: Access) -> list[str]:
        return list(world.prompts(split, part or None))


TASKS = Path(__file__).parent / "tasks"  # files of lm-eval

register_text("testbed", TestbedText())
register_folder(
    TASKS,
    digest=f"world-{world.VERSION}",
    caveat=world.CAVEAT,
    package="harness.testbed.tasks",
)
for _domain in ("", *world.DOMAINS):
    register_evaluation(
        PerplexityTask(
            f"testbed-ppl-{_domain}" if _domain else "testbed-ppl",
            Protocol(
                f"testbed:{_domain}" if _domain else "testbed",
                window=512,
                cut="packed",
                words="held-out documents end to end, BOS and EOS",
            ),
        )
    )
for _name, _folder in {"testbed": "model", "testbed-small": "model-small"}.items():
    register_model(
        _name,
        FolderModel(
            Path(__file__).parent / _folder, "a model of the miniature world", world.CAVEAT
        ),
    )
