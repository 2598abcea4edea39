"""What stands before a route: whether its responses may be answered without running its dependencies.

FastAPI is never imported: its routes are read by their attributes, and what cannot be read counts as a guard. What a
dependency reads from `Request` itself cannot be seen here.
"""

import inspect
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, cast, get_args, get_origin

_Where = tuple[str, ...]

#: The methods of a class-based endpoint that a cached response may come from.
_METHODS = ("get", "head")


class _UnreadableError(Exception):
    """A tree of dependencies of a shape that is not known here."""


def effective_route(scope: Mapping[str, Any]) -> object | None:
    """The route that answers, with the dependencies of every router that it was included through.

    Since FastAPI includes routers without copying their routes, `scope["route"]` holds the route's own dependencies
    only; those of `include_router(dependencies=...)` are in a context that the routing leaves in the scope.
    """
    route: object | None = scope.get("route")
    extra = scope.get("fastapi")
    if isinstance(extra, Mapping):
        context = cast("Mapping[str, object]", extra).get("effective_route_context")
        if context is not None and getattr(context, "original_route", None) is route:
            return context
    return route


def why_not_public(route: object, *, vary: Collection[str], cookies: Collection[str] | None = None) -> str | None:
    """Why hits of `route` may not be served before its dependencies have run, or `None`.

    `route` is what `effective_route` gives. A security scheme always says no; a header or cookie parameter does
    unless the key of the response holds it: by `vary`, or by `cookies` for a cookie.
    """
    missing = object()
    dependant = getattr(route, "dependant", missing)
    if dependant is missing:
        return None
    held = frozenset(name.lower() for name in vary)
    held_cookies = None if "cookie" in held else frozenset(cookies or ())
    try:
        for declared in _items(route, "dependencies") if hasattr(route, "dependencies") else ():
            if _is_security_marker(declared):
                call = getattr(declared, "dependency", declared)
                return f"the route or its router declares {_name(call)} as security"
        for current, where in _tree(dependant):
            place = " > ".join(where) or "the endpoint"
            if reason := _security(current):
                return f"{reason} (in {place})"
            for name in _parameter_names(current, "header_params"):
                if name.lower() not in held:
                    return f"the header {name!r} is a parameter of {place}, and vary= does not name it"
            if held_cookies is not None:
                for name in _parameter_names(current, "cookie_params"):
                    if name not in held_cookies:
                        return f"the cookie {name!r} is a parameter of {place}, and cookies= does not name it"
    except _UnreadableError as error:
        return f"its dependencies cannot be read ({error})"
    return None


class Inputs(NamedTuple):
    """The request headers (lower-case) and cookies that an endpoint's own parameters are made of.

    `None` where they cannot be read: then any header may be one.
    """

    headers: frozenset[str] | None = frozenset()
    cookies: frozenset[str] | None = frozenset()


def inputs_of(route: object) -> Inputs:
    """What of a request, besides its URL, FastAPI makes the arguments of the route's endpoint of.

    Dependencies without a name (`dependencies=[...]`) guard: what they return reaches nobody. Those
    that are parameters, and theirs in turn, are inputs: a key that does not hold what they read is
    the wrong one.
    """
    missing = object()
    dependant = getattr(route, "dependant", missing)
    if dependant is missing:
        return Inputs()
    headers: set[str] = set()
    cookies: set[str] = set()
    try:
        waiting = [dependant]
        while waiting:
            current = waiting.pop()
            headers.update(name.lower() for name in _parameter_names(current, "header_params"))
            cookies.update(_parameter_names(current, "cookie_params"))
            for part in _unwrapped(_attribute(current, "call")):
                model = getattr(part, "model", None) if _is_scheme(part) else None
                place, name = getattr(getattr(model, "in_", None), "value", None), getattr(model, "name", None)
                if place == "header":
                    headers.add(str(name).lower())
                elif place == "cookie":
                    cookies.add(str(name))
            waiting.extend(one for one in _items(current, "dependencies") if _attribute(one, "name") is not None)
    except _UnreadableError:
        return Inputs(None, None)
    return Inputs(frozenset(headers), frozenset(cookies))


def is_part_of(endpoint: object, function: object) -> bool:
    """Whether a framework that calls `endpoint` calls `function`: which it wraps, binds, or has as a method."""
    try:
        for part in _unwrapped(endpoint):
            if part is function or getattr(part, "__func__", None) is function:
                return True
            if getattr(type(part), "__call__", None) is function:  # noqa: B004 - the method, to compare
                return True
            if isinstance(part, type) and any(
                vars(base).get(name) is function for base in part.__mro__ for name in _METHODS
            ):
                return True
    except _UnreadableError:
        pass
    return False


def _tree(dependant: object) -> Iterator[tuple[object, _Where]]:
    """Every dependant with the names of the callables on the way to it."""
    waiting: list[tuple[object, _Where]] = [(dependant, ())]
    seen: set[int] = set()
    while waiting:
        current, where = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current, where
        for child in _items(current, "dependencies"):
            waiting.append((child, (*where, _name(_attribute(child, "call")))))


