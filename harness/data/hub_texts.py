"""Data sets of the hub that are texts here, by the names that papers use.

Not here: how a data set is found and pinned (`hub`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from harness.core.errors import TextError, nearest
from harness.core.reads import Read
from harness.data.fill import DataSetRead
from harness.data.hub import Access, Split
from harness.data.sources import TextSource, register_text

_TRAIN = dict.fromkeys(("train", "calibration"), "train")

Reader: TypeAlias = Callable[[list[dict[str, Any]]], list[str]]


@dataclass(frozen=True)
class HubText(TextSource):
    """A data set of the hub: its address, our splits -> its splits, how its rows become texts.

    `columns` hold a text in every row. `as_documents` are what is packed and scored, `as_prompts`
    what a model continues. A part is one of the hub's own splits, in place of the usual one.
    """

    path: str
    config: str | None
    splits: Mapping[str, str]
    columns: tuple[str, ...]
    as_documents: Reader
    as_prompts: Reader
    whole_prompts: bool = True
    # Of a split that is too large to load whole, the file that is read in its place.
    split_files: Mapping[str, str] = field(default_factory=dict)

    about: str = "data set of the hub"

    def uses(self) -> tuple[Callable[..., Any] | type, ...]:
        return (type(self), self.as_documents, self.as_prompts)

    def pin(self, part: str, split: str, access: Access) -> str:
        return access.digest(self.find_split(part, split), self.columns)

    def documents(self, part: str, split: str, access: Access) -> list[str]:
        return self._read(self.as_documents, part, split, access)

    def prompts(self, part: str, split: str, access: Access) -> list[str]:
        return self._read(self.as_prompts, part, split, access)

    def reads(self, part: str, split: str, access: Access) -> tuple[Read, ...]:
        return (DataSetRead(self.find_split(part, split), access),)

    def find_split(self, part: str, split: str) -> Split:
        """The hub's split for ours. Raises TextError where the data set has none."""
        if not part and split not in self.splits:
            raise TextError(f"it has no {split} split; {nearest(split, self.splits)}")
        name = part or self.splits[split]
        return Split(self.path, self.config, name, self.split_files.get(name))

    def _read(self, read: Reader, part: str, split: str, access: Access) -> list[str]:
        rows = list(access.rows(self.find_split(part, split)))
        try:
            return read(rows)
        except KeyError as error:
            columns = ", ".join(rows[0]) if rows else "none"
            raise TextError(f"{self.path} has no column {error}; columns: {columns}") from error


def describe_plain(
    path: str, config: str | None, splits: Mapping[str, str], **options: Any
) -> HubText:
    """A data set of texts in the column `text`."""
    return HubText(
        path, config, splits, ("text",), _column, _column, whole_prompts=False, **options
    )


def describe_instructions(
    path: str, question: str, answer: str, config: str | None = None, heldout: str = ""
) -> HubText:
    """A data set of instructions and responses, in columns of these names, for training."""
    splits = _TRAIN | ({"heldout": heldout} if heldout else {})

    def prompts(rows: list[dict[str, Any]]) -> list[str]:
        return [_ASKED.format(row[question].strip()) for row in rows]

    def documents(rows: list[dict[str, Any]]) -> list[str]:
        return [_ASKED.format(row[question].strip()) + row[answer].strip() for row in rows]

    return HubText(path, config, splits, (question, answer), documents, prompts)


# The form in which Alpaca, WizardCoder and MetaMath put an instruction to a model.
_ASKED = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{}\n\n### Response:\n"
)


def _column(rows: list[dict[str, Any]]) -> list[str]:
    return [row["text"] for row in rows]


def _articles(rows: list[dict[str, Any]]) -> list[str]:
    """WikiText's rows are lines: an article is its heading and what follows it, joined as the
    protocol joins rows, so that articles joined are the rows joined."""
    articles: list[list[str]] = [[]]
    for row in rows:
        if _HEADING.fullmatch(row["text"]) and any(map(str.strip, articles[-1])):
            articles.append([])
        articles[-1].append(row["text"])
    return ["\n\n".join(article) for article in articles]


def _asked_with_input(rows: list[dict[str, Any]]) -> list[str]:
    """Alpaca's own column `text` up to the response."""
    mark = "### Response:"
    return [row["text"].partition(mark)[0] + mark + "\n" for row in rows]


_HEADING = re.compile(r"\s*= [^=].*[^=] =\s*")

HUB: dict[str, HubText] = {
    "wikitext2": HubText(
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
        {**_TRAIN, "heldout": "test"},
        ("text",),
        _articles,
        _column,
        whole_prompts=False,
    ),
    "c4": describe_plain(
        "allenai/c4",
        "en",
        {**_TRAIN, "heldout": "validation"},
        split_files={
            "train": "en/c4-train.00000-of-01024.json.gz",
            "validation": "en/c4-validation.00000-of-00008.json.gz",
        },
    ),
    # BitDistiller and AWQ calibrate on it; it has one split.
    "pile-val": describe_plain(
        "mit-han-lab/pile-val-backup", None, dict.fromkeys(("train", "calibration"), "validation")
    ),
    "tinystories": describe_plain(
        "roneneldan/TinyStories", None, {**_TRAIN, "heldout": "validation"}
    ),
    "alpaca": HubText("tatsu-lab/alpaca", None, _TRAIN, ("text",), _column, _asked_with_input),
    "dolly": describe_instructions("databricks/databricks-dolly-15k", "instruction", "response"),
    "gsm8k": describe_instructions("openai/gsm8k", "question", "answer", "main", "test"),
    "evol-instruct-code": describe_instructions(
        "nickrosh/Evol-Instruct-Code-80k-v1", "instruction", "output"
    ),
    "metamath": describe_instructions("meta-math/MetaMathQA", "query", "response"),
}
HUB["c4-new"] = HUB["c4"]  # one text, two protocols

for _name, _text in HUB.items():
    register_text(_name, _text)
