"""The decorator: an async function that keeps what it returns."""

import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from asynctag.backends.base import Reading
from asynctag.codec import NOT_GIVEN, Codec, codec_for
from asynctag.errors import BackendError, ConfigurationError, CorruptEntryError
from asynctag.expiry import Expiry
from asynctag.explain import Explanation
from asynctag.fill import MISSING, Job, Looked
from asynctag.functions import check_name_is_free, is_in_class, resolve_annotations
from asynctag.keys import build_binder, build_key_maker, function_name
from asynctag.names import describe, function_tag, key_name, tag_name
from asynctag.scope import current_scope, live_scope
from asynctag.skeleton import Skeleton
from asynctag.sync import refuse_in_event_loop
from asynctag.tags import compile_tags
from asynctag.thaw import is_immutable

if TYPE_CHECKING:
    from asynctag.cache import Cache

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Cached(Protocol[P, R_co]):
    """An async function whose results are cached. It is called and awaited as before."""

    __name__: str
    __wrapped__: Callable[..., Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key of the entry for these arguments, as `Cache.lookup`, `delete` and `explain` take it."""
        ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, None]:
        """Drop the entry for these arguments, and whatever was built from it."""
        ...

    def invalidate_all(self) -> Coroutine[Any, Any, None]:
        """Drop every entry of the function, and whatever was built from them: one tag."""
        ...

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """Compute now, store and return the result, whatever is cached. What was built from the old value stays."""
        ...

    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """Call the function itself: nothing is looked up or stored for it."""
        ...

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Explanation]:
        """What is cached for these arguments, and why it would miss."""
        ...

    @property
    def sync(self) -> "SyncCached[P]":
        """What invalidates it, for threads without an event loop."""
        ...

    @overload
    def __get__(self, obj: None, owner: type | None = None) -> "Cached[P, R_co]": ...

    @overload
    def __get__(
        self: "Cached[Concatenate[Any, Q], R_co]", obj: object, owner: type | None = None
    ) -> "Cached[Q, R_co]": ...


@dataclass(frozen=True, slots=True)
class Options:
    """What `Cache.cached` was given."""

    expiry: Expiry
    tags: Iterable[str] | Callable[..., Iterable[str]] | None
    name: str | None
    key: Callable[..., object] | None
    exclude: Collection[str]
    version: str | int | None
    returns: Any


class Definition(Generic[P, R]):
    """A decorated function: how its keys, tags and entries are made. What `Cached` promises is done here."""

    def __init__(self, cache: "Cache", options: Options, function: Callable[P, Coroutine[Any, Any, R]]) -> None:
        _check_function(function)
        self.cache = cache
        self.function = function
        self.expiry = options.expiry
        self.name = function_name(function, options.name)
        self.exclude = frozenset({options.exclude} if isinstance(options.exclude, str) else options.exclude)
        self.has_key = options.key is not None
        self._is_method = is_in_class(function)
        self._unkeyed = _unkeyed(function, self.exclude, options.key)
        prefix = key_name(cache.namespace, "")
        self._prefix = len(prefix)
        self.make_key = build_key_maker(
            function,
            name=self.name,
            prefix=prefix,
            exclude=self.exclude,
            key=options.key,
            version=options.version,
        )
        self.bind = build_binder(function)
        annotations = resolve_annotations(function)
        self.tags_of = compile_tags(options.tags, inspect.signature(function), owner=self.name, annotations=annotations)
        self.tag = function_tag(cache.namespace, self.name)
        #: None until the first call, where the return annotation cannot be resolved yet.
        self.codec: Codec | None = None
        returns = annotations.get("return", NOT_GIVEN) if options.returns is NOT_GIVEN else options.returns
        if returns is not NOT_GIVEN or "return" not in function.__annotations__:
            self.codec = codec_for(returns, owner=self.name)
        self._register(options.name)

    def _register(self, name: str | None) -> None:
        """Two functions under one name would share their entries."""
        check_name_is_free(self.cache._names, self.name, self.function, named=name is not None, would="share entries")
        self.cache._names[self.name] = self.function

    def codec_now(self) -> Codec:
        """The codec of the return annotation, resolved by the first call at the latest."""
        if self.codec is None:
            annotation = resolve_annotations(self.function).get("return", NOT_GIVEN)
            if annotation is NOT_GIVEN:
                written = self.function.__annotations__["return"]
                raise ConfigurationError(
                    f"{self.name}: the return annotation {written!r} cannot be resolved. Import what it names outside "
                    f"`if TYPE_CHECKING:` and at module level, or give returns="
                )
            self.codec = codec_for(annotation, owner=self.name)
        return self.codec

    def job(self, key: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Job:
        namespace = self.cache.namespace
        declared = (tag_name(namespace, one) for one in self.tags_of(self.bind(*args, **kwargs)))
        return Job(
            describe(key, namespace).removeprefix("key "),
            key,
            (key, self.tag, *self.cache._implicit, *declared),
            self.codec_now(),
            self.expiry,
            namespace,
            partial(self.function, *args, **kwargs),
            in_background=self._may_wait(args, kwargs),
        )

    def _may_wait(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a computation with these arguments may begin when the caller is gone already.

        What does not count for the key is often bound to the request: a session, a connection. And
        what can be changed may have been changed by then, and would be stored under the old key.
        """
        counted = args[1:] if self._is_method else args
        return not self._unkeyed and all(map(is_immutable, counted)) and all(map(is_immutable, kwargs.values()))

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        return self.make_key(*args, **kwargs)[self._prefix :]

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        await self.cache._invalidate([self.make_key(*args, **kwargs)])

    async def invalidate_all(self) -> None:
        await self.cache._invalidate([self.tag])

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        value: R = await self.cache._refresh(self.job(self.make_key(*args, **kwargs), args, kwargs))
        return value

    async def uncached(self, *args: P.args, **kwargs: P.kwargs) -> R:
        # What is built from it depends on its tags all the same, and its windows are filled.
        value: R = await self.cache._filling().compute_unstored(self.job(self.make_key(*args, **kwargs), args, kwargs))
        return value

    async def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        key = self.make_key(*args, **kwargs)
        return await self.cache._explain(key[self._prefix :], key, self.expiry.while_leased)


class SyncCached(Generic[P]):
    """What invalidates a cached function, for threads without an event loop: there it cannot be called.

    In a transaction, and where it raises: as `SyncCache.invalidate`.
    """

    __slots__ = ("_bound", "_definition")

    def __init__(self, definition: Definition[..., Any], *bound: object) -> None:
        self._definition = definition
        self._bound = bound

    def __repr__(self) -> str:
        return f"<{self._definition.name}, without an event loop>"

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Drop the entry for these arguments, and whatever was built from it."""
        refuse_in_event_loop(f"{self._definition.name}.sync.invalidate()", "await function.invalidate()")
        self._definition.cache.sync._invalidate([self._definition.make_key(*self._bound, *args, **kwargs)])

    def invalidate_all(self) -> None:
        """Drop every entry of the function, and whatever was built from them: one tag."""
        refuse_in_event_loop(f"{self._definition.name}.sync.invalidate_all()", "await function.invalidate_all()")
        self._definition.cache.sync._invalidate([self._definition.tag])


def decorate(cache: "Cache", options: Options, function: Callable[P, Coroutine[Any, Any, R]], /) -> Any:
    """A plain function for a function (Starlette takes an instance for an application), a descriptor in a class."""
    _refuse_wrapped_methods(function)
    definition: Definition[P, R] = Definition(cache, options, function)
    wrapper = _wrapper(definition)
    return CachedMethod(definition, wrapper) if is_in_class(function) else wrapper


def _wrapper(definition: Definition[P, R]) -> Any:
    cache, make_key, job, get_scope = definition.cache, definition.make_key, definition.job, current_scope.get

    async def cached(*args: P.args, **kwargs: P.kwargs) -> Any:
        key = make_key(*args, **kwargs) if kwargs else make_key(*args)
        remote = cache._remote
        if remote is not None:  # as `Filler.obtain`, but the job is made last: that takes longer than a hit does
            codec = definition.codec or definition.codec_now()
            backend, flights, parent = remote.backend, remote.flights, get_scope()
            came, landed = flights.begun, flights.landed
            if parent is not None and (parent := live_scope()) is not None and parent.transaction is not None:
                return await remote.obtain(job(key, args, kwargs))
            try:
                reading: Reading | None
                if remote._agreed and not remote.pending.names:  # mostly: one coroutine less to go through
                    reading = await backend.read(key)
                else:
                    reading = await remote.read(key)
            except BackendError as error:
                remote._cannot_read(error)
                reading = None
            except BaseException:  # what the caller does instead depends on it too
                if parent is not None:
                    parent.gather(job(key, args, kwargs).tags, backend)
                raise
            entry = reading.entry if reading is not None and not reading.stale else None
            if entry is not None and (entry.renew_from >= entry.fresh_until or backend.clock() < entry.renew_from):
                decoded = entry.decoded
                value = decoded[1] if decoded is not None and decoded[0] is codec else remote.load(entry, codec)
                if value is not MISSING:
                    if parent is not None:
                        parent.absorb(entry, backend)
                    return value if type(value) is not Skeleton else await remote.hand_out(value)
            return await remote.obtain(job(key, args, kwargs), Looked(came, landed, reading))
        entry = cache._peek(key)
        if entry is not None and entry.codec is definition.codec:
            scope = get_scope()
            if scope is not None:
                if scope.transaction is not None:  # whether it may be served there, is for `obtain` to find out
                    return await cache._obtain(job(key, args, kwargs))
                scope.absorb(entry, cache._filling().backend)
            thaw = entry.thaw
            if thaw is None:
                return entry.body
            try:
                return thaw(entry.body)
            except CorruptEntryError:  # a validator that has changed its mind: `_obtain` takes it for a miss
                pass
        return await cache._obtain(job(key, args, kwargs))

    wrapper: Any = update_wrapper(cached, definition.function)
    for method in ("key", "invalidate", "invalidate_all", "refresh", "uncached", "explain"):
        setattr(wrapper, method, getattr(definition, method))
    wrapper.sync = SyncCached(definition)
    return wrapper


class CachedMethod:
    """A cached function in a class: `obj.method` binds `obj`, for the call and for everything else."""

    def __init__(self, definition: Definition[..., Any], wrapper: Any) -> None:
        self._definition = definition
        self._wrapper = wrapper
        update_wrapper(typing.cast(Any, self), definition.function)

    def __set_name__(self, owner: type, name: str) -> None:
        self._check_instances_of(owner, f"{owner.__qualname__}.{name}")

    def _check_instances_of(self, owner: type, called: str, hint: str = "") -> None:
        definition = self._definition
        instance = next(iter(inspect.signature(definition.function).parameters))
        if hasattr(owner, "__cache_key__") or instance in definition.exclude or definition.has_key:
            return
        raise ConfigurationError(
            f"{called} is a method, and nothing tells the instances of {owner.__qualname__} apart: give the class a "
            f"method __cache_key__() that returns what does, or exclude={{{instance!r}}} if all of them may share "
            f"their entries{hint}"
        )

    def __get__(self, obj: object | None, owner: type | None = None) -> Any:
        return self._wrapper if obj is None else BoundCached(self._definition, self._wrapper, obj)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Called by another decorator over it, which has hidden it from its class."""
        hint = ". (Below @staticmethod there are no instances: cache a function at module level)"
        self._check_instances_of(type(args[0]) if args else type(None), self._definition.name, hint)
        return self._wrapper(*args, **kwargs)


class BoundCached:
    """A cached method of one object."""

    __slots__ = ("__self__", "_definition", "_wrapper")

    def __init__(self, definition: Definition[..., Any], wrapper: Any, obj: object) -> None:
        self._definition = definition
        self._wrapper = wrapper
        self.__self__ = obj

    def __repr__(self) -> str:
        return f"<cached method {self._definition.name} of {self.__self__!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BoundCached):
            return NotImplemented
        return self.__self__ is other.__self__ and self._definition is other._definition

    def __hash__(self) -> int:
        return hash((id(self.__self__), self._definition))

    @property
    def __name__(self) -> str:
        return str(self._wrapper.__name__)

    @property
    def __wrapped__(self) -> Any:
        return types.MethodType(self._definition.function, self.__self__)

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        call: Awaitable[Any] = self._wrapper(self.__self__, *args, **kwargs)
        return call

    def key(self, *args: Any, **kwargs: Any) -> str:
        return self._definition.key(self.__self__, *args, **kwargs)

    async def invalidate(self, *args: Any, **kwargs: Any) -> None:
        await self._definition.invalidate(self.__self__, *args, **kwargs)

    async def invalidate_all(self) -> None:
        await self._definition.invalidate_all()

    @property
    def sync(self) -> SyncCached[...]:
        return SyncCached(self._definition, self.__self__)

    async def refresh(self, *args: Any, **kwargs: Any) -> Any:
        return await self._definition.refresh(self.__self__, *args, **kwargs)

    async def uncached(self, *args: Any, **kwargs: Any) -> Any:
        return await self._definition.uncached(self.__self__, *args, **kwargs)

    async def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        return await self._definition.explain(self.__self__, *args, **kwargs)


def _unkeyed(
    function: Callable[..., Any], exclude: Collection[str], key: Callable[..., object] | None
) -> frozenset[str]:
    """The parameters that do not count for the key, a method's `self` aside."""
    parameters = list(inspect.signature(function).parameters)
    if is_in_class(function):
        parameters = parameters[1:]
    if key is None:
        return frozenset(parameters).intersection(exclude)
    used = inspect.signature(key).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in used):
        return frozenset()
    return frozenset(parameters).difference(one.name for one in used)


def _refuse_wrapped_methods(function: object) -> None:
    if isinstance(function, staticmethod | classmethod):
        kind = type(function).__name__
        raise ConfigurationError(
            f"@cached stands over @{kind}: cache a function at module level and call it from the {kind}, or cache a "
            f"method"
        )


def _check_function(function: object) -> None:
    if isinstance(function, CachedMethod) or hasattr(function, "invalidate_all"):
        raise ConfigurationError(f"{function!r} is cached already")
    if isinstance(function, int | float | timedelta):
        raise ConfigurationError(f"@cached({function!r}): name what you give, @cached(ttl={function!r})")
    if not inspect.isfunction(function):
        raise ConfigurationError(f"@cached goes over an async function (async def), not over {function!r}")
    if inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            f"{function.__qualname__} is an async generator, which can be read once: return a list instead"
        )
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"{function.__qualname__} is not async: write `async def`, and call what blocks through anyio.to_thread"
        )
    if is_in_class(function):
        first = next(iter(inspect.signature(function).parameters), None)
        if first is None or first == "cls":
            raise ConfigurationError(
                f"{function.__qualname__} looks like a static or class method: cache a function at module level "
                f"and call it from there, or a method that takes self"
            )
