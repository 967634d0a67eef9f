"""The JSON schema of a grid, by which an editor completes names and underlines what does not fit.

Made of the models that check a grid when it is read: the keys (`schema`), the settings of every
method and component (`harness.core.checked`), the options of tasks. `bitgrid schema` prints it; the
one that is committed, `docs/grid.schema.json`, knows the methods of this repository. Not here: what
a schema cannot say, such as whether an axis suits the method (`expand`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import pydantic

from harness.config.settings import list_places
from harness.core.checked import fields_adapter
from harness.core.records import DIAGNOSTICS, documentation
from harness.core.report_options import ReportOptions
from harness.evaluation.diagnostics import find_options
from harness.evaluation.evaluations import CATALOGUES, EVALUATIONS, find_evaluation
from harness.evaluation.lm_eval_options import LmEvalCodeOptions
from harness.grid.schema import GridFile
from harness.method import METHODS

Json: TypeAlias = dict[str, Any]


def make_schema() -> Json:
    """The schema, in the draft that editors read."""
    grid = GridFile.model_json_schema()
    settings, definitions = _describe_settings()
    definitions |= grid.pop("$defs")
    for name, meaning in documentation(ReportOptions).items():
        definitions["ReportOptions"]["properties"][name]["description"] = meaning
    definitions["Settings"] = _mapping(settings)
    definitions["Method"] = _describe_method(settings)
    tasks = {name: evaluation.options for name, evaluation in EVALUATIONS.load().items()}
    for catalogue in (each for each in CATALOGUES.load().values() if each.is_short):
        tasks |= {name: find_evaluation(name).options for name in catalogue.names()}
    diagnostics = {name: find_options(name) for name in DIAGNOSTICS}
    options = dict.fromkeys([*tasks.values(), *diagnostics.values(), LmEvalCodeOptions])
    definitions |= {each.__name__: _describe_options(each) for each in options}
    definitions["Published"] = {"anyOf": [_TEXT, definitions["Published"]]}  # a name alone will do
    axes = {path: _list_of(_refer("Settings", path)) for path in settings}
    definitions["Tune"]["properties"] |= axes
    definitions["Tune"]["additionalProperties"] = False
    seed = _list_of({"type": "integer"})
    grid["properties"] |= {
        "base": {"anyOf": [_TEXT, _list_of(_TEXT)]},
        "method": _refer("Method"),
        "compare": _list_of(_refer("Method")),
        "defaults": _refer("Settings"),
        "vary": _mapping({**axes, "seed": seed, "model": _list_of(_TEXT)}),
        "evaluate": _list_named(tasks, others=LmEvalCodeOptions),
        "diagnose": _list_named(diagnostics),
    }
    required = {"anyOf": [{"required": ["base"]}, {"required": grid.pop("required")}]}
    draft = {"$schema": "http://json-schema.org/draft-07/schema#"}
    return {**draft, **_tidy({**grid, **required, "$defs": dict(sorted(definitions.items()))})}


def _describe_settings() -> tuple[Json, Json]:
    """The schema of each dotted path over all methods and components, and what these refer to."""
    methods = dict.fromkeys(type(entry.method) for entry in METHODS.load().values())
    places = [place for method in methods for place in list_places(method)]
    adapters = {cls: fields_adapter(cls) for _, cls, _ in places}
    written, whole = pydantic.TypeAdapter.json_schemas(
        [(cls, "validation", adapter) for cls, adapter in adapters.items()]
    )
    definitions = whole.get("$defs", {})
    fields, own = {}, set()  # own: of classes; two of one name and alike share one
    for cls in adapters:
        schema: Json = dict(written[cls, "validation"])
        if "$ref" in schema:
            own.add(name := schema["$ref"].rpartition("/")[2])
            schema = definitions[name]
        fields[cls] = schema.get("properties", {})
    definitions = {name: schema for name, schema in definitions.items() if name not in own}
    choices: dict[str, list[Json]] = {}
    for path, cls, field in places:
        choices.setdefault(path, []).append(_tidy(fields[cls][field]))
    return {path: _any_of(schemas) for path, schemas in sorted(choices.items())}, definitions


def _describe_method(settings: Iterable[str]) -> Json:
    """A method's name, or a mapping of name, label and settings."""
    name = {"enum": list(METHODS.load())}
    paths = {path: _refer("Settings", path) for path in settings}
    return _any_of([name, _mapping({"name": name, "label": _TEXT, **paths}, ["name"])])


def _describe_options(options: type) -> Json:
    """A mapping of options; nothing after a name says that there are none."""
    return _any_of([pydantic.TypeAdapter(options).json_schema(), {"type": "null"}])


def _list_named(options: Mapping[str, type], others: type | None = None) -> Json:
    """Names, each alone or with options; there are more names than are known here.

    `others`: the options of those.
    """
    known = {name: _refer(kind.__name__) for name, kind in options.items()}
    unknown: Json = {} if others is None else {"additionalProperties": _refer(others.__name__)}
    named = {"type": "object", "properties": known, **unknown}
    return _list_of(_any_of([{"enum": list(options)}, _TEXT, named]))


_TEXT: Json = {"type": "string"}


def _refer(*steps: str) -> Json:
    return {"$ref": "#/$defs/" + "/properties/".join(steps)}


def _list_of(items: Json) -> Json:
    return {"type": "array", "items": items}


def _any_of(schemas: Iterable[Json]) -> Json:
    choices: list[Json] = []
    for schema in schemas:
        for choice in schema["anyOf"] if schema.keys() == {"anyOf"} else [schema]:
            if choice not in choices:
                choices.append(choice)
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def _mapping(properties: Json, required: Iterable[str] = ()) -> Json:
    names = {"required": list(required)} if required else {}
    return {"type": "object", "properties": properties, "additionalProperties": False, **names}


def _tidy(schema: Any, names: bool = False) -> Any:
    """`schema` without titles, which repeat names, and defaults, which methods set otherwise.

    A description is cut to its first line, which fits a tooltip. `names`: the keys of `schema` are
    names of the grid's, not words of the schema's.
    """
    if isinstance(schema, list):
        return [_tidy(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if not names and "description" in schema:
        schema = schema | {"description": schema["description"].partition("\n")[0]}
    return {
        key: each if key == "enum" else _tidy(each, key in ("properties", "$defs") and not names)
        for key, each in schema.items()
        if names or key not in ("title", "default")
    }
