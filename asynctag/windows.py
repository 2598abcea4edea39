"""Windows: places in a cached value that are filled afresh on every serve.

A window is a registered async function. Called inside a cached computation it gives a placeholder; where the value
leaves the outermost computation, by the decorator's caller or as a response, the functions run, side by side.
"""

import copy
import inspect
import math
import reprlib
import types
import typing
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, ParamSpec, TypeAlias, TypeVar, cast
from weakref import WeakKeyDictionary

import anyio
import msgspec

from asynctag.backends.base import Backend
from asynctag.codec import NOT_GIVEN
from asynctag.errors import ConfigurationError, CorruptEntryError, WindowError
from asynctag.failures import Failures
from asynctag.functions import is_in_class, resolve_annotations
from asynctag.keys import function_name
from asynctag.placeholders import Place, Placeholder, is_markup_type, places_here
from asynctag.running import Call, running
from asynctag.scope import gathering_scope

if TYPE_CHECKING:
    from asynctag.cache import Cache

P = ParamSpec("P")
R = TypeVar("R")

#: Gives the arguments of some parameters of a window, when it is filled.
Injection: TypeAlias = Callable[[], AbstractAsyncContextManager[Mapping[str, Any]]]

#: What an integration does with a window's function: the names of the parameters that it fills, and how; or None.
Injector: TypeAlias = Callable[[Callable[..., Any]], tuple[frozenset[str], Injection] | None]

_injectors: list[Injector] = []


def inject_into_windows(injector: Injector) -> None:
    """Have `injector` look at the windows that are defined from here on: for integrations."""
    _injectors.append(injector)


class Window(Generic[P, R]):
    """A registered async function, whose result stands in cached values without being cached itself.

    Called in a cached computation, or for a response behind the middleware, it gives what stands for it: text to be
    put into text, or a value of a dict or list. Elsewhere it is awaited, as the function would be.
    """

    #: Whether there is any window in this process: where there is none, nothing has to be ready to fill them.
    any_defined: ClassVar[bool] = False

    def __init__(
        self,
        cache: "Cache",
        function: Callable[P, Coroutine[Any, Any, R]],
        *,
        timeout: float | None,
        fallback: Any,
        name: str | None,
    ) -> None:
        _check_function(function)
        Window.any_defined = True
        update_wrapper(cast(Any, self), function)  # first: what it copies is the function's, and may have any name
        self.cache = cache
        self.function = function
        #: Seconds that it may take where it is filled; None if that does not matter.
        self.timeout = timeout
        self._fallback = _check_fallback(fallback)
        self.name = function_name(function, name)
        self._injected, self._inject = _injection(function, self.name)
        self._failures = Failures()
        self._signature, self._decode = _parameters(function, self.name, self._injected)

    def __repr__(self) -> str:
        return f"<window {self.name}>"

    @property
    def has_fallback(self) -> bool:
        return self._fallback is not NOT_GIVEN

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Placeholder[R]:
        """What stands for it, or can be awaited, by where it is called.

        Raises `WindowError` for arguments that are not JSON, `TypeError` for those that it does not take.
        """
        scope = gathering_scope()
        params = self._encode(args, kwargs)
        if scope is None:
            return cast(Placeholder[R], WindowCall(self, params))
        if scope.backend is not None and scope.backend is not self.cache._filling().backend:
            raise WindowError(
                f"{self.name} is a window of a cache on another backend than that of {scope.name}: others who read "
                f"what is stored there do not know it. Give both caches one backend"
            )
        places = places_here(scope)
        if places.stands_in(params):
            raise WindowError(
                f"{self.name}: an argument holds the placeholder of a window, and what that returns is not there yet. "
                f"Await the one inside of the other"
            )
        place = Place(f"{self.cache.namespace}|{self.name}", params)

        def awaited() -> Generator[Any, Any, R]:
            if not scope.may_await:
                raise WindowError(
                    f"{self.name} is awaited for {scope.name}, which is to be cached: what it returns would be "
                    f"everybody's. Place it, as text or as a value: it is filled afresh on every serve"
                )
            scope.forbid_store()
            return self.call(self.arguments(params)).__await__()

        return places.place(place, awaited if scope.is_response else None)

    def _encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        bound = self._signature.bind(*args, **kwargs).arguments
        for name, value in bound.items():
            if (found := _not_json(value, name)) is not None:
                raise WindowError(
                    f"{self.name}: {found}. What a window is placed with is stored with the page, as JSON, the same "
                    f"for everybody; what belongs to the request, it asks for when it is filled (current_request())"
                )
        params = msgspec.msgpack.encode(bound)
        try:
            self._decode(params)
        except msgspec.ValidationError as error:
            raise WindowError(
                f"{self.name} is placed with {reprlib.repr(bound)}, which it does not take: {error}"
            ) from error
        return params

    def arguments(self, params: bytes) -> dict[str, Any]:
        """The arguments that it was placed with; `CorruptEntryError` for what it cannot have been placed with."""
        try:
            given = self._decode(params)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise CorruptEntryError(f"the window {self.name} with parameters that it does not have: {error}") from error
        arguments = {name: getattr(given, name) for name in given.__struct_fields__}
        return {name: value for name, value in arguments.items() if value is not msgspec.UNSET}

    def check(self, params: bytes) -> None:
        """Raise `CorruptEntryError` unless it can have been placed with them."""
        for name, value in self.arguments(params).items():
            if (found := _not_json(value, name)) is not None:  # where any value is taken
                raise CorruptEntryError(f"the window {self.name} with parameters that are not JSON: {found}")

    async def call(self, arguments: Mapping[str, Any]) -> R:
        """Call the function, with what is injected into it."""
        function: Any = self.function
        value: R
        if self._inject is None:
            value = await function(**arguments)
            return value
        async with self._inject() as injected:
            value = await function(**arguments, **injected)
            return value
        raise WindowError(
            f"{self.name} has raised, and what is injected into it (a dependency with yield) has caught that: let the "
            f"exception through there, or raise it again"
        )

    def instead_of(self, error: Exception) -> Any:
        """The fallback, which takes the place of a failure."""
        self._failures.warn(f"the window {self.name}", error)
        return copy.deepcopy(self._fallback)

    async def fill(self, arguments: Mapping[str, Any]) -> Any:
        """What stands in its place: what the function returns within its timeout, or the fallback."""
        try:
            return await self.call_in_time(arguments)
        except Exception as error:
            if not self.has_fallback:
                raise
            return self.instead_of(error)

    async def call_in_time(self, arguments: Mapping[str, Any]) -> R:
        """As `call`, within its timeout."""
        with anyio.move_on_after(self.timeout):
            return await self.call(arguments)
        raise self.too_slow()

    def too_slow(self) -> TimeoutError:
        return too_slow(f"the window {self.name}", self.timeout)


