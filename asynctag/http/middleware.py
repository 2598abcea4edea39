"""The middleware: hits before routing; everything else goes through an `Exchange`, or in `Silence`."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from math import floor
from typing import TypeAlias, TypeVar

import anyio
from starlette.requests import HTTPConnection

from asynctag.backends.base import NOT_THERE, OF_NO_EPOCH, Backend, Entry, Reading
from asynctag.cache import Cache
from asynctag.errors import ConfigurationError, CorruptEntryError
from asynctag.expiry import Seconds, seconds
from asynctag.fill import MISSING, Filler, load
from asynctag.flight import Fate, Flight
from asynctag.http.asgi import AsgiApp, AsgiScope, Fields, Message, Receive, Send
from asynctag.http.changes import Change, invalidated_here
from asynctag.http.client import Client, as_it_came
from asynctag.http.exchange import (
    Address,
    Exchange,
    Stored,
    filler_in_use,
    record_key,
    record_of,
    scope_of_response,
)
from asynctag.http.guards import Inputs, inputs_of, why_not_public
from asynctag.http.headers import cache_status, is_field_name, name_of
from asynctag.http.policies import PathPolicies
from asynctag.http.precedents import Precedents
from asynctag.http.ranges import part_of
from asynctag.http.request import SCOPE_KEY, RequestCache
from asynctag.http.routes import policy_of, routes_of
from asynctag.http.rules import (
    DECISIVE,
    PLAIN_GET,
    Policy,
    RequestFacts,
    Store,
    read_request,
    telling_fields,
    why_bypass,
)
from asynctag.http.serving import Aside, Filling, Serving, current_exchange
from asynctag.http.silence import Passing, Silence, lead_at_once
from asynctag.http.stored import RESPONSES, StoredResponse
from asynctag.http.surrogates import OVERFLOW, Surrogates, write_groups
from asynctag.http.unsafe import is_safe
from asynctag.http.variants import DIMENSIONS, PLAIN, Dimensions, url_base, url_path, variant_key
from asynctag.http.wanted import SILENT, SLOTS, UNKNOWN, WANTED, Wanted, wanted_on
from asynctag.names import KEY, user_tags
from asynctag.pending import as_written
from asynctag.scope import current_scope
from asynctag.windows import Window

logger = logging.getLogger("asynctag")

#: How many URLs are remembered with the headers of their hits, and how long they may be, in bytes.
MAX_KNOWN, MAX_LENGTH_KNOWN = 1024, 512

#: Of a response that is not kept in this process, what is held of it, in bytes.
MAX_HELD = 16 * 1024

#: What goes out of a response's tags at most, in bytes: many proxies take 8 KB of headers.
MAX_EXPOSED = 4000

#: What a client asks for itself, and the cache does not when it renews a response.
_OF_ONE_CLIENT = frozenset({b"cache-control", b"if-modified-since", b"if-none-match", b"pragma"})


#: The scheme, the host, the path as it was sent and as it is routed by, the root and the query.
_Url: TypeAlias = tuple[str, bytes, bytes | None, str, str, bytes]


_K = TypeVar("_K")
_V = TypeVar("_V")


class Known:
    """A URL that was asked for, and the headers of its hits as they go out within a second.

    `base` is the URL without its query, `record_key` that of its record, `key` that of its response where the URL is
    the whole of it. `dims` is what was last seen to tell its responses apart, where its hits come from outside this
    process: they are worth a look-up of their own. Such a response is held as it came, if it is not large: to decode it
    takes longer than to compare it. `sent` are the headers of the last hit, with those that are stored, to know its
    response by without holding its body, and the second that they are of. `held` and `sent` are replaced as wholes, for
    any number of threads.
    """

    __slots__ = ("base", "dims", "held", "key", "record_key", "sent", "silent")

    def __init__(self, base: str, key: str, record_key: str) -> None:
        self.base = base
        self.key = key
        self.record_key = record_key
        self.silent = False  # nobody has wanted its responses cached, when it was asked for last: it is not looked up
        self.dims: Dimensions | None = None
        self.held: tuple[bytes, StoredResponse] | None = None
        self.sent: tuple[Fields | None, int, list[tuple[bytes, bytes]]] = (None, 0, [])


class CacheMiddleware:
    """ASGI middleware that caches whole responses by the tags gathered while they were rendered.

    `store` says which responses are stored that no route has given a policy: `"declared"`, those
    that say `public` or `s-maxage`; `"rfc9111"`, all that RFC 9111 lets a shared cache store.
    `policy`, a function of the request (Starlette's `HTTPConnection`) or a dict from paths (as
    Starlette writes them) to policies, gives one to routes of any framework; its responses are
    served before routing, so it has to be `public`. Responses above `max_body` bytes are passed on,
    not stored. One that has a validator of the application's own is kept for `validate_for` seconds
    past its freshness: the application is then asked whether it still is good (RFC 9111 §4.3).
    `target` names a response header that speaks to this cache alone, before `CDN-Cache-Control` and
    `Cache-Control` (RFC 9213 §2); it does not go out. With `groups`, tags go out as `Cache-Groups`,
    and those that a request invalidates as `Cache-Group-Invalidation` (RFC 9875). `surrogates`
    writes them as keys for a CDN in front (`Surrogate-Key` and the like), for the requests of which
    `surrogates_for`, a function of the request, says that they come from it, by a header that only
    it can send; for all without one. Of a body that comes in pieces, tags may come after its headers:
    then the CDN is told not to keep this answer; with `buffer_tags`, a response that is to be stored
    is held until it is whole. `expose_tags` names a header in which the tags of a response
    go out, for debugging. `name` is what the cache calls itself in `Cache-Status`.

    Add it first, so that it is innermost: inside authentication, sessions and compression. Around
    the whole application, `CacheMiddleware(app, cache=cache)`, public hits are fastest, and nothing
    else runs on them. At the lifespan's start it opens the cache, at its end it closes it.
    """

    def __init__(
        self,
        app: AsgiApp,
        *,
        cache: Cache,
        policy: Callable[[HTTPConnection], Policy | None] | Mapping[str, Policy | None] | None = None,
        store: Store = "declared",
        max_body: int = 1024 * 1024,
        validate_for: Seconds = 3600,
        target: str | None = None,
        buffer_tags: bool = False,
        groups: bool = False,
        surrogates: Surrogates | None = None,
        surrogates_for: Callable[[HTTPConnection], bool] | None = None,
        expose_tags: str | None = None,
        name: str = "asynctag",
    ) -> None:
        if not isinstance(cache, Cache):
            raise ConfigurationError(f"CacheMiddleware(cache={cache!r}): give a Cache")
        if store not in ("declared", "rfc9111"):
            raise ConfigurationError(f'CacheMiddleware(store={store!r}): give "declared" or "rfc9111"')
        if isinstance(max_body, bool) or not isinstance(max_body, int) or max_body < 0:
            raise ConfigurationError(f"CacheMiddleware(max_body={max_body!r}): give a number of bytes")
        for option, header in {"expose_tags": expose_tags, "target": target}.items():
            if header is not None and not (isinstance(header, str) and is_field_name(header.encode())):
                raise ConfigurationError(f"CacheMiddleware({option}={header!r}): give the name of a header")
        if target is not None and target.lower() in ("cache-control", "expires"):
            raise ConfigurationError(
                f"CacheMiddleware(target={target!r}): that speaks to clients too, and would not reach them. Name a "
                f"header that is for this cache alone, as Asynctag-Cache-Control"
            )
        if isinstance(policy, Mapping):
            policy = PathPolicies(policy)
        elif policy is not None and not callable(policy):
            raise ConfigurationError(
                f"CacheMiddleware(policy={policy!r}): give a function of the request, or a dict from paths to policies"
            )
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"CacheMiddleware(name={name!r}): give what the cache calls itself")
        self.app = app
        self.cache = cache
        self.store: Store = store
        self.max_body = max_body
        self.name = name
        #: For how long past its freshness a response is kept that the application can be asked about, in seconds.
        self.validate_for = seconds(validate_for, "validate_for")
        self.own_target = target.lower().encode() if target is not None else None
        #: The fields that speak to this cache, and not to clients; the first that is there counts (RFC 9213).
        self.targets = (*((self.own_target,) if self.own_target is not None else ()), b"cdn-cache-control")
        for option, value in {"groups": groups, "buffer_tags": buffer_tags}.items():
            if not isinstance(value, bool):
                raise ConfigurationError(f"CacheMiddleware({option}={value!r}): give True or False")
        if surrogates is not None and not isinstance(surrogates, Surrogates):
            raise ConfigurationError(
                f"CacheMiddleware(surrogates={surrogates!r}): give Surrogates, as Surrogates.fastly()"
            )
        if surrogates_for is not None and (surrogates is None or not callable(surrogates_for)):
            raise ConfigurationError(
                f"CacheMiddleware(surrogates_for={surrogates_for!r}): give a function of the request, with surrogates="
            )
        #: By which headers a response may be stored by its own word.
        self.telling = telling_fields(self.targets)
        self.buffer_tags = buffer_tags
        self.groups = groups
        self._surrogates = surrogates
        self._surrogates_for = surrogates_for
        self.shows_tags = expose_tags is not None or groups or surrogates is not None
        if groups:
            cache.after_invalidation(_note_invalidated)
        self._token = cache_status(name=name)
        self._known: dict[_Url, Known] = {}
        self._policy = policy
        self._exposed_as = expose_tags.lower().encode() if expose_tags is not None else None
        #: Whether a request may go by without an exchange: neither a policy nor headers with tags are for all of them.
        self._may_be_silent = policy is None and not self.shows_tags
        self._wanted_on: Filler | None = None
        self._wanted: Wanted | None = None
        #: The cache as a request sees it whose response is out.
        self.afterwards = RequestCache(cache, None)
        self._nothing = Reading(OF_NO_EPOCH, None, miss=NOT_THERE)
        self.precedents = Precedents()
        self._warned: set[str] = set()
        self._inputs: dict[int, tuple[object, Inputs]] = {}
        self._plain: dict[tuple[int, int], tuple[object, Policy, Policy | None]] = {}
        self._public: dict[int, tuple[object, Policy]] = {}  # routes that were found to stand behind no guard

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if self._surrogates_for is not None and kind == "http" and not self._surrogates_for(HTTPConnection(scope)):
            send = self._without_surrogates(send)
        around = scope.get(SCOPE_KEY)
        if around is not None and around is not self.afterwards and around.cache is self.cache:
            await self.app(scope, receive, send)  # within an application that has this middleware already
        elif kind == "http" and scope["method"] in ("GET", "HEAD"):
            if self._may_be_silent and not self.cache._disabled:
                filler = self.cache._filler
                if filler is None or filler is not self._wanted_on:
                    filler = self._notice_backend()
                wanted = self._wanted
                if wanted is not None:
                    number = hash(scope["path"]) % SLOTS
                    # Nothing is stored, unless the request wants nothing but what is.
                    if wanted[number] != WANTED and b"cache-control" not in map(name_of, scope["headers"]):
                        if wanted[number] == SILENT and not Window.any_defined and current_scope.get() is None:
                            scope[SCOPE_KEY] = passing = Passing(self, scope, receive, send)
                            token = current_exchange.set(passing)
                            try:
                                await self.app(scope, receive, passing.send)
                            finally:
                                passing.over()
                                current_exchange.reset(token)
                            return
                        # As `_run` does it, without a coroutine more.
                        reading = self._nothing_read(filler.backend)
                        scope[SCOPE_KEY] = silence = Silence(self, filler, scope, receive, send, reading)
                        token = current_exchange.set(silence)
                        gathering = current_scope.set(silence.scope)
                        try:
                            await self.app(scope, silence.receive, silence.send)
                        except Exception as error:
                            if not await silence.answer_stale(error):
                                raise
                        finally:
                            silence.over()
                            current_scope.reset(gathering)
                            current_exchange.reset(token)
                        if silence.ended:
                            wanted[number] = WANTED
                        elif silence.answered and wanted[number] == UNKNOWN:
                            wanted[number] = SILENT
                        return
            url = self._plain_url(scope)
            known = None
            if url is not None:
                known = self._known.get(url) or self._know(url)
            messages = self._ready(known) if known is not None else None
            if messages is None and known is not None and known.dims is not None:
                messages = await self._fetch(scope, known)
            if messages is None and known is not None and known.silent and current_scope.get() is None:
                filler = filler_in_use(self.cache)
                known.silent = await self._pass_silently(scope, receive, send, filler, None, known)
                return
            if messages is None and known is not None and current_scope.get() is None:
                bringing = self._to_bring(scope, receive, send, known)
                if bringing is not None:
                    await self._run(bringing, scope)
                    return
            if messages is None:
                if known is not None:
                    facts = PLAIN_GET
                    address = Address(scope, self.cache.namespace, known.base, known.record_key)
                else:
                    facts = read_request(scope["method"], scope["headers"])
                    address = Address(scope, self.cache.namespace)
                messages = self._hit(facts, address, looked=known is not None)
                if messages is None:
                    await self._forward(scope, receive, send, facts, address, known)
                    return
            start, body = messages
            if (windows := body.get("windows")) is not None:
                serving = Serving(self, scope, send, receive=receive)
                await serving.send(start, windows.segments, windows.charset)
                return
            await send(start)
            await send(body)
        elif kind == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await self._pass(scope, receive, send)

    def _notice_backend(self) -> Filler:
        """Look what is known of paths, for the backend that counts now."""
        filler = self.cache._filling()
        self._wanted = wanted_on(filler.backend)
        self._wanted_on = filler
        return filler

    def _nothing_read(self, backend: Backend) -> Reading:
        """A reading in which nothing was found, at the newest stamp that is known.

        An older one than the journal's will do: what was invalidated since counts against what is stored with it.
        """
        stamp = backend.newest()
        if stamp is not self._nothing.stamp:
            self._nothing = Reading(stamp, None, miss=NOT_THERE)
        return self._nothing

    def note_wanted(self, path: str, filler: Filler) -> None:
        """A response is stored at `path` now."""
        wanted = self._wanted if filler is self._wanted_on else wanted_on(filler.backend)
        if wanted is not None:
            wanted[hash(path) % SLOTS] = WANTED

    async def _pass_silently(
        self,
        scope: AsgiScope,
        receive: Receive,
        send: Send,
        filler: Filler | None,
        reading: Reading | None,
        known: Known | None = None,
    ) -> bool:
        """Run the application where mostly nobody wants the response cached. Whether it answered, and nobody did.

        `known`: the URL, where it was silent before.
        """
        silence = Silence(self, filler, scope, receive, send, reading, known)
        await self._run(silence, scope)
        return silence.answered and not silence.ended

    async def _run(self, silence: Silence, scope: AsgiScope) -> None:
        """Run the application with `silence` in an exchange's place."""
        scope[SCOPE_KEY] = silence
        token = current_exchange.set(silence)
        gathering = current_scope.set(silence.scope)
        try:
            await self.app(scope, silence.receive, silence.send)
        except Exception as error:
            if not await silence.answer_stale(error):
                raise
        finally:
            # First: the garbage collector may end what a loop left behind, in a context where the others raise.
            silence.over()
            current_scope.reset(gathering)
            current_exchange.reset(token)

    def _to_bring(self, scope: AsgiScope, receive: Receive, send: Send, known: Known) -> Silence | None:
        """What stands in an exchange's place for a request of whose URL, with another query perhaps, it is known that
        the URL is all that tells its responses apart. Mostly its response was stored and is gone.

        None where the exchange is to find out what there is, or to wait for another.
        """
        filler = self.cache._filler
        if filler is None or filler is not self._wanted_on or self._wanted is None:  # nor where none may be silent
            return None
        if self.cache._disabled or not filler.can_add or not filler._agreed or filler.pending.names:
            return None
        backend, address = filler.backend, Address(scope, self.cache.namespace, known.base, known.record_key)
        stamp, record = backend.newest(), backend.peek(known.record_key)
        if record is None and backend.why_absent(known.record_key) is NOT_THERE:
            # Another path has its number, or what was stored was evicted.
            return Silence(self, filler, scope, receive, send, self._nothing_read(backend), address=address)
        reading = Reading(stamp, record)
        dims = record_of(reading)
        if dims is None or not dims.plain:
            return None
        silence = Silence(self, filler, scope, receive, send, reading, address=address)
        if dims.public:  # else what there is, is served at the endpoint
            led = lead_at_once(filler, known.key)
            if led is None:
                return None
            silence.bring(*led)
        return silence

    async def _pass(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Run the application for a request that no response is stored for: an unsafe one, a websocket."""
        scope[SCOPE_KEY] = RequestCache(self.cache, None, "method")
        aside = current_exchange.set(Aside(scope))
        try:
            if scope["type"] == "http":
                await self._pass_unsafe(scope, receive, send)
            else:
                await self.app(scope, receive, send)
        finally:
            current_exchange.reset(aside)
            scope[SCOPE_KEY] = self.afterwards

    async def _pass_unsafe(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        gathering = scope_of_response(filler_in_use(self.cache), self.cache, scope)
        send = Filling(partial(Serving, self, scope, context=copy_context()), gathering, send).send
        token = current_scope.set(gathering)
        try:
            if is_safe(scope["method"]) or self.cache._disabled:
                await self.app(scope, receive, send)
                return
            change = Change(self, scope, send)
            noting = invalidated_here.set(change.invalidated)
            try:
                await self.app(scope, receive, change.send)
            finally:
                invalidated_here.reset(noting)
        finally:
            current_scope.reset(token)
            gathering.hand_up()

    def _plain_url(self, asgi: AsgiScope) -> _Url | None:
        """The URL of a `GET` that says nothing for a cache to decide by, as most do; None for others."""
        if asgi["method"] != "GET" or self._policy is not None:
            return None
        host: bytes | None = None
        for name, value in asgi["headers"]:
            if name == b"host":
                if host is not None:
                    return None
                host = value
            elif name in DECISIVE:
                return None
        if host is None:
            host = b""
        try:
            scheme, raw, path = asgi["scheme"], asgi["raw_path"], asgi["path"]
            return (scheme, host, raw, path, asgi["root_path"], asgi["query_string"])
        except KeyError:  # of a server that leaves out what it may
            return None

    def _ready(self, known: Known) -> tuple[Message, Message] | None:
        """The hit of such a request that can be told at once, where the URL is the whole key.

        What `_hit` finds too, in a third of the time.
        """
        entry = self.cache._peek(known.key)
        if entry is None or entry.codec is not RESPONSES:
            return None
        response: StoredResponse = entry.body if entry.thaw is None else entry.load()
        return self._reply(known, entry, response)

    async def _fetch(self, asgi: AsgiScope, known: Known) -> tuple[Message, Message] | None:
        """The hit of such a request from outside this process, in one round trip."""
        filler, dims, messages = self.cache._filling(), known.dims, None
        reading = None
        if dims is PLAIN and not self.cache._disabled:
            # Where the URL is the whole key, its response tells whether it still is: it goes when it is not.
            reading = await filler.read(known.key)
        elif dims is not None and not self.cache._disabled:
            reading = await self._look(filler, asgi, dims)
        entry = reading.entry if reading is not None and not reading.stale else None
        if entry is not None and entry.codec is None and filler.backend.clock() < entry.renew_from:
            held = known.held
            if held is not None and held[0] == entry.body:
                messages = self._reply(known, entry, held[1])
            elif (response := load(entry, RESPONSES)) is not MISSING:
                known.held = (entry.body, response) if len(entry.body) <= MAX_HELD else None
                messages = self._reply(known, entry, response)
        if messages is None:
            known.dims = None
        return messages

    async def _look(self, filler: Filler, asgi: AsgiScope, dims: Dimensions) -> Reading | None:
        """What stands where the response to this request was, if `dims` still are what tells the URL's apart."""
        address = Address(asgi, self.cache.namespace)
        record, reading = await filler.read_many([address.record_key(), address.response_key(dims)])
        return reading if record_of(record) == dims else None

    def _reply(self, known: Known, entry: Entry, response: StoredResponse) -> tuple[Message, Message] | None:
        """The messages of a hit, if it may be served to everybody."""
        if not response.public or (response.windows is not None and not self.can_fill(response)):
            return None
        around = current_scope.get()
        if around is not None:  # a cached computation calls the application
            if around.transaction is not None:  # whether it may be served there, is for the exchange to find out
                return None
            around.absorb(entry, self.cache._filling().backend)
        now = time.time()
        fields, second, headers = known.sent
        if fields is not response.headers or not second <= now < second + 1:
            start, _ = self.answer(response, entry, PLAIN_GET, stale=False)
            headers = start["headers"]
            known.sent = response.headers, floor(now), headers
        return (
            # A list of its own: what stands around this middleware may add to it.
            {"type": "http.response.start", "status": response.status, "headers": headers.copy()},
            {"type": "http.response.body", "body": response.body, "more_body": False}
            if response.windows is None
            else {"type": "http.response.body", "windows": response.windows},
        )

    def _know(self, url: _Url) -> Known | None:
        """Take a URL for known, and remember it if there is something stored of it. Not a long one: clients make them
        up."""
        scheme, host, raw, path, root, query = url
        if raw is None or len(host) + len(raw) + len(path) + len(root) + len(query) > MAX_LENGTH_KNOWN:
            return None
        base = url_base(scheme, host, url_path(raw, path, root))
        namespace = self.cache.namespace
        key = f"{namespace}|{KEY}|http {variant_key(base, query, (), PLAIN)}"
        known = Known(base, key, record_key(namespace, base))
        filler = self.cache._filler
        if filler is None or self.cache._disabled:
            return known
        backend = filler.backend
        # Of what other processes store, that is not told at once.
        if not backend.in_process or any(backend.why_absent(one) is not NOT_THERE for one in (key, known.record_key)):
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[url] = known
        return known

    def _hit(self, facts: RequestFacts, address: Address, *, looked: bool) -> tuple[Message, Message] | None:
        """A hit that can be told at once, without waiting. `looked`: not where the URL is the whole key."""
        if facts.cache_control is not None or self._policy is not None:
            return None
        peek = self.cache._peek
        dims, entry = PLAIN, None
        if facts.method == "GET" and not looked:
            entry = peek(address.response_key(dims))
        if entry is None:  # more than the URL tells its responses apart, or nothing is there
            record = peek(address.record_key())
            if record is None or record.codec is not DIMENSIONS:
                return None
            dims = record.load()
            if dims.keyed:
                return None
            if facts.method == "HEAD" and not dims.head:
                return None
            entry = peek(address.response_key(dims))
        if entry is None or entry.codec is not RESPONSES:
            return None
        response: StoredResponse = entry.load()
        cookies = () if response.with_cookies else None
        if (
            not (response.public and self.can_fill(response))
            or why_bypass(facts, vary=dims.vary, cookies=cookies) is not None
        ):
            return None
        around = current_scope.get()
        if around is not None:
            if around.transaction is not None:
                return None
            around.absorb(entry, self.cache._filling().backend)
        return self.answer(response, entry, facts, stale=False)

    async def _forward(
        self,
        scope: AsgiScope,
        receive: Receive,
        send: Send,
        facts: RequestFacts,
        address: Address,
        known: Known | None,
    ) -> None:
        filler = filler_in_use(self.cache)
        reading = await _look_up(filler, address)
        passes = self._may_be_silent and not facts.only_if_cached
        if passes and reading is not None and record_of(reading) is None:
            silent = await self._pass_silently(scope, receive, send, filler, reading)
            if known is not None and not self.cache._filling().backend.in_process:
                known.silent = silent
            return
        exchange = self._exchange(scope, Client(receive), facts, address, reading)
        scope[SCOPE_KEY] = request_cache = RequestCache(self.cache, exchange)
        try:
            stored = await self._before_routing(exchange)
            if stored is None and facts.only_if_cached and not exchange.may_hit_later:
                await exchange.reply(exchange.nothing_cached(), send)
            elif stored is None:
                await exchange.run(send)
            else:
                if known is not None and exchange.dims is not None and not self.cache._filling().backend.in_process:
                    known.dims = PLAIN if exchange.dims.plain else exchange.dims
                await exchange.reply(exchange.hit(stored), send, receive)
        finally:
            scope[SCOPE_KEY] = self.afterwards
            request_cache._over()
            exchange.over()

    def can_fill(self, response: StoredResponse) -> bool:
        """Whether the windows of a stored response are defined in this process."""
        if response.windows is None:
            return True
        try:
            self.cache._filling().windows.check(response.windows.places)
        except CorruptEntryError as error:
            logger.warning("a stored response is taken for a miss: %s", error)
            return False
        return True

    async def _before_routing(self, exchange: Exchange) -> Stored | None:
        """A stored response that may be served before the application sees the request."""
        dims = exchange.dims
        if exchange.facts.method == "HEAD" and (dims is None or not dims.head):
            return None  # whether the application accepts it is not known
        if self._policy is not None:
            policy = self._policy(HTTPConnection(exchange.asgi))
            if policy is None:  # not this one, whatever is stored; its route may say otherwise
                return None
            exchange.declare(policy if policy.public else _not_public(policy))
            stored = await exchange.find_declared()
        elif dims is not None and _answers(dims, exchange.facts):
            stored = await exchange.find(dims)
        else:
            return None
        return stored if stored is not None and stored.response.public else None

    def _exchange(
        self,
        asgi: AsgiScope,
        client: Client,
        facts: RequestFacts,
        address: Address,
        reading: Reading | None,
        *,
        renewing: bool = False,
    ) -> Exchange:
        filler = filler_in_use(self.cache)
        scope = scope_of_response(filler, self.cache, asgi, renewing=renewing)
        started = filler.backend.clock() if filler is not None else 0.0
        return Exchange(self, filler, asgi, as_it_came(asgi), client, facts, address, reading, scope, started)

    def answer(
        self, response: StoredResponse, entry: Entry, facts: RequestFacts, *, stale: bool, collapsed: bool = False
    ) -> tuple[Message, Message]:
        """The messages with which a stored response answers a request."""
        ttl = int(entry.fresh_until - self.cache._filling().backend.clock())
        ttl = min(ttl, -1) if stale else ttl
        if facts.range is not None and facts.method == "GET" and response.windows is None:
            response = part_of(response, facts)
        # One that waited for another's response was sent on with it (RFC 9211 §2.6).
        how = b"fwd=uri-miss; collapsed" if collapsed else b"hit"
        status = (b"cache-status", b"%s; %s; ttl=%d" % (self._token, how, ttl))
        extra: Sequence[tuple[bytes, bytes]] = (status,)
        if self.shows_tags and response.windows is not None:
            extra = (status, *self._debugging(entry.tags))
        elif self.shows_tags:
            extra = (status, *self.exposed(entry.tags))
        start, body = response.answer(facts, time.time(), extra)
        if self.own_target is not None:
            start["headers"] = [pair for pair in start["headers"] if pair[0] != self.own_target]
        return start, body

    def exposed(self, names: Iterable[str], *, whole: bool = True) -> list[tuple[bytes, bytes]]:
        """The tags of a response as headers, as far as that was asked for. `whole`: there come no more."""
        if not self.shows_tags:
            return []
        names = tuple(names)
        tags = user_tags(names, self.cache.namespace)
        headers = self._debugging(names)
        if self.groups and (named := write_groups(tags)) is not None and named is not OVERFLOW:
            headers.append((b"cache-groups", named))
        if self._surrogates is not None:
            # Whatever can be invalidated, keys and functions too.
            keys = [as_written(name, self.cache.namespace) for name in names]
            field = self._surrogates.header(keys) if whole else OVERFLOW
            if field is OVERFLOW:  # a CDN that knew only some of the keys would miss purges
                headers += [(b"surrogate-control", b"no-store"), (b"cdn-cache-control", b"no-store")]
            elif field is not None:
                headers.append(field)
        return headers

    def _debugging(self, names: Iterable[str]) -> list[tuple[bytes, bytes]]:
        if self._exposed_as is None:
            return []
        return [(self._exposed_as, self._for_debugging(sorted(user_tags(tuple(names), self.cache.namespace))))]

    def _for_debugging(self, tags: list[str]) -> bytes:
        text = ", ".join(tags).encode("ascii", "backslashreplace")
        if len(text) > MAX_EXPOSED:
            whole = text[: text.rindex(b",", 0, MAX_EXPOSED)] if b"," in text[:MAX_EXPOSED] else b""
            text = b"%s ... (%d tags)" % (whole, len(tags))
        return bytes(byte if 0x20 <= byte < 0x7F else 0x3F for byte in text)

    def _without_surrogates(self, send: Send) -> Send:
        """`send`, without what is meant for the CDN."""
        assert self._surrogates is not None
        name = self._surrogates.name.lower().encode()

        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message.get("headers") or () if pair[0].lower() != name]
                message = {**message, "headers": headers}
            await send(message)

        return send_without

    def warn_of_no_ttl(self, what: str) -> None:
        """Say that a response which is to be cached never is."""
        self._warn_once(
            "is to be cached and is not: neither its policy nor it says for how long. Give ttl=, or "
            "Cache(default_ttl=...)",
            what,
        )

    def warn_of_copied_scope(self, what: str) -> None:
        """Say that nothing tells which endpoint answers."""
        self._warn_once(
            "is to be cached and is not: a middleware between CacheMiddleware and the routes copies the ASGI scope, "
            "which hides the route. Add CacheMiddleware first, so that it is innermost",
            what,
        )

    def _warn_once(self, why: str, what: str) -> None:
        if why not in self._warned:
            self._warned.add(why)
            logger.warning("%s %s", what, why)

    async def renew(self, asgi: AsgiScope, flight: Flight, key: str) -> None:
        """Ask the application anew, in the background: the request as it came, and no client behind it."""
        headers = [pair for pair in asgi["headers"] if pair[0] not in _OF_ONE_CLIENT]
        scope = {**asgi, "headers": headers, "method": "GET"}
        facts, address = read_request(scope["method"], scope["headers"]), Address(scope, self.cache.namespace)
        try:
            client = _SilentClient()
            reading = await _look_up(filler_in_use(self.cache), address)
            exchange = self._exchange(scope, Client(client.receive), facts, address, reading, renewing=True)
            scope[SCOPE_KEY] = request_cache = RequestCache(self.cache, exchange)
            exchange.lead(flight, key)
            reading = await exchange.filler.read(key) if exchange.filler is not None else None
            if reading is not None and reading.entry is not None:
                exchange.consider(reading.entry)
            if self._policy is not None and (policy := self._policy(HTTPConnection(scope))) is not None:
                exchange.declare(policy)
            await exchange.run(client.send)
            request_cache._over()
            exchange.over()
        except Exception:
            logger.warning("the renewal of %s failed", asgi["path"], exc_info=True)
        finally:
            self.cache._filling().flights.land(flight, Fate.CANCELLED)

    def inputs_of(self, route: object | None) -> Inputs:
        """What `route` makes its endpoint's arguments of, read once."""
        if route is None:
            return Inputs()
        known = self._inputs.get(id(route))
        if known is None or known[0] is not route:
            known = _remember(self._inputs, id(route), (route, inputs_of(route)))
        return known[1]

    def as_plain(self, route: object | None, policy: Policy) -> Policy | None:
        """The policy of `route`, with its lifetime, if nothing but the URL of a plain `GET` counts by it."""
        known = self._plain.get((id(route), id(policy)))
        if known is None or known[0] is not route or known[1] is not policy:
            inputs = self.inputs_of(route)
            plain: Policy | None = None
            if policy.is_plain and not inputs.headers and inputs.headers is not None and inputs.cookies is not None:
                plain = policy.with_ttl(self.cache._default_ttl, self.cache.max_ttl)
            if policy.public:
                self.check_public(route, policy)
            known = _remember(self._plain, (id(route), id(policy)), (route, policy, plain))
        return known[2]

    def check_public(self, route: object | None, policy: Policy) -> None:
        """Raise where hits before routing would pass by a guard of `route`."""
        if route is None:
            return
        known = self._public.get(id(route))
        if known is not None and known == (route, policy):
            return
        why = why_not_public(route, vary=policy.vary, cookies=policy.cookies)
        if why is not None:
            raise ConfigurationError(
                f"public=True on {getattr(route, 'path', route)!r}: its hits are served before routing, and {why}. "
                f"Leave public=True out: hits are then served after the dependencies have run"
            )
        _remember(self._public, id(route), (route, policy))

    async def _lifespan(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Open the cache before the application starts, close it when it has shut down."""
        opened = False

        async def receive_after_opening() -> Message:
            nonlocal opened
            message = await receive()
            if message["type"] == "lifespan.startup" and not opened:
                self._check_routes(scope.get("app") or self.app)
                await self.cache.__aenter__()
                opened = True
            return message

        async def send_after_closing(message: Message) -> None:
            nonlocal opened
            if opened and message["type"] in (
                "lifespan.shutdown.complete",
                "lifespan.shutdown.failed",
                "lifespan.startup.failed",
            ):
                opened = False
                await self.cache.__aexit__(None, None, None)
            await send(message)

        try:
            await self.app(scope, receive_after_opening, send_after_closing)
        finally:
            if opened:
                await self.cache.__aexit__(None, None, None)

    def _check_routes(self, app: object) -> None:
        """Refuse at the start what would be refused at the first request."""
        for route in routes_of(app):
            policy = policy_of(getattr(route, "endpoint", None))
            if policy is not None and policy.public:
                self.check_public(route, policy)


async def _look_up(filler: Filler | None, address: Address) -> Reading | None:
    """What is recorded of a URL, by the journal of now."""
    return await filler.read(address.record_key()) if filler is not None else None


def _remember(known: dict[_K, _V], key: _K, value: _V) -> _V:
    """Keep what was found of a route, of which there may be a new one with each request."""
    if len(known) >= MAX_KNOWN:
        known.clear()
    known[key] = value
    return value


def _note_invalidated(tags: tuple[str, ...]) -> None:
    noted = invalidated_here.get()
    if noted is not None:
        noted.update(tags)


def _answers(dims: Dimensions, facts: RequestFacts) -> bool:
    """Whether requests for this URL may be answered before routing, and this one is such."""
    if not dims.public or dims.keyed or (facts.method == "HEAD" and not dims.head):
        return False
    return why_bypass(facts, vary=dims.vary, cookies=dims.cookies) is None


def _not_public(policy: Policy) -> Policy:
    raise ConfigurationError(
        f"the middleware's policy function returned {policy!r}: what it decides is served before routing, so it has to "
        f"say public=True; for hits after the dependencies, use cache_response on the route"
    )


class _SilentClient:
    """A client that has sent its request, and goes away once it has the whole response."""

    def __init__(self) -> None:
        self._sent = False
        self._answered = anyio.Event()

    async def receive(self) -> Message:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._answered.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._answered.set()
