"""One request and its response on their way through the response cache: all the state there is of them."""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from asynctag.backends.base import Cause, Entry, Miss, Reading
from asynctag.codec import codec_for
from asynctag.errors import ConfigurationError
from asynctag.expiry import Expiry
from asynctag.fill import MISSING, Filler, Job, load
from asynctag.flight import Fate, Flight
from asynctag.http.guards import effective_route
from asynctag.http.headers import Forward, cache_status, make_etag, parse_age
from asynctag.http.rules import (
    Policy,
    RequestFacts,
    Storable,
    may_serve,
    not_modified,
    not_modified_headers,
    storable,
    why_bypass,
)
from asynctag.http.stored import RESPONSES, StoredResponse, field, make_stored
from asynctag.http.variants import Dimensions, dimensions, shortened, url_base, variant_key
from asynctag.names import KEY, describe
from asynctag.scope import Scope, current_scope, live_scope

if TYPE_CHECKING:
    from asynctag.http.middleware import CacheMiddleware

logger = logging.getLogger("asynctag")

AsgiScope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Statuses instead of which a stale response is served, within its `stale_if_error` (RFC 5861 §4).
ERRORS = frozenset({500, 502, 503, 504})

DIMENSIONS = codec_for(Dimensions, owner="asynctag.http")

#: The exchange that runs here; False where the request is none of the cache's business, None without the middleware.
current_exchange: ContextVar["Exchange | Literal[False] | None"] = ContextVar("asynctag_exchange", default=None)


class Address:
    """Where a request goes: what its keys are made of."""

    __slots__ = ("_base", "headers", "path", "query")

    def __init__(self, asgi: AsgiScope) -> None:
        self.headers: list[tuple[bytes, bytes]] = asgi["headers"]
        raw: bytes | None = asgi.get("raw_path")
        # As it was sent: two spellings of a path may mean two things to the application.
        self.path: str = raw.partition(b"?")[0].decode("latin-1") if raw else asgi["path"]
        self.query: bytes = asgi.get("query_string", b"")
        host = ""
        for name, value in self.headers:
            if name == b"host":
                host = value.decode("latin-1").lower()
                break
        self._base = url_base(asgi.get("scheme", "http"), host, self.path)

    def record_key(self, namespace: str) -> str:
        """Under which the URL's first record is kept: what tells its responses apart."""
        return f"{namespace}|{KEY}|http record {shortened(self._base)}"

    def response_key(self, namespace: str, dims: Dimensions) -> str:
        return f"{namespace}|{KEY}|http {variant_key(self._base, self.query, self.headers, dims)}"


class Stored(NamedTuple):
    """A stored response that was found for a request."""

    response: StoredResponse
    entry: Entry
    stale: bool


