"""What is wrong with a component's class, said where it is defined and in words of its author.

Most slips here are silent in Python: an attribute without a type is no field, a `ClassVar` with a
type is one, an old signature fails hours later. Not here: values of fields (`checked`), names that
are taken (`component`).
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pydantic

from harness.core.errors import BitgridError

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_checked: set[type] = set()


def check_body(cls: type) -> None:
    """Raise BitgridError, with file and line, for what a class's own text has wrong.

    Called as the class is made, so before it is a dataclass.
    """
    own, annotated = vars(cls), inspect.get_annotations(cls)
    for name in annotated.keys() & _list_class_variables(cls):
        if not _is_class_variable(annotated[name]):
            _refuse(cls, f"`{name}: …` is a field, and should belong to the class: {name} = …")
    for name in annotated:
        above = next((vars(each)[name] for each in cls.__mro__[1:] if name in vars(each)), None)
        if inspect.isfunction(above) or isinstance(above, classmethod | staticmethod):
            _refuse(
                cls, f"field `{name}` hides a function of that name, which is called; rename it"
            )
    if "name" in own and not (isinstance(own["name"], str) and _NAME.fullmatch(own["name"])):
        _refuse(cls, f"name = {own['name']!r}: should be letters, digits and hyphens, as in a grid")
    for name, thing in own.items():
        above = next((vars(each)[name] for each in cls.__mro__[1:] if name in vars(each)), None)
        if above is None and not name.startswith("_") and name not in annotated:
            if isinstance(thing, bool | int | float | str | tuple) and name != "name":
                kind = type(thing).__name__
                _refuse(
                    cls,
                    f"`{name} = {thing!r}` has no type, so it is no field: {name}: {kind} = …, or "
                    f"ClassVar[{kind}] for what no grid may set",
                )
        elif inspect.isfunction(thing) and inspect.isfunction(above) and not name.startswith("_"):
            _check_signature(cls, name, thing, above)
    made = own.get("__post_init__")
    if inspect.isfunction(made) and "__post_init__" not in made.__code__.co_names:
        _refuse(cls, "`__post_init__` should call super().__post_init__(), which checks the fields")


def check_class(cls: type) -> None:
    """Raise BitgridError, with file and line, where a class cannot be used. Looked at once."""
    if cls in _checked:
        return
    if lacking := sorted(getattr(cls, "__abstractmethods__", ())):
        _refuse(cls, f"it lacks {', '.join(f'`{name}`' for name in lacking)}")
    is_own = "__dataclass_fields__" in vars(cls)
    if not is_own or not vars(cls)["__dataclass_params__"].frozen:
        _refuse(cls, "it should be a frozen dataclass: put @dataclass(frozen=True) above it")
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        held = inspect.getattr_static(cls, name, None)
        is_plain = not (callable(held) or hasattr(held, "__get__"))  # a property is read of values
        if typing.get_origin(hint) is ClassVar and is_plain and name in _list_own(cls):
            _check_class_variable(cls, name, typing.get_args(hint)[0], held)
    _checked.add(cls)


def locate(cls: type) -> str:
    """Where a class is defined, `file:line`, and its name."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__
    try:
        line = f":{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError, IndexError):
        functions = [each for each in vars(cls).values() if inspect.isfunction(each)]
        own = [each.__code__ for each in functions if each.__code__.co_filename != "<string>"]
        file, line = (own[0].co_filename, f":{own[0].co_firstlineno}") if own else (file, "")
    return f"{file}{line}: {cls.__qualname__}"


def _refuse(cls: type, fault: str) -> typing.NoReturn:
    raise BitgridError(f"{locate(cls)}: {fault}")


def _check_signature(
    cls: type, name: str, own: Callable[..., Any], above: Callable[..., Any]
) -> None:
    """Raise BitgridError where a method cannot be called as the one that it overrides."""
    ours, theirs = inspect.signature(own), inspect.signature(above)
    required = [
        each.name
        for each in theirs.parameters.values()
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    try:
        ours.bind(*required)
    except TypeError:
        given, wanted = ", ".join(ours.parameters), ", ".join(required)
        _refuse(cls, f"`{name}` takes ({given}), and is called with ({wanted})")


def _check_class_variable(cls: type, name: str, kind: Any, held: object) -> None:
    try:
        pydantic.TypeAdapter(kind).validate_python(held, strict=True)
    except pydantic.ValidationError as error:
        told = error.errors()[0]["msg"].removeprefix("Input ")
        _refuse(cls, f"`{name} = {held!r}`: it {told}")
    except pydantic.PydanticUserError:  # no type that says what it takes
        return


def _list_class_variables(cls: type) -> set[str]:
    """The names that a class above declares to be of the class."""
    return {
        name
        for each in cls.__mro__[1:]
        for name, hint in inspect.get_annotations(each).items()
        if _is_class_variable(hint)
    }


def _is_class_variable(hint: Any) -> bool:
    if isinstance(hint, str):
        return re.match(r"(\w+\.)?ClassVar\b", hint) is not None
    return hint is ClassVar or typing.get_origin(hint) is ClassVar


def _list_own(cls: type) -> Iterator[str]:
    """Names that a class itself sets."""
    fields = {each.name for each in dataclasses.fields(typing.cast(Any, cls))}
    return (name for name in vars(cls) if name not in fields and not name.startswith("__"))