def too_slow(what: str, timeout: float | None) -> TimeoutError:
    return TimeoutError(
        f"{what} took longer than its timeout of {timeout or 0:g} s: give it a longer one, or a fallback"
    )


class WindowCall(Generic[P, R]):
    """A window that was called where nothing is cached: to be awaited. Put into text it would say nothing."""

    __slots__ = ("_params", "_window")

    def __init__(self, window: Window[P, R], params: bytes) -> None:
        self._window = window
        self._params = params

    def __await__(self) -> Generator[Any, Any, R]:
        window = self._window
        return window.call(window.arguments(self._params)).__await__()

    def _refuse(self, *_: object) -> NoReturn:
        raise WindowError(
            f"{self._window.name} is put into text where nothing is cached and no CacheMiddleware fills it: await it"
        )

    __str__ = __format__ = __html__ = __add__ = __radd__ = __bytes__ = __iter__ = _refuse

    def __repr__(self) -> str:
        return f"<call of {self._window!r}>"


# --- filling -----------------------------------------------------------------------------------------


class Windows:
    """The windows that entries of one backend may hold, as one cache sees them: its own before those of others."""

    __slots__ = ("_all", "_own")

    def __init__(self, backend: Backend, own: dict[str, Window[..., Any]]) -> None:
        self._own = own
        self._all = _on.setdefault(backend, [])
        if not any(one is own for one in self._all):
            self._all.append(own)

    def find(self, place: Place) -> tuple[Window[..., Any], dict[str, Any]]:
        """A window and the arguments that it was placed with; `CorruptEntryError` where there is none such."""
        window = self._find(place.name)
        return window, window.arguments(place.params)

    def _find(self, name: str) -> Window[..., Any]:
        window = self._own.get(name)
        if window is None:
            window = next((one[name] for one in self._all if name in one), None)
            if window is None:
                raise CorruptEntryError(f"a window that is not defined in this process: {name.partition('|')[2]!r}")
        return window

    def check(self, places: Iterable[Place]) -> None:
        """Raise `CorruptEntryError` unless all of them, as they were stored, can be filled."""
        for place in places:
            self._find(place.name).check(place.params)

    async def fill(self, places: Iterable[Place]) -> dict[tuple[str, bytes], Any]:
        """What the windows return, by names and parameters. They run side by side, each once."""
        calls = {(place.name, place.params): place for place in places}
        found = [self.find(place) for place in calls.values()]
        return dict(zip(calls, await side_by_side(found), strict=True))


_on: "WeakKeyDictionary[Backend, list[dict[str, Window[..., Any]]]]" = WeakKeyDictionary()


async def side_by_side(calls: Sequence[Call]) -> list[Any]:
    """What `calls` give, in their order. The first that fails ends the others, and is raised, as it was."""
    async with running(calls) as windows:
        await windows.first_round()
        return [await windows.result(index) for index in range(len(calls))]


# --- what a window may be made of ----------------------------------------------------------------------


