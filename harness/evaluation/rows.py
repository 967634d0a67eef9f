"""Texts that begin alike, laid out so that a network reads what they share once.

    rows = branch(texts, scored, longest=4096)      # few-shot prefix, context, every ending

A row is a tree of texts: each token stands behind the one before it in its text, at its position
there, and sees the tokens of its own text alone. Not here: what reads rows and when that is right
(`likelihoods`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Request = tuple[list[int], list[int]]  # token ids: a context and what continues it
# So many pairs of tokens in attention cost as much as one token in the rest of a small model.
_PAIRS = 2048


@dataclass
class Row:
    """Tokens in a row, of which texts are paths. `scored`: of each request its number, and the
    places whose states predict its continuation."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[tuple[int, list[int]]] = field(default_factory=list)  # begin, places before it
    scored: list[tuple[int, list[int]]] = field(default_factory=list)
    last: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))  # text and places

    def add(self, text: list[int], shared: int, request: int, length: int) -> None:
        """A text, of which the first `shared` tokens are those of the last one; the states of its
        last `length` tokens are scored."""
        before, begin = self.last[1][:shared], len(self.tokens)
        if new := text[shared:]:
            self.branches.append((begin, before))
            self.tokens += new
            self.positions += range(shared, len(text))
        places = before + list(range(begin, begin + len(new)))
        self.last = text, places
        self.scored.append((request, places[-length:]))

    @property
    def is_plain(self) -> bool:
        """Whether it is one text."""
        return len(self.branches) == 1

    def see(self, length: int) -> Tensor:
        """What each token sees: (length, length) bool; padding sees itself."""
        seen = torch.eye(length, dtype=torch.bool)
        ends = [begin for begin, _ in self.branches[1:]] + [len(self.tokens)]
        for (begin, before), end in zip(self.branches, ends, strict=True):
            seen[begin:end, torch.tensor(before, dtype=torch.int64)] = True
            seen[begin:end, begin:end] = torch.ones(end - begin, end - begin).tril().bool()
        return seen


def read_text(request: Request, longest: int) -> list[int]:
    """What a network reads to score a request: all but the last token, cut from the left."""
    context, continuation = request
    return (context + continuation)[-(longest + 1) : -1]


def lay_plainly(requests: Sequence[Request], longest: int) -> list[Row]:
    """A row for each text, in lm-eval's own order: the longest first. Requests that differ in their
    last token alone are one text."""
    same: dict[tuple[int, ...], list[int]] = {}
    for number, (context, continuation) in enumerate(requests):
        same.setdefault((*context, *continuation[:-1]), []).append(number)

    def place(numbers: list[int]) -> tuple[int, list[int]]:
        context, continuation = requests[max(numbers, key=lambda n: len(requests[n][1]))]
        return -len(context + continuation), context + continuation

    rows = []
    for numbers in sorted(same.values(), key=place):
        row = Row()
        for number in numbers:
            text = read_text(requests[number], longest)
            row.add(text, len(row.tokens), number, len(requests[number][1]))
        rows.append(row)
    return rows


def branch(requests: Sequence[Request], longest: int, reach: int) -> list[Row]:
    """Rows of texts that share beginnings, of up to `reach` tokens where they are several.

    Of texts that share c tokens, and P pairs in attention cost as much as a token elsewhere, a row
    of n tokens is cheapest where n² − 2cn − cP = 0; a text joins those before it up to there.
    """
    texts = sorted((read_text(request, longest), n) for n, request in enumerate(requests))
    rows: list[Row] = []
    for text, number in texts:
        shared = _count_shared(rows[-1].last[0], text) if rows else 0
        cheapest = shared + math.sqrt(shared**2 + shared * _PAIRS)
        length = len(rows[-1].tokens) + len(text) - shared if rows else 0
        if not rows or (shared < len(text) and length > min(reach, cheapest)):
            rows.append(Row())
            shared = 0
        rows[-1].add(text, shared, number, len(requests[number][1]))
    return rows


def batch_by_tokens(rows: Iterable[Row], tokens: int) -> Iterator[list[Row]]:
    """Rows of like lengths, the longest first, at most so many tokens with padding; plain ones
    apart from those with branches."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.is_plain, -len(row.tokens))):
        longest = len(batch[0].tokens) if batch else 0
        if batch and (
            row.is_plain != batch[0].is_plain
            or longest * (len(batch) + 1) > tokens
            or len(row.tokens) * 8 < longest * 7
        ):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _count_shared(first: list[int], second: list[int]) -> int:
    """How many tokens two texts begin with alike."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
