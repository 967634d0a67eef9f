"""The pages of the reference that are made of the code: they cannot say what it does not.

Not here: pages that a person wrote, which tests hold to the code (docs/grids.md, docs/data.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, get_type_hints

from pages import ROOT

Lines: TypeAlias = Iterator[str]
Schema: TypeAlias = Mapping[str, Any]

TYPES = {"string": "text", "integer": "whole number", "boolean": "true or false"}
TYPES |= {"object": "mapping"}
BOUNDS = {"minimum": "from", "exclusiveMinimum": "above"}
BOUNDS |= {"maximum": "to", "exclusiveMaximum": "below"}


def write_pages() -> dict[str, str]:
    """The pages by name, in Markdown."""
    import harness.api
    import methods.parts

    pages: dict[str, Lines] = {
        "verbs": _describe_verbs(),
        "schema": _describe_schema(),
        "methods": _describe_methods(),
        "components": _describe_components(),
        "records": _describe_records(),
        "api": _list_names(harness.api, "what authors of methods may import of the engine"),
        "parts": _list_names(methods.parts, "what authors may make methods of"),
    }
    return {name: "\n".join(lines) + "\n" for name, lines in pages.items()}


def _describe_verbs() -> Lines:
    from harness.cli.main import make_parser

    parser = make_parser()
    (verbs,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    yield "# Verbs\n\nWhat `bitgrid VERB --help` prints. Exit codes: 0 done, 1 something failed"
    yield "or differs, 2 bad input, 130 interrupted. All verbs take `--store FOLDER` (where values"
    yield "are kept), `--device cpu|cuda|cuda:1` and `--traceback` (the whole of an error).\n"
    for name, verb in verbs.choices.items():
        example = (verb.epilog or "").partition("\n")[2].strip()
        yield f"## {name}\n\n{_sentence(verb.description)}\n\n```sh\n{example}\n```\n"
        rows = [
            (f"`{_name_argument(each)}`", each.help or "")
            for each in verb._actions
            if each.dest not in ("help", "store", "device", "traceback")
        ]
        if rows:
            yield from _make_table(("argument", "meaning"), rows)


def _name_argument(argument: argparse.Action) -> str:
    if not argument.option_strings:
        return str(argument.metavar or argument.dest)
    value = argument.metavar or (
        "|".join(map(str, argument.choices)) if argument.choices else argument.dest.upper()
    )
    takes_none = argument.nargs == 0
    return argument.option_strings[-1] + ("" if takes_none else f" {value}")


def _describe_schema() -> Lines:
    from harness.grid.editor import make_schema

    schema = make_schema()
    parts = schema["$defs"]
    yield "# Schema of a grid\n\nWhat `bitgrid schema` says of the keys of a grid;"
    yield "[what a grid may say](../grids.md) tells what they mean. Settings of methods and parts"
    yield "are in [methods](methods.md) and [components](components.md).\n"
    yield from _describe_object("Keys of a grid", schema, parts)
    for title, name in (
        ("report", "ReportOptions"),
        ("published", "Published"),
        ("tune", "Tune"),
        ("tune.on", "TuneText"),
        ("Options of a perplexity", "PerplexityOptions"),
        ("Options of a packed perplexity or divergence", "PackedOptions"),
        ("Options of a task of lm-eval", "LmEvalOptions"),
        ("Options of a task that runs code", "LmEvalCodeOptions"),
    ):
        yield from _describe_object(title, parts[name], parts)


def _describe_object(title: str, schema: Schema, parts: Schema) -> Lines:
    yield f"## {title}\n"
    if "anyOf" in schema and "properties" not in schema:  # a name, or a mapping
        (schema,) = (each for each in schema["anyOf"] if "properties" in each)
    needed = schema.get("required", ())
    rows = [
        (
            f"`{key}`" + (", required" if key in needed else ""),
            _describe_type(each, parts),
            each.get("description", ""),
        )
        for key, each in schema["properties"].items()
    ]
    size = 3 if any(meaning for *_, meaning in rows) else 2
    head = ("key", "what it may be", "meaning")
    yield from _make_table(head[:size], (row[:size] for row in rows))


def _describe_type(schema: Schema, parts: Schema) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_describe_type(each, parts) for each in schema["anyOf"]))
    if "$ref" in schema:
        *_, place, name = schema["$ref"].split("/")
        return _describe_type(parts[name], parts) if place == "$defs" else "anything"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"list of ({_describe_type(schema.get('items', {}), parts)})"
    return " ".join([TYPES.get(kind, kind), *_list_bounds(schema)])


def _list_bounds(schema: Schema) -> Lines:
    for key, words in BOUNDS.items():
        if key in schema and abs(schema[key]) < 2**53:  # beyond are the limits of 64 bits
            yield f"{words} {schema[key]:,}"


def _describe_methods() -> Lines:
    from harness.method import METHODS
    from harness.run.listing import read_methods

    listing = read_methods()
    yield "# Methods\n\nWhat `bitgrid methods NAME` prints. A field is a setting that a grid sets"
    yield "or varies by its path; those of parts (`format.bits`): [components](components.md).\n"
    for name, method in listing.methods.items():
        if not Path(method.source).is_relative_to(ROOT):
            continue  # of a package that happens to be installed
        package = METHODS.load()[name].method.needs
        yield f"## {method.title}\n"
        needs = f" Needs {', '.join(package)}." if package else ""
        source = Path(method.source).relative_to(ROOT)
        yield f"`{name}`: {_sentence(method.about)}{needs} [Source](../../{source}).\n"
        rows = [
            (f"`{each.path}`", f"`{each.value}`" if each.value else "", each.text)
            for each in method.settings
            if "." not in each.path or each.path.startswith("train.")
        ]
        yield from _make_table(("setting", "default", "meaning"), rows)
    if listing.unavailable:
        yield "## Unavailable where this was built\n"
        yield from (f"- `{name}`: {why}" for name, why in listing.unavailable.items())


def _describe_components() -> Lines:
    from harness.config.settings import find_families
    from harness.method import METHODS
    from harness.run.listing import describe_part
    from methods.recipe import Recipe

    METHODS.load()
    yield "# Components\n\nThe parts of a method that is a recipe. A grid chooses one by its name"
    yield "(`format: nf`), and sets its fields by path (`format.bits: 3`).\n"
    for place, family in find_families(Recipe).items():
        if "." in place:
            continue
        yield f"## {place}\n"
        for name, part in sorted(family.siblings().items()):
            yield f"### {place}: {name}\n\n{inspect.cleandoc(part.__doc__ or '')}\n"
            fields = describe_part(part).settings
            rows = [(f"`{each.path}`", f"`{each.value}`", each.text) for each in fields]
            yield from _make_table(("field", "default", "meaning"), rows) if rows else ()


def _describe_records() -> Lines:
    from harness.core import records

    yield "# Rows and records\n\nWhat each line of an export holds: JSON objects with these fields,"
    yield f"and `schema`, the version of these definitions, now {records.SCHEMA}. As DataFrames:"
    yield "[the records](../reports.md#the-records).\n"
    kinds: list[tuple[str, type]] = [
        ("rows.jsonl: a score of a cell", records.Row),
        ("items.jsonl.gz: the items behind a score", records.RowItems),
        ("curves.jsonl: a step of a training", records.CurvePoint),
        ("provenance.jsonl: a stage behind the rows", records.StageRecord),
        ("grid.json: what was asked", records.GridHead),
        *((f"diagnostics.jsonl: {name}", kind) for name, kind in records.DIAGNOSTICS.items()),
        ("Tuning, of a row", records.Tuning),
        ("Hole, of a grid", records.Hole),
    ]
    for title, kind in kinds:
        meanings = records.documentation(kind)
        yield f"## {title}\n"
        yield from _make_table(
            ("field", "type", "meaning"),
            (
                (f"`{each.name}`", f"`{_name_type(kind, each.name)}`", meanings[each.name])
                for each in dataclasses.fields(kind)
            ),
        )


def _name_type(kind: type, name: str) -> str:
    hint = get_type_hints(kind)[name]
    return (
        hint.__name__
        if isinstance(hint, type) and not hasattr(hint, "__args__")
        else (str(hint).replace("typing.", "").replace("harness.core.records.", ""))
    )


def _list_names(module: Any, title: str) -> Lines:
    """Each public name of a list, as mkdocstrings shows it."""
    yield f"# {module.__name__}\n\n{_sentence(title)} What is not here may change without a word.\n"
    for name in module.__all__:
        yield f"::: {module.__name__}.{name}\n"


def _sentence(text: str | None) -> str:
    text = (text or "").strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _make_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Lines:
    yield f"| {' | '.join(head)} |"
    yield f"|{' :-- |' * len(head)}"
    for row in rows:
        cells = (" ".join(_escape(cell).split()).replace("|", "\\|") for cell in row)
        yield f"| {' | '.join(cells)} |"
    yield ""


def _escape(text: str) -> str:
    """Text in which nothing but code may have an angle bracket, which would be taken for HTML."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)
