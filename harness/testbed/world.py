"""The invented world's text: documents and prompts of each split and domain.

The one door to the corpus. A split is train, calibration or heldout; a domain is articles,
stories, arithmetic or code. `documents` is a fixed, reproducible list; `stream` goes on for as long
as the caller likes (pre-training reads it). How each domain writes stands in its own file; what the
tasks ask stands in `items.py`. Pure Python: nothing here imports torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice

from harness.testbed import arithmetic, articles, programs, stories
from harness.testbed.facts import SEED, SPLITS, Split, bucket

__all__ = ["CAVEAT", "DOMAINS", "MIX", "SPLITS", "VERSION", "documents", "prompts", "stream"]

_WRITERS: dict[str, Callable[[Split, random.Random], Iterator[str]]] = {
    "articles": articles.documents,
    "stories": stories.documents,
    "arithmetic": arithmetic.documents,
    "code": programs.documents,
}
DOMAINS: tuple[str, ...] = tuple(_WRITERS)
CAVEAT = (
    "Testbed rows: an invented miniature world; they rank methods and say nothing about a real LLM"
)
VERSION = 1  # bumped by hand when documents or items change: it is part of every key made of them

# Share of the documents (not of the tokens) that each domain has in the mixed stream.
MIX = {"articles": 0.32, "stories": 0.24, "arithmetic": 0.26, "code": 0.18}
# Documents a split: the fixed lists that `documents` returns.
_SIZES = {"train": 24_000, "calibration": 1_200, "heldout": 1_200}


@lru_cache(maxsize=32)
def _documents(split: Split, domain: str | None) -> tuple[str, ...]:
    if domain is not None:
        return tuple(islice(stream(split, domain), round(_SIZES[split] * MIX[domain])))
    mixed = [text for name in DOMAINS for text in _documents(split, name)]
    random.Random(bucket(f"mix|{split}", 2**31)).shuffle(mixed)
    return tuple(mixed)


def documents(split: str, domain: str | None = None) -> list[str]:
    """The documents of a split: one domain's, or all of them mixed, always in the same order."""
    return list(_documents(_split(split), _domain(domain)))


def prompts(split: str, domain: str | None = None) -> list[str]:
    """Each document's opening, for a model to continue: question, signature or first words."""
    split, domain = _split(split), _domain(domain)
    if domain is None:
        mixed = [text for name in DOMAINS for text in prompts(split, name)]
        random.Random(bucket(f"prompts|{split}", 2**31)).shuffle(mixed)
        return mixed
    return [_opening(text, domain) for text in _documents(split, domain)]


def stream(
    split: Split,
    domain: str | None = None,
    seed: int = SEED,
    mix: dict[str, float] | None = None,
) -> Iterator[str]:
    """Documents without end; the same seed gives the same documents."""
    if domain is not None:
        yield from _WRITERS[domain](split, random.Random(bucket(f"{seed}|{split}|{domain}", 2**31)))
        return
    rng = random.Random(bucket(f"{seed}|{split}|mixed", 2**31))
    writers = {name: stream(split, name, seed) for name in DOMAINS}
    names, weights = list(mix or MIX), list((mix or MIX).values())
    while True:
        yield next(writers[rng.choices(names, weights)[0]])


def _opening(text: str, domain: str) -> str:
    if domain == "arithmetic":
        return text[: text.index("\nA:") + len("\nA:")]
    if domain == "code":
        return text[: text.index('"""\n') + len('"""')]
    opening_words = text.split(" ")
    return " ".join(opening_words[: min(6, max(1, len(opening_words) // 2))])


def _split(split: str) -> Split:
    for known in SPLITS:
        if split == known:
            return known
    raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")


def _domain(domain: str | None) -> str | None:
    if domain is not None and domain not in _WRITERS:
        raise ValueError(f"unknown domain {domain!r}: one of {', '.join(DOMAINS)}")
    return domain