class Exchange:
    """A `GET` or `HEAD` that no hit answered at once, until its response is out.

    It stands before the application as `receive` and `send`, and routes find it by a context variable.
    """

    def __init__(
        self,
        middleware: "CacheMiddleware",
        filler: Filler | None,
        asgi: AsgiScope,
        receive: Receive,
        send: Send,
        facts: RequestFacts,
        address: Address,
        reading: Reading | None,
        *,
        renewing: bool = False,
    ) -> None:
        self.middleware = middleware
        self.cache = middleware.cache
        self.filler = filler
        self.asgi = asgi
        self._origin = dict(asgi)  # as it came: routing writes into the scope
        self.facts = facts
        self.address = address
        self.policy: Policy | None = None
        self.scope = Scope(
            f"the response to {facts.method} {address.path}",
            filler.backend if filler is not None else None,
            self.cache.namespace,
            live_scope(),  # where a cached computation calls the application
            renewing=renewing,
        )
        #: What tells the URL's responses apart, as far as it is known.
        self.dims = record_of(reading)
        self._reading = reading  # from before the application saw the request: the response's stamp
        self._started = filler.backend.clock() if filler is not None else 0.0
        self._receive = receive
        self._send = send
        self._key: str | None = None
        self._flight: Flight | None = None
        #: Why this request does not touch the cache, as far as it is known before a route says more.
        self._bypass: str | None = None
        if self.dims is not None:
            self._bypass = why_bypass(facts, vary=self.dims.vary, cookies=self.dims.cookies)
        self._miss: Miss | None = None
        self._forward: Forward = "uri-miss"
        self._recording: _Recording | None = None
        self._start: Message | None = None  # held until the first of the body is there
        self._begun = False  # the start is out
        self._passing = False  # what the application sends goes out as it is
        self._answered = False  # another answer took the place of the application's
        self._gone = False  # the client went away
        self._succeeded = False
        self._entered = False  # the endpoint was reached: whatever guards the route has let the request in
        self._not_stored: str | None = None

    # --- looking up ----------------------------------------------------------------------------------

    async def find(self, dims: Dimensions) -> Stored | None:
        """A stored response for this request; without one, this request is the one to bring it.

        Concurrent requests for the same response wait here for the first.
        """
        filler = self.filler
        # What is found and not served is no part of the response that takes its place.
        looking = Scope(self.scope.name, self.scope.backend, self.cache.namespace, self.scope.parent)
        looking.renewing = self.scope.renewing
        while filler is not None:
            key = self.address.response_key(self.cache.namespace, dims)
            if key == self._key and self._flight is not None:
                return None  # looked up before routing, and led since
            self.land(Fate.CANCELLED)
            job = self._job(key, Expiry(1.0))
            # A HEAD brings nothing that could be stored: nobody is to wait for it.
            search = filler.look if self.facts.method == "HEAD" else filler.find
            found = await search(job, looking)
            if found.value is not MISSING and found.entry is not None:
                stored = Stored(found.value, found.entry, found.stale)
                if self._wants(stored):
                    return stored
                self._forward = "request"
                return None
            self.lead(found.flight, key)
            if found.reading is not None:
                self._miss = found.reading.miss
            if found.flight is not None:
                return None
            known = record_of(await filler.read(self.address.record_key(self.cache.namespace)))
            if known is None or set(known.vary) <= set(dims.vary):
                return None
            # The response that was waited for turned out to vary by more than was known.
            dims = replace(dims, vary=tuple(sorted({*dims.vary, *known.vary})))
        return None

    def _wants(self, stored: Stored) -> bool:
        """Whether the request's own directives let it have this response."""
        if self.facts.cache_control is None or self.filler is None:
            return True
        now, entry = self.filler.backend.clock(), stored.entry
        age = max(0.0, time.time() - stored.response.born)
        lifetime = age + entry.fresh_until - now
        return may_serve(self.facts, age, lifetime, stale=entry.stale_until - entry.fresh_until)

    def lead(self, flight: Flight | None, key: str) -> None:
        """Others wait for this response, as the one under `key`."""
        self._key, self._flight = key, flight
        if flight is not None:
            flight.tags = self.scope.tags
            self.scope.flights = (flight,)

    def land(self, fate: Fate) -> None:
        """Let those who wait go on, without this response."""
        if self._flight is not None and self.filler is not None:
            self.filler.flights.land(self._flight, fate, now=self.filler.backend.clock())
            self._flight = None
            self.scope.flights = ()

    def _job(self, key: str, expiry: Expiry) -> Job:
        async def renew(flight: Flight) -> None:
            await self.middleware.renew(self._origin, flight, key)

        tags = (key, *self.cache._implicit)
        return Job(
            self.scope.name, key, tags, RESPONSES, expiry, self.cache.namespace, _computed_elsewhere, renew=renew
        )

    # --- what a route says -----------------------------------------------------------------------------

    def declare(self, policy: Policy, tags: Iterable[str] = ()) -> None:
        """A policy, and tags as they stand in the backend. The policy that is said last counts."""
        if policy.ttl is None:
            policy = replace(policy, ttl=self.cache._default_ttl)
        elif policy.ttl > self.cache.max_ttl:
            raise ConfigurationError(
                f"ttl={policy.ttl!r} is above the cache's max_ttl of {self.cache.max_ttl:g} seconds"
            )
        if policy.public:
            self.middleware.check_public(effective_route(self.asgi), policy)
        self.policy = policy
        self.scope.gather(set(tags), self.scope.backend)
        self._bypass = why_bypass(self.facts, vary=policy.vary_fields, cookies=policy.cookies)

    def refuse(self, why: str, error: Exception) -> None:
        """Leave this request to the application, and its response out of the cache."""
        logger.info("%s is not cached: %s", self.scope.name, error)
        self._bypass = why
        self.scope.no_store = True

    async def enter(self) -> Stored | None:
        """From the endpoint of a route, its policy declared: the stored response, where there is one to serve."""
        self._entered = True
        return await self.find_declared()

    async def find_declared(self) -> Stored | None:
        """A stored response by the policy that was declared."""
        policy = self.policy
        if policy is None or self._bypass is not None:
            return None
        known = self.dims.vary if self.dims is not None else ()
        return await self.find(_keyed(policy, known))

    def hit(self, stored: Stored) -> tuple[Message, Message]:
        """The messages of a hit. What the application sends from here on goes out as it is."""
        self._passing = True
        self.land(Fate.CANCELLED)
        self.scope.absorb(stored.entry, self.scope.backend, stale=stored.stale)
        return self.middleware.answer(stored.response, stored.entry, self.facts, stale=stored.stale)

    # --- running the application -----------------------------------------------------------------------

    async def run(self) -> None:
        """Run the application within the response's scope, and store what it sends if it may be."""
        scope_token = current_scope.set(self.scope)
        exchange_token = current_exchange.set(self)
        try:
            await self.middleware.app(self.asgi, self.receive, self.send)
        except Exception as error:
            if self._start is not None or not await self._answer_stale(error):
                self.land(Fate.UNSHARED)
                raise
        finally:
            self.end()
            current_exchange.reset(exchange_token)
            current_scope.reset(scope_token)
        if self.facts.method == "HEAD" and self.dims is not None and not self.dims.head and self._succeeded:
            await self._keep_record(replace(self.dims, head=True))  # the application accepts it

    def end(self) -> None:
        """Nothing more comes of this request: who still waits for it goes on, and what was gathered goes up."""
        self.land(Fate.CANCELLED)
        self.scope.hand_up()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._gone = True
        return message

    async def send(self, message: Message) -> None:
        if self._answered:
            return
        kind = message["type"]
        if self._passing or (self._start is None and kind != "http.response.start"):
            await self._send(message)  # a hit's messages, or what comes before a response
        elif kind == "http.response.start":
            await self._begin(message)
        elif kind == "http.response.body":
            await self._continue(message.get("body", b""), message.get("more_body", False))
        else:  # a file by its path, trailers: not for us to keep
            self._stop_recording("extension")
            await self._send_start()
            await self._send(message)

    async def _begin(self, start: Message) -> None:
        if start["status"] in ERRORS and await self._answer_stale(None):
            return
        if self.policy is not None and self.policy.public:
            self.middleware.check_public(effective_route(self.asgi), self.policy)  # routed by now
        self._start = start
        self._succeeded = 200 <= start["status"] < 300
        headers = start.get("headers") or ()
        verdict = storable(
            self.facts, start["status"], headers, self.policy, store=self.middleware.store, now=time.time()
        )
        if self.filler is None:
            verdict = "disabled"
        elif self._bypass is not None:
            verdict = self._bypass
        elif verdict == "no-freshness" and self.policy is not None:
            self.middleware.warn_of_no_ttl(self.address.path)
        if isinstance(verdict, Storable):
            self._recording = _Recording(verdict, self.middleware.max_body)
        else:
            self._stop_recording(verdict)

    async def _continue(self, chunk: bytes, more: bool) -> None:
        recording = self._recording
        if recording is not None and not recording.add(chunk):
            self._stop_recording("size")
            recording = None
        if not more:
            self.scope.closed = True  # what is cached or tagged from here on is not part of the response
            if recording is not None:
                if not self._begun:
                    await self._send_whole(recording)
                    return
                await self._store(recording)  # before the last byte: the client's next request finds it
        await self._send_start()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def _send_whole(self, recording: "_Recording") -> None:
        """A response that came in one piece: stored, with a validator, before its first byte goes out."""
        assert self._start is not None
        headers: list[tuple[bytes, bytes]] = list(self._start.get("headers") or ())
        body, status = recording.body, self._start["status"]
        if status == 200 and field(headers, b"etag") is None:
            headers.append((b"etag", make_etag(body)))
        if field(headers, b"cache-control") is None:
            # No invalidation reaches the caches of clients. They are to ask, and get a 304.
            headers.append((b"cache-control", b"no-cache"))
        self._start = {**self._start, "headers": headers}
        await self._store(recording)
        modified = field(headers, b"last-modified")
        if status == 200 and not_modified(self.facts, field(headers, b"etag"), modified):
            self._start = {**self._start, "status": 304, "headers": list(not_modified_headers(headers))}
            body = b""
        await self._send_start()
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _send_start(self) -> None:
        """Send the start of the response, with what is known of it now."""
        if self._begun or self._start is None:
            return
        self._begun = True
        extra = self.middleware.exposed(self.scope.tags)
        if (status := self._cache_status()) is not None:
            extra.append((b"cache-status", status))
        await self._send({**self._start, "headers": [*(self._start.get("headers") or ()), *extra]})

    def _cache_status(self) -> bytes | None:
        name = self.middleware.name
        if self._recording is None:
            why = self._bypass or self._not_stored
            if self.policy is None and self.dims is None:
                return None  # nobody ever wanted responses of this URL cached
            forward: Forward = "bypass" if self._bypass is not None else self._forward
            return cache_status(fwd=forward, detail=why, name=name)
        forward, detail, miss = self._forward, None, self._miss
        if forward == "uri-miss" and miss is not None and miss.cause is not Cause.ABSENT:
            forward = "stale"
            detail = miss.cause.value if miss.tag is None else describe(miss.tag, self.cache.namespace)
        # Of a body that is still to come it is not known yet whether it will be stored.
        return cache_status(fwd=forward, stored=self._recording.stored, detail=detail, name=name)

    # --- storing -----------------------------------------------------------------------------------------

    def _stop_recording(self, why: str) -> None:
        self._recording = None
        self._not_stored = why
        self.land(Fate.UNSHARED)  # nobody need wait for what cannot be theirs

    async def _store(self, recording: "_Recording") -> None:
        start, lifetime, filler = self._start, recording.lifetime, self.filler
        assert start is not None
        assert filler is not None
        headers = start.get("headers") or ()
        length = field(headers, b"content-length")
        dims = dimensions(self.policy, headers, public=lifetime.public)
        if self._gone or dims is None or (length is not None and length != b"%d" % recording.size):
            self.land(Fate.CANCELLED if self._gone else Fate.UNSHARED)
            return
        if self.dims is not None:
            dims = replace(_widened(dims, self.dims.vary), head=self.dims.head)
        if dims != self.dims:
            await self._keep_record(dims)
        key = self.address.response_key(self.cache.namespace, dims)
        if key != self._key:
            self.land(Fate.UNSHARED)  # those who wait asked for something else
        expiry = Expiry(
            ttl=min(lifetime.lifetime, self.cache.max_ttl),
            stale_while_revalidate=lifetime.stale_while_revalidate,
            stale_if_error=lifetime.stale_if_error,
            jitter=self.policy.jitter if self.policy is not None else 0.0,
        )
        job = self._job(key, expiry)
        self.scope.tags.update(job.tags)
        age = parse_age([value for name, value in headers if name == b"age"]) or 0
        response = make_stored(
            start["status"], headers, recording.body, now=time.time(), age=age, public=lifetime.public
        )
        # Dependencies may have read what it was built from before its flight began: who waits gets it only if the
        # store accepts it.
        written = await filler.store(
            job, response, self._reading, self._flight, self.scope, self._started, unaccepted=Fate.REFUSED
        )
        recording.stored = written.accepted

    async def _keep_record(self, dims: Dimensions) -> None:
        """Keep what tells the URL's responses apart where any process finds it before routing."""
        assert self.filler is not None
        key = self.address.record_key(self.cache.namespace)
        tags = (key, *self.cache._implicit)
        expiry = Expiry(self.cache.max_ttl)
        job = Job(key, key, tags, DIMENSIONS, expiry, self.cache.namespace, _computed_elsewhere)
        scope = Scope(key, self.filler.backend, self.cache.namespace)
        scope.tags.update(tags)
        await self.filler.store(job, dims, self._reading, None, scope, self._started)
        self.dims = dims

    async def _answer_stale(self, error: Exception | None) -> bool:
        """Answer with a stored response instead of an error, within its `stale_if_error`."""
        if self._key is None or self.filler is None or self.scope.renewing:
            return False
        reading = await self.filler.read(self._key)
        if reading is None or reading.entry is None:
            return False
        response = load(reading.entry, RESPONSES)
        if response is MISSING or not (response.public or self._entered):
            return False
        logger.warning("%s failed: serving what was stored before", self.scope.name, exc_info=error)
        self.land(Fate.UNSHARED)
        for message in self.middleware.answer(response, reading.entry, self.facts, stale=reading.stale):
            await self._send(message)
        self._answered = True
        return True