def _security(dependant: object) -> str | None:
    call = _attribute(dependant, "call")
    for part in _unwrapped(call):
        if _is_scheme(part):
            return f"the security scheme {getattr(part, 'scheme_name', None) or type(part).__name__} is a dependency"
    # scopes by their present name and the one before; the list of schemes is of older releases
    for old in ("own_oauth_scopes", "security_scopes", "security_requirements"):
        if getattr(dependant, old, None):
            return f"{_name(call)} is a security dependency with scopes or schemes of its own"
    if getattr(dependant, "security_scopes_param_name", None) is not None:
        return f"{_name(call)} asks for the security scopes"
    for parameter in _signature(call):
        annotation = getattr(parameter.annotation, "__value__", parameter.annotation)  # of a `type` statement
        if any(_is_security_marker(mark) for mark in (parameter.default, *getattr(annotation, "__metadata__", ()))):
            return f"the parameter {parameter.name!r} of {_name(call)} is declared with Security"
    return None


def _unwrapped(call: object) -> Iterator[object]:
    """The callable, and what it wraps, is a part of, or is a method of."""
    for _ in range(100):
        yield call
        if isinstance(call, partial):
            call = call.func
        elif (inner := getattr(call, "__wrapped__", None)) is not None:
            call = inner
        elif inspect.ismethod(call):
            call = call.__self__
        else:
            return
    raise _UnreadableError(f"{_name(call)} is wrapped without end")


def _is_scheme(candidate: object) -> bool:
    return _has_base(type(candidate), "fastapi.security.", "SecurityBase")


def _is_security_marker(candidate: object) -> bool:
    return _has_base(type(candidate), "fastapi.params", "Security")


def _has_base(cls: type, module: str, name: str) -> bool:
    return any(base.__name__ == name and base.__module__.startswith(module) for base in cls.__mro__)


def _signature(call: object) -> Collection[inspect.Parameter]:
    if not callable(call):
        raise _UnreadableError(f"{call!r} is not callable")
    for eval_str in (True, False):
        try:
            return inspect.signature(call, eval_str=eval_str).parameters.values()
        except (NameError, SyntaxError, TypeError, AttributeError, ValueError):
            continue  # names of TYPE_CHECKING, or a callable of C without a signature: FastAPI reads it no better
    return ()


def _parameter_names(dependant: object, which: str) -> Iterator[str]:
    is_header = which == "header_params"
    for field in _items(dependant, which):
        info = _attribute(field, "field_info")
        model = _model_of(getattr(info, "annotation", None))
        if model is None or any(type(item).__name__ == "Json" for item in getattr(info, "metadata", ())):
            yield from _aliases(_attribute(field, "alias"), info, _attribute(field, "name"), config={}, dashes=False)
            continue
        config = getattr(model, "model_config", None)
        fields = getattr(model, "model_fields", None)
        if not isinstance(config, Mapping) or not isinstance(fields, Mapping):
            raise _UnreadableError(f"the model {_name(model)}")
        if config.get("extra") in ("allow", "forbid"):
            raise _UnreadableError(f"the model {_name(model)} reads every name, by extra={config['extra']!r}")
        for name, inner in cast("Mapping[str, object]", fields).items():
            dashes = is_header and bool(
                getattr(inner, "convert_underscores", getattr(info, "convert_underscores", True))
            )
            yield from _aliases(getattr(inner, "alias", None) or name, inner, name, config=config, dashes=dashes)


def _aliases(alias: object, info: object, name: object, *, config: Mapping[str, object], dashes: bool) -> Iterator[str]:
    """Every name that the value may be sent under."""
    names: list[object] = [alias]
    validation = getattr(info, "validation_alias", None)
    if isinstance(validation, str):
        names = [validation]
    elif validation is not None:
        choices = getattr(validation, "choices", None)
        if choices is None or not all(isinstance(choice, str) for choice in choices):
            raise _UnreadableError(f"the alias of {name}")
        names = [alias, *choices]  # releases differ in whether the alias still counts
    if config.get("validate_by_name") or config.get("populate_by_name") or config.get("validate_by_alias") is False:
        names.append(name)
    for each in names:
        if not isinstance(each, str):
            raise _UnreadableError(f"the name of {name}")
        yield each.replace("_", "-") if dashes and each == name else each


def _model_of(annotation: object) -> type | None:
    """The Pydantic model that a parameter is spread over: the annotation, also where it may be None."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        choices = [choice for choice in get_args(annotation) if choice is not NoneType]
        annotation = choices[0] if len(choices) == 1 else None
    return annotation if isinstance(annotation, type) and hasattr(annotation, "model_fields") else None


def _items(owner: object, name: str) -> list[object]:
    found = _attribute(owner, name)
    if not isinstance(found, (list, tuple)):
        raise _UnreadableError(f"{type(owner).__name__}.{name}")
    return list(cast("list[object]", found))


def _attribute(owner: object, name: str) -> object:
    missing = object()
    found = getattr(owner, name, missing)
    if found is missing:
        raise _UnreadableError(f"{type(owner).__name__}.{name}")
    return found


def _name(call: object) -> str:
    return str(getattr(call, "__qualname__", None) or type(call).__qualname__)
