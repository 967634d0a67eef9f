"""What a plan says where a grid scores no text but those that its methods are fitted to.

A perplexity beside it, on a text that none of them read, shows whether what they learnt holds
elsewhere; nothing is added unasked, since that would change what a grid costs and answers. Not
here: what a report says of such a column (`reports.numbers.domains`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from harness.core.lineage import Lineage, is_alike


def describe_in_domain(
    models: Iterable[tuple[str, str]],
    scores: Iterable[str],
    stages: Mapping[str, Mapping[str, Any]],
) -> tuple[str, ...]:
    """A line that names the perplexity to add, where there is one; else none.

    `models`: label and key of the model of each cell, of trials too. `scores`: keys of what the
    rows are scored by. `stages`: described, by key.
    """
    lineage = Lineage(stages)
    read = dict.fromkeys(text for key in scores if (text := lineage.find_text(key)) is not None)
    behind = {
        (label, key): {*lineage.list_trained(key), *lineage.list_calibrated(key)}
        for label, key in models
    }
    fitted = dict.fromkeys(
        label
        for (label, _), texts in behind.items()
        if read and all(_is_among(text, texts) for text in read)
    )
    beside = _find_other(list(read), set().union(*behind.values())) if fitted else None
    if beside is None:
        return ()
    be = "is" if len(fitted) == 1 else "are"
    return (
        f"in-domain: {', '.join(fitted)} {be} trained or calibrated on what perplexity reads, "
        f"{' and '.join(read)}, and no other text is scored; {beside} under evaluate, with the "
        "same window and limit, shows another domain",
    )


def _find_other(read: Collection[str], fitted: Collection[str]) -> str | None:
    """The first perplexity of a text to which nothing is fitted. Its text has the caveat of those
    that are read: an invented world is no other domain of a real one."""
    from harness.data.sources import find_text
    from harness.evaluation.evaluations import EVALUATIONS
    from harness.evaluation.perplexity import PerplexityTask

    caveats = {find_text(text)[0].caveat for text in read}
    tasks = {n: each for n, each in EVALUATIONS.load().items() if isinstance(each, PerplexityTask)}
    texts = {name: each.protocol.text for name, each in tasks.items()}
    others = (name for name, text in texts.items() if not _is_among(text, fitted))
    return next((name for name in others if find_text(texts[name])[0].caveat in caveats), None)


def _is_among(text: str, texts: Collection[str]) -> bool:
    return any(is_alike(each, text) for each in texts)