class _Recording:
    """The body of a response that may be stored, as it goes by."""

    __slots__ = ("_chunks", "lifetime", "limit", "size", "stored")

    def __init__(self, lifetime: Storable, limit: int) -> None:
        self.lifetime = lifetime
        self.limit = limit
        self.size = 0
        self.stored = False
        self._chunks: list[bytes] = []

    def add(self, chunk: bytes) -> bool:
        """Whether the body is still within the limit."""
        self.size += len(chunk)
        if self.size > self.limit:
            return False
        self._chunks.append(chunk)
        return True

    @property
    def body(self) -> bytes:
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)


def _keyed(policy: Policy, known: tuple[bytes, ...]) -> Dimensions:
    """The dimensions by which a request is looked up under `policy`, where responses are `known` to vary."""
    return _widened(Dimensions(policy.vary_fields, policy.cookies, policy.query), known)


def _widened(dims: Dimensions, known: tuple[bytes, ...]) -> Dimensions:
    vary = {*dims.vary, *known}
    if dims.cookies is not None and b"cookie" not in dims.vary:
        vary.discard(b"cookie")  # the policy says which cookies that means
    return replace(dims, vary=tuple(sorted(vary)))


def record_of(reading: Reading | None) -> Dimensions | None:
    """The dimensions that a URL's record holds, if it is one."""
    if reading is None or reading.entry is None:
        return None
    value = load(reading.entry, DIMENSIONS)
    return value if isinstance(value, Dimensions) else None


async def _computed_elsewhere() -> Any:
    raise AssertionError("a response is computed by the application")
