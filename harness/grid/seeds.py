"""The seeds of a grid: `seed:` moves all that is random, `seeds:` one kind of it alone.

    seed: [0, 1, 2]
    seeds: {order: [0, 1, 2], data: 5}      # the order alone varies, on text drawn with 5

Not here: what each kind is, and graphs that draw from other seeds (`harness.core.seeds`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, cast

from harness.config.document import Document
from harness.core.records import Drawn
from harness.core.seeds import Seeds
from harness.grid.reading import fit, is_beside
from harness.grid.schema import GridFile, Seed


class Variation(NamedTuple):
    """The seeds of a grid by the number that its cells have, and what differs between them."""

    seeds: dict[int, Seeds]
    of: Drawn | None  # None of one seed


def read_seeds(document: Document, file: GridFile) -> Variation:
    """Raises GridError where they are said twice, or where two kinds vary."""
    if file.seeds is None or _is_overruled(document, file):
        own = file.seed if isinstance(file.seed, list) else [file.seed]
        numbers = fit(document, ("vary", "seed"), list[Seed], file.vary.get("seed", own))
        if "seed" in file.vary and is_beside(document, "seed"):
            message = "seed: the axis over seeds says it already: leave one out"
            raise document.error(("seed",), message)
        return Variation({n: Seeds.same(n) for n in numbers}, "all" if len(numbers) > 1 else None)
    said = file.seeds.model_dump()
    lists = {kind: each for kind, each in said.items() if isinstance(each, list)}
    if len(lists) > 1:
        one, other, *_ = lists
        message = f"seeds: {one!r} and {other!r} are both lists; one of them varies alone"
        raise document.error(("seeds", other), message)
    fixed = Seeds(**{kind: each for kind, each in said.items() if kind not in lists})
    if not lists:
        return Variation({fixed.order: fixed}, None)
    ((kind, numbers),) = lists.items()
    if not numbers:
        raise document.error(("seeds", kind), f"seeds.{kind} has no values")
    seeds = {number: replace(fixed, **{kind: number}) for number in numbers}
    return Variation(seeds, cast(Drawn, kind) if len(seeds) > 1 else None)


def _is_overruled(document: Document, file: GridFile) -> bool:
    """Whether the grid's own axis over seeds stands over the `seeds` of a base. Raises GridError
    where seeds are said twice."""
    own, axis = document.places[("seeds",)][0], document.places.get(("vary", "seed"))
    if axis is not None and axis[0] == document.file != own:
        return True
    if ("seed",) in document.places or "seed" in file.vary:
        raise document.error(("seeds",), "seeds: 'seed' says all of them already: leave one out")
    return False
