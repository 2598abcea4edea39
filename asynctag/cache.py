"""The cache: what users hold, bind to a backend, open, and ask."""

import logging
import os
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, Unpack, overload

from asynctag.backends.base import Backend, Entry, Reading, Stamp
from asynctag.background import Background
from asynctag.cached import Cached, Options, decorate
from asynctag.codec import NOT_GIVEN, Codec, codec_for
from asynctag.errors import BackendError, ConfigurationError, InvalidTagError, LifecycleError
from asynctag.expiry import Expiry, ExpiryOptions, Seconds, fraction, seconds, strength, yes_or_no
from asynctag.explain import Explanation, explanation
from asynctag.fill import MISSING, Filler, Job, may_serve_held
from asynctag.functions import check_name_is_free
from asynctag.keys import check_key
from asynctag.lag import NO_LAG, DuringLag, Lag, Probe
from asynctag.leased import HowLeased, WhileLeased, check_while_leased, serves
from asynctag.names import ROOT, check_namespace, key_name, namespace_tag, tag_name, user_tags
from asynctag.pending import Invalidator, Pending, as_written
from asynctag.scope import Scope, current_scope, gathering_scope, live_scope
from asynctag.signatures import nearest_name
from asynctag.skeleton import Skeleton
from asynctag.sync import SyncCache, by_blocking, event_loop_runs_here
from asynctag.tags import check_tag, check_tags
from asynctag.transaction import Isolation, Transaction, check_isolation, open_block
from asynctag.transaction import Options as TransactionOptions
from asynctag.windows import Window

logger = logging.getLogger("asynctag")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
D = TypeVar("D")

DAY = 86_400.0


#: What is called with the tags that were invalidated.
Hook = Callable[[tuple[str, ...]], Awaitable[None] | None]


@dataclass(frozen=True, slots=True)
class Hit:
    """What `lookup` found: the value, and the tags that users gave to it and to what it was built from."""

    value: Any
    tags: frozenset[str]
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Miss:
    """What `lookup` did not find. Its stamp says as of when data read from now on may be stored."""

    stamp: Stamp | None


