"""Whether a configuration asks for no more than a model has, before anything is built of it.

    check_sizes("mine", {"num_hidden_layers": 1_000_000})      # ModelError: … from 0 to 2,048
    with bounded("mine"):                                      # ModelError at too many modules
        network = build(config)

A network costs memory for each of its modules even without weights, and a list in a configuration
for each layer, so that these are counted in what the file says. What the files of weights hold is
the better bound where they are there. Not here: whether the parts fit each other (the library's
code says so, as it is run: `rehearsal`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch.nn.modules.module import register_module_module_registration_hook

from harness.core.errors import ModelError, first_line
from harness.core.misfit import show

# The least and most of what a configuration counts, by its name for it.
_LIMITS = (
    (re.compile(r"layers?$|blocks$|depth|n_layer|layers_"), 0, 2_048),
    (re.compile(r"chunk|conv|kernel|patch"), -1, 32_768),
    (re.compile(r"experts|heads?$|n_head|groups?$|stages"), 0, 65_536),
    (re.compile(r"size$|dim$|rank$|width|d_model|n_embd|n_inner|d_state"), 0, 2**24),
    (re.compile(""), -(2**63), 2**63 - 1),
)
_NOT_COUNTS = re.compile(
    r"_ids?$|_index$|_idx$|seed|window|(feature|select)_layers?$|audio|acoustic"
)
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_MOST_MODULES = 100_000  # of a network; each takes some KiB without weights
_LARGEST_FILE = 4 * 2**20  # bytes of a configuration
_LARGEST_SIDE_FILE = 128 * 2**20  # of a tokenizer, an index; those of 256,000 tokens have 35 MiB
_DEEPEST = 16


def read_facts(file: Path) -> Mapping[str, Any]:
    """What a model's configuration says. Raises ModelError where it is no configuration."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise ModelError(f"{file}: more than {_LARGEST_FILE // 2**20} MiB of configuration")
        facts = json.loads(content)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: is not JSON: {first_line(error)}") from None
    if not isinstance(facts, dict):
        raise ModelError(f"{file}: a configuration is a mapping")
    return facts


def check_side_files(folder: Path) -> None:
    """Raise ModelError where a JSON file beside a configuration is larger than any model has."""
    for file in sorted(folder.glob("*.json")):
        size = file.stat().st_size
        if size > _LARGEST_SIDE_FILE:
            most = f"more than the {_LARGEST_SIDE_FILE // 2**20} MiB that a model may have there"
            raise ModelError(f"{file}: {size / 2**20:,.0f} MiB, {most}")


def check_sizes(name: str, facts: Mapping[str, Any], tensors: int | None = None) -> None:
    """Raise ModelError for a number that no model has, with its place in the configuration.

    `tensors`: how many the files of weights hold, where they are there: a layer has one at least.
    """
    for path, number in _list_numbers(facts, ""):
        start = f"model {name!r}: its configuration's {path}: {show(number)}"
        if isinstance(number, float) and math.isnan(number):
            raise ModelError(f"{start} should be a number")
        key = path.rpartition(".")[2]
        if _NOT_COUNTS.search(key):
            continue
        kind, least, most = next(limit for limit in _LIMITS if limit[0].search(key))
        if kind.pattern and not least <= number <= most:
            raise ModelError(f"{start} should be from {least} to {most:,}")
        if isinstance(number, int) and not least <= number <= most:
            raise ModelError(f"{start} should fit in 64 bits")
        if key in _DEPTHS and tensors is not None and number > tensors:
            raise ModelError(f"{start} is more than its files of weights have tensors: {tensors}")


@contextmanager
def bounded(name: str) -> Iterator[None]:
    """Inside, no more modules are built than networks have. Raises ModelError."""
    count = 0

    def note(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > _MOST_MODULES:
            raise ModelError(f"model {name!r}: its network has more than {_MOST_MODULES:,} modules")

    handle = register_module_module_registration_hook(note)
    try:
        yield
    finally:
        handle.remove()


def count_tensors(folder: Path) -> int | None:
    """How many tensors the files of weights in a folder hold; None where there are none."""
    total = 0
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt") as opened:
                total += len(opened.keys())
        except (SafetensorError, OSError):
            return None  # said where it is loaded
    return total or None


def _list_numbers(facts: Any, path: str, depth: int = 0) -> Iterator[tuple[str, int | float]]:
    """Every number in a configuration with its dotted path, those in lists under the list's."""
    if depth > _DEEPEST:
        raise ModelError(f"{path[:60]}…: a configuration that is nested too deeply")
    if isinstance(facts, Mapping):
        for key, value in facts.items():
            yield from _list_numbers(value, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(facts, list | tuple):
        for value in facts:
            yield from _list_numbers(value, path, depth + 1)
    elif isinstance(facts, int | float) and not isinstance(facts, bool):
        yield path, facts