def _check_function(function: object) -> None:
    if isinstance(function, Window):
        raise ConfigurationError(f"{function!r} is a window already")
    if isinstance(function, staticmethod | classmethod) or not callable(function):
        raise ConfigurationError(f"@window goes over an async function (async def), not over {function!r}")
    whole: Any = inspect.unwrap(function)
    if not inspect.isfunction(whole) or not inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"@window goes over an async function (async def), not over {getattr(function, '__qualname__', function)!r}"
        )
    if is_in_class(whole):
        raise ConfigurationError(
            f"{whole.__qualname__} stands in a class: a window is called with JSON alone, which no self is. Define it "
            f"at module level"
        )


def _check_fallback(fallback: Any) -> Any:
    if fallback is not NOT_GIVEN and not is_markup_type(type(fallback)):
        if (found := _not_json(fallback, "fallback")) is not None:
            raise ConfigurationError(f"@window: {found}: give text, Markup, or another JSON value")
    return fallback


def _injection(function: Callable[..., Any], name: str) -> tuple[frozenset[str], Injection | None]:
    for injector in _injectors:
        found = injector(function)
        if found is not None:
            return found
    annotations = resolve_annotations(function)
    for parameter in inspect.signature(function).parameters.values():
        annotation = annotations.get(parameter.name)
        annotation = getattr(annotation, "__value__", annotation)  # of a `type` statement
        for mark in (parameter.default, *getattr(annotation, "__metadata__", ())):
            if type(mark).__module__ == "fastapi.params":
                raise ConfigurationError(
                    f"{name} declares a dependency of FastAPI ({parameter.name}): import asynctag.integrations.fastapi "
                    f"before it, which solves dependencies"
                )
    return frozenset(), None


_Decode: TypeAlias = Callable[[bytes], Any]


def _parameters(function: Callable[..., Any], name: str, injected: frozenset[str]) -> tuple[inspect.Signature, _Decode]:
    """The signature without what is injected, and what reads the parameters that a window was placed with."""
    signature = inspect.signature(function)
    for one in signature.parameters.values():
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD, one.POSITIONAL_ONLY):
            raise ConfigurationError(f"{name} takes {one}: name the parameters of a window, which it is given by name")
    kept = [one for one in signature.parameters.values() if one.name not in injected]
    annotations = resolve_annotations(function)
    fields: list[Any] = []
    for one in kept:
        annotation = annotations.get(one.name, Any)
        if not _is_json_type(annotation):
            raise ConfigurationError(
                f"{name} takes {one}: the parameters of a window are JSON, stored with the page. What belongs to the "
                f"request comes from current_request(), or from a dependency"
            )
        if one.default is one.empty:
            fields.append((one.name, annotation))
        else:
            fields.append((one.name, typing.Union[annotation, msgspec.UnsetType], msgspec.UNSET))  # noqa: UP007
    try:
        struct = msgspec.defstruct("Parameters", fields, forbid_unknown_fields=True, kw_only=True)
        decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(struct, ext_hook=_no_extension)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{name}: its parameters cannot be told apart as JSON: {error}") from error
    return signature.replace(parameters=kept), decoder.decode


def _no_extension(code: int, data: memoryview) -> NoReturn:
    raise ValueError("an extension type")


_ATOMS = (None, type(None), bool, int, float, str)


def _is_json_type(annotation: Any) -> bool:
    if annotation is Any or annotation is object or annotation in _ATOMS or annotation in (list, dict):
        return True
    if hasattr(annotation, "__supertype__"):
        return _is_json_type(annotation.__supertype__)
    origin: Any = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Literal:
        return all(type(one) in (type(None), int, str) for one in arguments)
    if origin is typing.Annotated:
        return _is_json_type(arguments[0])
    if origin in (typing.Union, types.UnionType, list):
        return all(map(_is_json_type, arguments))
    return origin is dict and arguments[0] is str and _is_json_type(arguments[1])


def _not_json(value: Any, where: str, depth: int = 0) -> str | None:
    """What of a value is not JSON, and would not come back as it is; None if all of it is."""
    kind = type(value)
    if depth > 32:
        return f"{where} is nested too deeply"
    if kind is Placeholder:
        return f"{where} is the placeholder of {value.places.find(value).window}"
    if kind is float:
        return None if math.isfinite(value) else f"{where} is {value!r}, which JSON does not have"
    if kind is int:
        return None if -(2**63) <= value < 2**64 else f"{where} is above 64 bits"
    if kind in (type(None), bool):
        return None
    if kind is str:
        return None if _is_unicode(value) else f"{where} is {value!r}, which holds half a surrogate pair"
    if kind is list:
        return next(filter(None, (_not_json(one, f"{where}[{i}]", depth + 1) for i, one in enumerate(value))), None)
    if kind is dict:
        for key, one in value.items():
            if type(key) is not str or not _is_unicode(key):
                return f"{where} has a key that is no text, {key!r}"
            if (found := _not_json(one, f"{where}[{key!r}]", depth + 1)) is not None:
                return found
        return None
    return f"{where} is of type {kind.__name__}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