class Cache:
    """A cache with tags, over a backend (memory unless another is given or bound).

    `default_ttl` is used where a function gives no `ttl`; `max_ttl` (30 days) is the most that any
    may give. `namespace` is put before keys and tags: caches that share a backend under different
    namespaces keep apart, and may still be built from each other. `stale_while_revalidate`,
    `stale_if_error` (seconds past the TTL), `jitter` (the fraction by which TTLs are shortened at
    random), `early` (the strength of early renewal, 0 is off) and `inherit_ttl` are defaults for
    the functions. `replica_lag`: for how many seconds after a change the database's replicas may lack it; what is
    invalidated is held so long (`during_lag="serve"`: served and stored, and invalidated once more then), or until
    `caught_up()` says that the replicas have everything, which an opened cache asks. `while_leased`: what those do who
    ask for a value with a tag that a transaction holds, a default for the functions: compute ("bypass"), be served
    what was there before ("serve_stale"), wait for its end ("wait", a second; `Wait(seconds)`), or what an async
    function says. With `require_backend`, a cache that nobody has bound raises when it is used.

    Raises `ConfigurationError` for values that cannot be meant.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        *,
        namespace: str = "",
        default_ttl: Seconds | None = None,
        max_ttl: Seconds = 30 * DAY,
        stale_while_revalidate: Seconds = 0,
        stale_if_error: Seconds = 0,
        jitter: float = 0.0,
        early: float = 0.0,
        inherit_ttl: bool = True,
        replica_lag: Seconds = 0,
        during_lag: DuringLag = "bypass",
        caught_up: Probe | None = None,
        while_leased: HowLeased = "bypass",
        require_backend: bool = False,
    ) -> None:
        self.namespace = check_namespace(namespace)
        self.max_ttl = seconds(max_ttl, "max_ttl", zero=False)
        self._default_ttl = None if default_ttl is None else self._ttl(default_ttl, "default_ttl")
        self._defaults = Expiry(
            ttl=self._default_ttl or 0.0,
            stale_while_revalidate=seconds(stale_while_revalidate, "stale_while_revalidate"),
            stale_if_error=seconds(stale_if_error, "stale_if_error"),
            jitter=fraction(jitter, "jitter"),
            early=strength(early, "early"),
            inherit_ttl=yes_or_no(inherit_ttl, "inherit_ttl"),
            while_leased=check_while_leased(while_leased, "while_leased"),
        )
        self._lag = NO_LAG.changed(replica_lag, during_lag, caught_up)
        self._require_backend = require_backend
        self._lock = threading.Lock()
        self._background = Background()
        self._filler: Filler | None = None
        self._own: Filler | None = None  # on the backend that it was bound to, or on memory
        self._overrides: list[Filler] = []
        self._bound = False
        self._disabled = 0
        self._names: dict[str, Callable[..., Any]] = {}
        self._windows: dict[str, Window[..., Any]] = {}  # by the names that they have in entries
        self._hooks: tuple[Hook, ...] = ()
        self._implicit = tuple(dict.fromkeys((namespace_tag(namespace), ROOT)))
        self._sync = SyncCache(self)
        #: The backend's `peek`, or one that finds nothing: looked up by every hit.
        self._peek: Callable[[str], Entry | None] = self._peek_unbound
        #: Set where nothing can be told at once, so that the backend is asked without a look before.
        self._remote: Filler | None = None
        if backend is not None:
            self.bind(backend)

    def __repr__(self) -> str:
        return f"<Cache namespace={self.namespace!r} on {self._filler.backend if self._filler else 'no backend yet'!r}>"

    # --- binding and lifecycle -----------------------------------------------------------------------

    def bind(self, backend: Backend) -> None:
        """Give the cache its backend, once: in the application's factory, where the settings are known.

        Raises `LifecycleError` where it has one, or was used before, `ConfigurationError` for what is no backend.
        """
        if self._own is not None and not self._bound:
            raise LifecycleError(
                f"this cache was used before it is bound to {backend!r}, which does not know what was invalidated in "
                f"the memory that it used: bind it first. Cache(require_backend=True) finds who uses it"
            )
        if self._bound:
            raise LifecycleError(
                f"this cache is bound to {self._own.backend if self._own else None!r} already. "
                f"Bind it once; in tests, use `with cache.override(backend):`"
            )
        self._own = self._filler_on(backend)
        self._bound = True
        self._choose()

    def _filler_on(self, backend: Backend) -> Filler:
        if not isinstance(backend, Backend):
            raise ConfigurationError(f"{backend!r} is no backend: give a MemoryBackend() or another asynctag Backend")
        if backend.in_process:
            _warn_of_workers()
        filler = Filler(backend, self._background, self.max_ttl, self._windows)
        filler.pending.watch(self._on_pending)
        return filler

    def _choose(self) -> None:
        """Use the backend that counts now: of what overrides it the last, else its own."""
        filler = self._filler = self._overrides[-1] if self._overrides else self._own
        self._remote = None if self._disabled or filler is None or filler.can_peek else filler
        if filler is None:
            self._peek = _peek_nothing if self._disabled else self._peek_unbound
            return
        with filler.pending.lock:
            # While invalidations are queued, hits take the way by `Filler.read`, which knows of them.
            self._peek = _peek_nothing if self._disabled or filler.pending.names else filler.backend.peek

    def _on_pending(self, pending: Pending) -> None:
        if self._filler is not None and self._filler.pending is pending:
            self._choose()

    def _peek_unbound(self, key: str) -> Entry | None:
        return self._filling().backend.peek(key)

    def _filling(self) -> Filler:
        if self._filler is None:
            if self._require_backend and not self._disabled:
                raise LifecycleError("this cache has no backend yet: call cache.bind(backend) before it is used")
            from asynctag.backends.memory import MemoryBackend

            with self._lock:  # two threads that come first must not make two backends
                if self._filler is None:
                    self._own = self._filler_on(MemoryBackend())
                    self._choose()
        assert self._filler is not None
        return self._filler

    @contextmanager
    def override(self, backend: Backend) -> Iterator[None]:
        """Use `backend` within the block, in the whole process: for tests."""
        filler = self._filler_on(backend)
        self._overrides.append(filler)
        self._choose()
        try:
            yield
        finally:
            self._overrides.remove(filler)
            self._choose()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Compute everything and store nothing within the block, in the whole process."""
        self._disabled += 1
        self._choose()
        try:
            yield
        finally:
            self._disabled -= 1
            self._choose()

    async def __aenter__(self) -> Self:
        """Open the cache: its work in the background runs until the block is left.

        A backend that does not answer is no obstacle: a warning is logged, and the cache computes until it
        does. Raises `LifecycleError` where it is open in this event loop, `ConfigurationError` where the
        backend was made with another `max_ttl`.
        """
        filler = self._filling()
        try:
            await filler.agree()
        except BackendError as error:
            logger.warning("the cache is opened, though its backend does not answer: %s", error)
        await self._background.open()
        filler.invalidator.see_to_retries()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._background.close()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Give back the backend's connections: for scripts that did not open the cache.

        Queued invalidations are tried once more. What cannot be written even now is logged as an error, by its tags.
        """
        filler = self._filler
        if filler is not None:
            try:
                await filler.invalidator.finish(self.namespace)
            finally:
                await filler.backend.aclose()

    # --- the decorator -------------------------------------------------------------------------------

    @overload
    def cached(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Cached[P, R]: ...

    @overload
    def cached(
        self,
        function: None = None,
        /,
        *,
        tags: Iterable[str] | Callable[..., Iterable[str]] | None = None,
        name: str | None = None,
        key: Callable[..., object] | None = None,
        exclude: Collection[str] = (),
        version: str | int | None = None,
        returns: Any = NOT_GIVEN,
        **expiry: Unpack[ExpiryOptions],
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Cached[P, R]]: ...

    def cached(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        tags: Iterable[str] | Callable[..., Iterable[str]] | None = None,
        name: str | None = None,
        key: Callable[..., object] | None = None,
        exclude: Collection[str] = (),
        version: str | int | None = None,
        returns: Any = NOT_GIVEN,
        **expiry: Unpack[ExpiryOptions],
    ) -> Any:
        """Cache what an async function returns, by its arguments.

        `ttl`: seconds or a `timedelta`; required, here or as the cache's `default_ttl`.
        `tags`: templates that name parameters (`"product:{product_id}"`), or a function of the
        parameters that returns tags. `name`: instead of module and qualified name, for a function in
        `<locals>` or `__main__`; no other function on the backend and namespace may have it.
        `key`: a function of the parameters that gives what tells the entries apart; `exclude`:
        parameters that do not count. Entries of functions with parameters that do not count are
        renewed by a caller, never in the background. `version` marks a change of meaning. `returns`:
        the type to decode to, instead of the return annotation. The others: see `Cache`.

        Raises `ConfigurationError` (or one below it) for whatever is wrong, as soon as it can be known.
        """
        options = Options(self._expiry(**expiry), tags, name, key, exclude, version, returns)
        decorator = partial(decorate, self, options)
        return decorator if function is None else decorator(function)

    # --- windows -------------------------------------------------------------------------------------

    @overload
    def window(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Window[P, R]: ...

    @overload
    def window(
        self,
        function: None = None,
        /,
        *,
        timeout: Seconds | None = 10,
        fallback: Any = NOT_GIVEN,
        name: str | None = None,
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Window[P, R]]: ...

    def window(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        timeout: Seconds | None = 10,
        fallback: Any = NOT_GIVEN,
        name: str | None = None,
    ) -> Any:
        """Register an async function whose result stands in cached values, afresh on every serve, and is not cached.

        Called in what is cached, or for a response behind `CacheMiddleware`, it gives a placeholder: text that goes
        into text, or a value of a dict or list. What is put through a template that escapes is escaped as it would be,
        unless it is `Markup`. Elsewhere the window is awaited. Its parameters are JSON: they are stored with the page.
        `timeout`: for how many seconds the page waits for it. `fallback`: what is served instead where it fails or
        takes longer; without one, that fails the page. `name`: as for `cached`.

        Raises `ConfigurationError` for what is no such function.
        """
        limit = None if timeout is None else seconds(timeout, "timeout", zero=False)

        def decorator(function: Callable[..., Any]) -> Window[..., Any]:
            window: Window[..., Any] = Window(self, function, timeout=limit, fallback=fallback, name=name)
            named = {key.removeprefix(f"{self.namespace}|"): one.function for key, one in self._windows.items()}
            check_name_is_free(named, window.name, function, named=name is not None, would="fill each other's places")
            self._windows[f"{self.namespace}|{window.name}"] = window
            return window

        return decorator if function is None else decorator(function)

    # --- values by key -------------------------------------------------------------------------------

    async def get_or_set(
        self,
        key: str,
        compute: Callable[[], Awaitable[T]],
        *,
        tags: Iterable[str] = (),
        returns: Any = NOT_GIVEN,
        **expiry: Unpack[ExpiryOptions],
    ) -> T:
        """The value under `key`, computed and stored where there is none. One computation at a time a key.

        `compute` is called with no argument and awaited; the tags gathered in it are the entry's, with `tags`.
        """
        value: T = await self._obtain(self._job(key, tags, returns, self._expiry(**expiry), compute))
        return value

    async def get_or_set_many(
        self,
        keys: Iterable[str],
        build: Callable[[list[str]], Awaitable[Mapping[str, T]]],
        *,
        tags: Iterable[str] | Callable[[str], Iterable[str]] = (),
        returns: Any = NOT_GIVEN,
        **expiry: Unpack[ExpiryOptions],
    ) -> dict[str, T]:
        """The values under `keys`, in their order; `build` gets the list of those that miss, in one call.

        `build` returns a dict from keys to values and may leave out what does not exist: that is
        left out of the result, and not stored. `tags`: for all of them, or a function of the key.
        The tags gathered in `build` count for each value it built: give those of one key by `tags`.
        """
        times = self._expiry(**expiry)
        shared = () if callable(tags) else check_tags(tags)
        jobs = {
            key: self._job(key, tags(key) if callable(tags) else shared, returns, times, _built_with_others)._replace(
                in_background=False, may_be_absent=True
            )
            for key in _check_keys(keys)
        }
        filler = self._filling()
        if not jobs:
            return {}
        if self._disabled:
            return await filler.build_unstored(jobs, build)
        found: dict[str, T] = await filler.obtain_many(jobs, build)
        return found

    async def lookup(self, key: str, *, returns: Any = NOT_GIVEN) -> Hit | Miss:
        """What is stored under `key`, if it is valid and fresh."""
        filler, name = self._filling(), self._key(key)
        if self._disabled:
            return Miss(None)
        return await self._find(filler, key, name, returns)

    async def _find(self, filler: Filler, key: str, name: str, returns: Any) -> Hit | Miss:
        scope = live_scope()
        reading = await filler.read_within(scope, name)
        value = _load_fresh(filler, reading, codec_for(returns, owner=f"the cache's key {key!r}"))
        if reading is None or reading.entry is None or value is MISSING:
            if scope is not None:
                scope.gather((name, *self._implicit), filler.backend)  # what is built on there being nothing
            return Miss(reading.stamp if reading is not None else None)
        if scope is not None:
            scope.absorb(reading.entry, filler.backend)
        value = value if type(value) is not Skeleton else await filler.hand_out(value)
        return Hit(value, user_tags(reading.entry.tags, self.namespace), reading.stamp)

    @overload
    async def get(self, key: str, default: D, *, returns: type[T]) -> T | D: ...
    @overload
    async def get(self, key: str, *, returns: type[T]) -> T | None: ...
    @overload
    async def get(self, key: str, default: Any = None, *, returns: Any = NOT_GIVEN) -> Any: ...

    async def get(self, key: str, default: Any = None, *, returns: Any = NOT_GIVEN) -> Any:
        """The value under `key`, or `default`. `None` is a value like any other: use `lookup` to tell."""
        found = await self.lookup(key, returns=returns)
        return found.value if isinstance(found, Hit) else default

    async def get_many(self, keys: Iterable[str], *, returns: Any = NOT_GIVEN) -> dict[str, Any]:
        """The values under `keys` that are stored, valid and fresh, in the order of `keys`."""
        wanted, filler = _check_keys(keys), self._filling()
        if self._disabled:
            return {}
        codec, scope, found = codec_for(returns, owner="get_many"), live_scope(), {}
        names = [self._key(key) for key in wanted]
        readings = await filler.read_many_within(scope, names)
        for key, name, reading in zip(wanted, names, readings, strict=True):
            value = _load_fresh(filler, reading, codec)
            if reading is not None and reading.entry is not None and value is not MISSING:
                found[key] = value
                if scope is not None:
                    scope.absorb(reading.entry, filler.backend)
            elif scope is not None:
                scope.gather((name, *self._implicit), filler.backend)
        return await filler.hand_out_all(found)

    async def set(
        self,
        key: str,
        value: Any,
        *,
        since: Hit | Miss,
        ttl: Seconds | None = None,
        tags: Iterable[str] = (),
        returns: Any = NOT_GIVEN,
    ) -> bool:
        """Store `value` under `key`. Whether it was stored. The form to avoid: prefer `get_or_set`.

        `since` is what `lookup` returned *before* the data was read: an invalidation that came
        between the two refuses the store. What was cached or tagged in between goes to the
        computation around it, not to this entry: `tags` must name all that `value` was built from. In a transaction
        nothing is stored before its end: it returns False.
        """
        if not isinstance(since, Hit | Miss):
            raise ConfigurationError(
                f"set({key!r}, since={since!r}): give what `await cache.lookup(key)` returned before the data was read"
            )
        job = self._job(key, tags, returns, self._expiry(ttl=ttl), _given)
        filler = self._filling()
        scope = Scope(job.name, filler.backend, self.namespace, live_scope())
        scope.tags.update(job.tags)
        kept = filler.keep(job.codec, filler.cut_out(job.codec, value, gathering_scope()))
        try:
            if self._disabled or since.stamp is None:
                return False
            entry = filler.entry(job, kept, since.stamp, scope, filler.backend.clock())
            written = await filler.write_within(scope, entry)
            filler.settle(entry, written, scope)
            return written.accepted
        finally:
            scope.hand_up()

    async def delete(self, key: str) -> bool:
        """Remove what is stored under `key`; whether something was.

        What was built from it goes too, and a computation that began before cannot store it again.
        In a transaction it is held until the end, as what is invalidated there. Raises `InvalidationError` where that
        could not be written.
        """
        filler, name = self._filling(), self._key(key)
        block = open_block(current_scope.get(), filler.backend)
        if block is not None:
            reading = await filler.read(name)
            await block.invalidate(self, [name], None)
            return reading is not None and reading.entry is not None
        was_there = await filler.invalidator.delete(name, namespace=self.namespace, lag=self._lag)
        await self._tell([name])
        return was_there

    # --- tags ------------------------------------------------------------------------------------------

    async def invalidate(
        self, *tags: str, soft: bool = False, queue: bool = False, replica_lag: Seconds | None = None
    ) -> bool:
        """Drop every entry that carries one of `tags`, and whatever was built from it. True once that is written.

        In constant time, however many there are. `soft`: entries with a stale period are served
        stale while they are renewed, instead. `queue`: where the backend does not answer, return False
        and try again until it is written: in the background of the opened cache, before the next
        invalidation, as the cache closes. Until then this process serves and stores nothing that carries
        the tags. `replica_lag`: for so many seconds more nothing that carries them is stored; see `Cache`. With one,
        `soft` is taken as hard.

        In a `transaction` the tags are held at once, and invalidated at its end, hard.

        Raises `InvalidationError` where it could not be written and is not queued (10,000 are at most),
        `InvalidTagError` for what is no tag.
        """
        names, lag = self._names_and_lag(tags, replica_lag)
        return await self._invalidate(names, soft=soft, queue=queue, lag=lag)

    def _names_and_lag(self, tags: tuple[str, ...], replica_lag: Seconds | None) -> tuple[list[str], Lag | None]:
        if not tags:
            raise InvalidTagError('invalidate() got no tag: name one, such as invalidate("product:635")')
        names = [tag_name(self.namespace, check_tag(one)) for one in tags]
        return names, None if replica_lag is None else self._lag.changed(replica_lag)

    async def clear(self, *, queue: bool = False) -> bool:
        """Invalidate everything in the cache's namespace, or, without a namespace, everything in the backend.

        `queue`, and what is returned and raised: as for `invalidate`.
        """
        return await self._invalidate([namespace_tag(self.namespace)], queue=queue)

    async def _invalidate(
        self,
        names: list[str],
        *,
        soft: bool = False,
        queue: bool = False,
        lag: Lag | None = None,
        by: Invalidator | None = None,
    ) -> bool:
        filler = self._filling()
        block = open_block(current_scope.get(), filler.backend)
        if block is not None:
            return await block.invalidate(self, names, lag, queue=queue, by=by)
        written = await (by or filler.invalidator).invalidate(
            names, soft=soft, queue=queue, namespace=self.namespace, lag=self._lag if lag is None else lag
        )
        await self._tell(names)
        return written

    def transaction(
        self,
        *,
        isolation: Isolation = "repeatable read",
        replica_lag: Seconds | None = None,
        during_lag: DuringLag | None = None,
        caught_up: Probe | None = None,
        lease: Seconds = 30,
    ) -> Transaction:
        """A block around a transaction of the database: entered before its first statement, left after its commit.

        An async context manager, and a decorator of async functions. What is invalidated in it is held at once (nobody
        is served or stores what carries these tags; readers compute), and invalidated at the end, however that comes.
        What is computed in it is stored at its end; not after an error, nor if anything was invalidated. Nothing is
        sent if nothing was. `isolation` is the database's: see the page "Explanation". `lease`: after so many seconds
        the tags are let go of should this process die, and count as invalidated; an opened cache renews it.
        `replica_lag`, `during_lag`, `caught_up`: instead of the cache's. In another one, on the same backend, it is a
        savepoint, which has the other's isolation and lease.

        Raises `ConfigurationError` for values that cannot be meant. Entering it sends nothing; leaving it raises
        nothing of what the backend says.
        """
        return Transaction(self, self._transaction_options(isolation, replica_lag, during_lag, caught_up, lease))

    def _transaction_options(
        self,
        isolation: str,
        replica_lag: Seconds | None,
        during_lag: str | None,
        caught_up: Probe | None,
        lease: Seconds,
    ) -> TransactionOptions:
        given = (replica_lag, during_lag, caught_up) != (None, None, None)
        return TransactionOptions(
            check_isolation(isolation),
            self._lag.changed(replica_lag, during_lag, caught_up) if given else None,
            seconds(lease, "lease", zero=False),
        )

    def after_invalidation(self, hook: Hook) -> Hook:
        """Call `hook(tags)` after each invalidation by this cache, before the call that has asked for it returns.

        `tags` (a tuple of `str`) are as they were written; keys, functions and namespaces are described, as in
        `Explanation.invalidated_by`. What the hook raises reaches who has invalidated; the cache itself is done by
        then. Where `sync` has invalidated, an async hook is waited for in the event loop that waits for this thread, or
        in one of its own. For purging a CDN, say. May be used as a decorator.
        """
        if not callable(hook):
            raise ConfigurationError(f"after_invalidation({hook!r}): give a function of a tuple of tags")
        self._hooks = (*self._hooks, hook)
        return hook

    async def _tell(self, names: Iterable[str]) -> None:
        if self._hooks:
            tags = tuple(as_written(name, self.namespace) for name in names)
            for hook in self._hooks:
                pending = hook(tags)
                if pending is not None:
                    await (pending if event_loop_runs_here() else by_blocking(pending))

    @property
    def sync(self) -> SyncCache:
        """The cache for threads without an event loop: what invalidates, and transactions."""
        return self._sync

    @property
    def queued_invalidations(self) -> tuple[str, ...]:
        """The tags whose invalidation is queued on the cache's backend, in this process, the oldest first.

        Those of the cache's own namespace as they were written; what a `clear` queued, and tags of other
        namespaces, as `Explanation.invalidated_by` has them.
        """
        if self._filler is None:
            return ()
        return tuple(as_written(name, self.namespace) for name in self._filler.pending.queued())

    async def flush_invalidations(self) -> bool:
        """Try now to write the invalidations that are queued, in their order. Whether none is left."""
        return await self._filling().invalidator.flush()

    async def explain(self, key: str) -> Explanation:
        """What is stored under `key`, and why it would miss: absent, expired, which tag, a lost journal."""
        return await self._explain(key, self._key(key), self._defaults.while_leased)

    async def _explain(self, key: str, name: str, while_leased: WhileLeased | None) -> Explanation:
        filler = self._filling()
        if self._disabled:
            return Explanation(key, "miss")
        reading, now = await filler.inspect(name), filler.backend.clock()
        scope = live_scope()
        if reading.is_leased and serves(while_leased) and (scope is None or scope.transaction is None):
            (held,) = await filler.read_held([name])
            if held is not None and may_serve_held(held, now):
                reading = reading._replace(entry=held.entry, stale=True)
        return explanation(key, reading, self.namespace, now)

    # --- parts that the decorator and the response cache share -----------------------------------------

    async def _obtain(self, job: Job) -> Any:
        filler = self._filling()
        if self._disabled:
            return await filler.compute_unstored(job)
        return await filler.obtain(job)

    async def _refresh(self, job: Job) -> Any:
        filler = self._filling()
        if self._disabled:
            return await filler.compute_unstored(job)
        return await filler.refresh(job)

    def _job(
        self,
        key: str,
        tags: Iterable[str],
        returns: Any,
        expiry: Expiry,
        compute: Callable[[], Awaitable[Any]],
    ) -> Job:
        name = self._key(key)
        names = (tag_name(self.namespace, one) for one in check_tags(tags))
        codec = codec_for(returns, owner=f"the cache's key {key!r}")
        return Job(key, name, (name, *self._implicit, *names), codec, expiry, self.namespace, compute)

    def _key(self, key: str) -> str:
        return key_name(self.namespace, check_key(key))

    def _ttl(self, ttl: object, name: str) -> float:
        number = seconds(ttl, name, zero=False)
        if number > self.max_ttl:
            raise ConfigurationError(f"{name}={ttl!r} is above the cache's max_ttl of {self.max_ttl:.15g} seconds")
        return number

    def _expiry(self, **options: Unpack[ExpiryOptions]) -> Expiry:
        """The rules for one function: what it says, and the cache's defaults for the rest."""
        check: dict[str, Callable[[Any, str], Any]] = {
            "ttl": self._ttl,
            "stale_while_revalidate": seconds,
            "stale_if_error": seconds,
            "jitter": fraction,
            "early": strength,
            "inherit_ttl": yes_or_no,
            "while_leased": check_while_leased,
        }
        for name in options:
            if name not in check:
                raise TypeError(f"{name!r} is no option here. {nearest_name(name, check)}")
        if options.get("ttl") is None and self._default_ttl is None:
            raise ConfigurationError("no ttl: give ttl= (seconds or a timedelta), or Cache(default_ttl=...)")
        given = {name: check[name](value, name) for name, value in options.items() if value is not None}
        return replace(self._defaults, **given) if given else self._defaults


def _load_fresh(filler: Filler, reading: Reading | None, codec: Codec) -> Any:
    if reading is None or reading.entry is None or reading.stale:
        return MISSING
    return filler.load(reading.entry, codec)


async def _given() -> Any:
    raise AssertionError("a value that is given is not computed")


async def _built_with_others() -> Any:
    raise AssertionError("a value of many is not computed by itself")


def _peek_nothing(key: str) -> Entry | None:
    return None


def _check_keys(keys: Iterable[str]) -> list[str]:
    if isinstance(keys, str):
        raise ConfigurationError(f"keys={keys!r}: give a list of keys, [{keys!r}]")
    return list(dict.fromkeys(check_key(key) for key in keys))


def _warn_of_workers() -> None:
    workers = os.environ.get("WEB_CONCURRENCY", "")
    if workers.isdigit() and int(workers) > 1:
        logger.warning(
            "WEB_CONCURRENCY=%s: each worker has a memory cache of its own, and an invalidation in one does not "
            "reach the others",
            workers,
        )
