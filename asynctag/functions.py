"""What can be told of a function that is decorated: its annotations, where it stands, whether its name is taken."""

import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from asynctag.errors import ConfigurationError


def resolve_annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations that can be resolved now, each by itself: one that cannot does not hide the others."""
    namespace = getattr(inspect.unwrap(function), "__globals__", {})
    resolved: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            resolved |= typing.get_type_hints(holder, globalns=namespace, include_extras=True)
        except (NameError, AttributeError, TypeError, SyntaxError):
            continue
    return resolved


def is_in_class(function: Callable[..., Any]) -> bool:
    around, _, _ = function.__qualname__.rpartition(".")
    return bool(around) and not around.endswith("<locals>")


def check_name_is_free(
    names: Mapping[str, Callable[..., Any]], name: str, function: Callable[..., Any], *, named: bool, would: str
) -> None:
    """Raise where another function has the name; a module may be loaded again, a function defined again at a prompt.

    `named`: the name was given by the user, and means one function. Two of one name `would` do what is said.
    """
    other = names.get(name, function)
    if not named and not _is_being_imported(function):
        return
    if not _is_redefinition(other, function):
        raise ConfigurationError(
            f"{name!r} is taken on this cache by {other.__module__}.{other.__qualname__}: two functions under one name "
            f"would {would}. Give this one a name= of its own"
        )


def _is_being_imported(function: Callable[..., Any]) -> bool:
    """Whether the function's module runs for the first time: two functions of one name are two, then."""
    spec = getattr(sys.modules.get(function.__module__), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _is_redefinition(old: Callable[..., Any], new: Callable[..., Any]) -> bool:
    """Whether `new` is `old` again: the same code over the same things, or a cell of a notebook that was run again."""
    if old is new:
        return True
    if old.__module__ == new.__module__ == "__main__" and "<locals>" not in new.__qualname__:
        return old.__qualname__ == new.__qualname__
    return (
        old.__code__ == new.__code__
        and [id(one) for one in old.__defaults__ or ()] == [id(one) for one in new.__defaults__ or ()]
        and {name: id(one) for name, one in (old.__kwdefaults__ or {}).items()}
        == {name: id(one) for name, one in (new.__kwdefaults__ or {}).items()}
        and [_content(cell) for cell in old.__closure__ or ()] == [_content(cell) for cell in new.__closure__ or ()]
    )


def _content(cell: types.CellType) -> object:
    try:
        return id(cell.cell_contents)
    except ValueError:  # not filled yet
        return None
