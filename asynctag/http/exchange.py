"""One request on its way through the response cache: what is looked up for it, and what its response is stored as."""

import logging
import time
from collections.abc import Collection, Iterable
from contextvars import ContextVar
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from asynctag.backends.base import Entry, Miss, Reading
from asynctag.codec import codec_for
from asynctag.errors import BackendError, ConfigurationError, TagTooLongError
from asynctag.expiry import Expiry
from asynctag.fill import MISSING, Filler, Job, load
from asynctag.flight import Fate, Flight
from asynctag.http.asgi import AsgiScope, Message, Receive, Send
from asynctag.http.guards import effective_route, is_part_of
from asynctag.http.headers import Forward, parse_age
from asynctag.http.outgoing import Outgoing
from asynctag.http.rules import Policy, RequestFacts, Storable, may_serve, why_bypass
from asynctag.http.stored import RESPONSES, StoredResponse, field, make_stored
from asynctag.http.variants import Dimensions, dimensions, shortened, url_base, url_path, variant_key
from asynctag.names import KEY
from asynctag.scope import Scope, current_scope, live_scope

if TYPE_CHECKING:
    from asynctag.http.middleware import CacheMiddleware

logger = logging.getLogger("asynctag")

DIMENSIONS = codec_for(Dimensions, owner="asynctag.http")

#: The exchange that runs here; False where the request is none of the cache's business, None without the middleware.
current_exchange: ContextVar["Exchange | Literal[False] | None"] = ContextVar("asynctag_exchange", default=None)


class Address:
    """Where a request goes: what its keys are made of."""

    __slots__ = ("_base", "_query", "headers", "namespace")

    def __init__(self, asgi: AsgiScope, namespace: str) -> None:
        self.namespace = namespace
        self.headers: list[tuple[bytes, bytes]] = asgi["headers"]
        self._query: bytes = asgi.get("query_string", b"")
        # All that were sent: of several, another server or the application may take another.
        host = b",".join([value for name, value in self.headers if name == b"host"])
        path = url_path(asgi.get("raw_path"), asgi["path"], asgi.get("root_path", ""))
        self._base = url_base(asgi.get("scheme", "http"), host, path)

    def record_key(self) -> str:
        """Under which the URL's first record is kept: what tells its responses apart. They carry it as a tag."""
        return f"{self.namespace}|{KEY}|http record {shortened(self._base)}"

    def response_key(self, dims: Dimensions) -> str:
        return f"{self.namespace}|{KEY}|http {variant_key(self._base, self._query, self.headers, dims)}"


class Stored(NamedTuple):
    """A stored response that was found for a request."""

    response: StoredResponse
    entry: Entry
    stale: bool


#: A look-up stores nothing: what it is asked for with has no expiry of its own.
_LOOKED_UP = Expiry(1.0)


class Exchange:
    """A `GET` or `HEAD` that no hit answered at once, until its response is out.

    Routes find it by a context variable. Its response goes out through an `Outgoing`.
    """

    def __init__(
        self,
        middleware: "CacheMiddleware",
        filler: Filler | None,
        asgi: AsgiScope,
        receive: Receive,
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
        self._origin = dict(asgi)  # as it came: routing writes into the scope, and the application into its state
        if "state" in asgi:
            self._origin["state"] = dict(asgi["state"])
        #: Where the routing has written what it found: a middleware in between may have copied the scope.
        self.routed = asgi
        self._receive = receive
        self.facts = facts
        self.address = address
        self.policy: Policy | None = None
        #: What tells the URL's responses apart, as far as it is known.
        self.dims = record_of(reading)
        #: Why this request does not touch the cache, as far as it is known before a route says more.
        known = self.dims or Dimensions()
        self.bypass = why_bypass(facts, vary=known.vary, cookies=known.cookies)
        #: Why the request went to the application, for `Cache-Status`.
        self.forward: Forward = "uri-miss"
        self.miss: Miss | None = None
        #: Whether a hit is on its way: what the application sends goes out as it is.
        self.replying = False
        self.scope = Scope(
            f"the response to {facts.method} {asgi['path']}",
            filler.backend if filler is not None else None,
            self.cache.namespace,
            live_scope(),  # where a cached computation calls the application
            renewing=renewing,
        )
        self._reading = reading  # from before the application saw the request: the response's stamp
        self._started = filler.backend.clock() if filler is not None else 0.0
        self._key: str | None = None
        self._flight: Flight | None = None
        self.refused = False
        self._entered = False  # the endpoint was reached: whatever guards the route has let the request in
        self._by_router = False  # the policy is a router's: it speaks for the endpoint, not for what stands before
        self._over = False
        self._gone = False  # the client went away

    # --- looking up ----------------------------------------------------------------------------------

    async def find(self, dims: Dimensions) -> Stored | None:
        """A stored response for this request; without one, this request is the one to bring it.

        Concurrent requests for the same response wait here for the first.
        """
        filler = self.filler
        if self.facts.cache_control is not None and self.facts.cache_control.no_cache:
            self.forward = "request"
            return None
        if self._reading is None:  # the backend does not answer: nothing is there, and nothing can be stored
            return None
        while filler is not None:
            key = self.address.response_key(dims)
            if key == self._key and self._flight is not None:
                return None  # looked up before routing, and led since
            entry = self.cache._peek(key)
            if entry is not None and entry.codec is RESPONSES:  # as most are
                stored = Stored(entry.load(), entry, stale=False)
                if self._wants(stored):
                    return stored
            self.land(Fate.CANCELLED)
            job = self._job(key, _LOOKED_UP)
            # What is found and not served is no part of the response that takes its place.
            looking = Scope(self.scope.name, self.scope.backend, self.cache.namespace, self.scope.parent)
            looking.renewing = self.scope.renewing
            # A HEAD brings nothing that could be stored: nobody is to wait for it.
            search = filler.look if self.facts.method == "HEAD" else filler.find
            try:
                found = await search(job, looking)
            except BaseException:  # gave up waiting: what the caller does instead depends on it too
                looking.hand_up()
                raise
            if found.value is not MISSING and found.entry is not None:
                stored = Stored(found.value, found.entry, found.stale)
                if self._wants(stored):
                    return stored
                self.forward = "request"
                return None
            self.lead(found.flight, key)
            if found.reading is not None:
                self.miss = found.reading.miss
                if found.reading.entry is not None:
                    self.forward = "stale"
            if found.flight is not None:
                return None
            known = record_of(await filler.read(self.address.record_key()))
            if known is None or set(known.vary) <= set(dims.vary):
                return None
            # The response that was waited for turned out to vary by more than was known.
            dims = replace(dims, vary=tuple(sorted({*dims.vary, *known.vary})))
        return None

    def _wants(self, stored: Stored) -> bool:
        """Whether this response is for this request, by its cookies and by what it asks for."""
        if self.facts.cookie and not stored.response.with_cookies:
            return False
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
            flight.scope = self.scope
            self.scope.flights = (flight,)

    def land(self, fate: Fate) -> None:
        """Let those who wait go on, without this response."""
        if self._flight is not None and self.filler is not None:
            self.filler.flights.land(self._flight, fate, now=self.filler.backend.clock())
            self._flight = None
            self.scope.flights = ()

    def give_up(self, why: str) -> None:
        """The response will not be stored: nobody need wait for what cannot be theirs.

        A status may be this request's alone (a 304 to what it asked): one more of those who wait tries.
        """
        self.land(Fate.REFUSED if why == "status" else Fate.UNSHARED)

    def let_go(self) -> None:
        """Nobody waits for a client that may be slow to take a long body."""
        self.land(Fate.UNSHARED)

    def _job(self, key: str, expiry: Expiry) -> Job:
        async def renew(flight: Flight) -> None:
            await self.middleware.renew(self._origin, flight, key)

        name, tags = self.scope.name, (key, self.address.record_key(), *self.cache._implicit)
        return Job(name, key, tags, RESPONSES, expiry, self.cache.namespace, _computed_elsewhere, renew=renew)

    # --- what a route says -----------------------------------------------------------------------------

    def declare(self, policy: Policy, tags: Collection[str] = (), *, by_router: bool = False) -> None:
        """A policy, and tags as they stand in the backend. The policy that is said last counts."""
        self._by_router = by_router
        if policy.ttl is None:
            policy = replace(policy, ttl=self.cache._default_ttl)
        elif policy.ttl > self.cache.max_ttl:
            raise ConfigurationError(
                f"ttl={policy.ttl!r} is above the cache's max_ttl of {self.cache.max_ttl:.15g} seconds"
            )
        self.policy = policy
        self.check_guards()
        if tags:
            self.tag(tags)
        self.bypass = why_bypass(self.facts, vary=policy.vary_fields, cookies=policy.cookies) or self._unkeyed(policy)

    def tag(self, tags: Iterable[str]) -> None:
        """Tags of the response, as they stand in the backend."""
        self.scope.gather(set(tags), self.scope.backend)

    def _unkeyed(self, policy: Policy) -> str | None:
        """What the request carries that the endpoint's arguments are made of, and the key does not hold."""
        inputs = self.middleware.inputs_of(effective_route(self.routed))
        if inputs.headers is None or inputs.cookies is None:
            return "unreadable parameters"
        if (
            self.facts.cookie
            and b"cookie" not in policy.vary_fields
            and inputs.cookies.difference(policy.cookies or ())
        ):
            return "cookie"
        if inputs.headers:
            for name, _ in self.address.headers:
                text = name.decode("latin-1")
                if text in inputs.headers and text not in policy.vary:
                    return f"header {text}"
        return None

    def check_guards(self) -> None:
        """Raise where a public policy stands over a guarded route, as soon as the request is routed to it."""
        if self.policy is not None and self.policy.public:
            self.middleware.check_public(effective_route(self.routed), self.policy)

    def refuse(self, why: str, error: Exception) -> None:
        """Leave this request to the application, and its response out of the cache."""
        level = (
            logging.INFO if isinstance(error, TagTooLongError) else logging.WARNING
        )  # a client can bring about the one
        logger.log(level, "%s is not cached: %s", self.scope.name, error)
        self.bypass = why
        self.refused = True
        self.scope.no_store = True

    async def enter(self) -> Stored | None:
        """From the endpoint of a route, its policy declared: the stored response, where there is one to serve."""
        self._entered = True
        return None if self._over else await self.find_declared()

    def is_for(self, endpoint: object) -> bool:
        """Whether `endpoint` answers this request: not one that another calls as a function, nor after the end."""
        if self._entered or self._over:
            return False
        if "endpoint" not in self.routed:
            self.middleware.warn_of_copied_scope(self.scope.name)
        return is_part_of(self.routed.get("endpoint"), endpoint)

    @property
    def unguarded(self) -> str | None:
        """Why what was answered is not the endpoint's: a router's policy says nothing of a guard's own answer."""
        return "guard" if self._by_router and not self._entered else None

    async def find_declared(self) -> Stored | None:
        """A stored response by the policy that was declared."""
        policy = self.policy
        if policy is None or self.bypass is not None:
            return None
        known = self.dims.vary if self.dims is not None else ()
        return await self.find(_keyed(policy, known))

    def hit(self, stored: Stored) -> tuple[Message, Message]:
        """The messages of a hit. What the application sends from here on goes out as it is."""
        self.replying = True
        self.land(Fate.CANCELLED)
        self.scope.absorb(stored.entry, self.scope.backend, stale=stored.stale)
        return self.middleware.answer(stored.response, stored.entry, self.facts, stale=stored.stale)

    # --- running the application -----------------------------------------------------------------------

    async def run(self, send: Send) -> None:
        """Run the application within the response's scope, and store what it sends if it may be."""
        outgoing = Outgoing(self, send)
        scope_token = current_scope.set(self.scope)
        exchange_token = current_exchange.set(self)
        try:
            await self.middleware.app(self.asgi, self.receive, outgoing.send)
        except Exception as error:
            self.land(Fate.UNSHARED)
            if not await outgoing.answer_stale(error):
                raise
        finally:
            current_exchange.reset(exchange_token)
            current_scope.reset(scope_token)
        # Where the application accepts a HEAD, those that come next may be answered before routing.
        accepted = outgoing.succeeded or self.replying
        if self.facts.method == "HEAD" and accepted and self.dims is not None and not self.dims.head:
            await self._keep_record(replace(self.dims, head=True), head=True)

    def end(self) -> None:
        """Nothing more comes of this request: who still waits for it goes on, and what was gathered goes up."""
        self._over = True
        self.land(Fate.CANCELLED)
        self.scope.hand_up()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._gone = True
        return message

    # --- storing -----------------------------------------------------------------------------------------

    async def store(self, start: Message, body: bytes, lifetime: Storable) -> bool:
        """Store a whole response; whether it was. Its tags are those gathered until now."""
        assert self.filler is not None
        headers = start.get("headers") or ()
        length = field(headers, b"content-length")
        dims = dimensions(self.policy, headers, public=lifetime.public)
        if self._gone:
            self.land(Fate.CANCELLED)
            return False
        if dims is None or (length is not None and length != b"%d" % len(body)):
            self.land(Fate.UNSHARED)
            return False
        known = self.dims
        if known is not None:
            # Once one page of the URL is served before routing, the others are looked for there too.
            public = dims.public or known.public
            dims = replace(_widened(dims, known.vary), public=public, head=known.head)
        if dims != known:
            recorded = await self._keep_record(dims)
            if recorded is None:
                self.land(Fate.UNSHARED)
                return False
            dims = recorded
        key = self.address.response_key(dims)
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
            start["status"],
            headers,
            body,
            now=time.time(),
            age=age,
            public=lifetime.public,
            with_cookies=dims.cookies is not None or b"cookie" in dims.vary,
        )
        # Dependencies may have read what it was built from before its flight began: who waits gets it only if the
        # store accepts it.
        written = await self.filler.store(
            job, response, self._reading, self._flight, self.scope, self._started, unaccepted=Fate.REFUSED
        )
        return written.accepted

    async def _keep_record(self, dims: Dimensions, *, head: bool = False) -> Dimensions | None:
        """Keep what tells the URL's responses apart where any process finds it before routing.

        What is recorded meanwhile is kept too: gives all of it. `None` where what was stored so far
        had to go, since it is for some of the URL's requests only, once more tells them apart; then
        nothing that began before this moment is stored.
        """
        assert self.filler is not None
        key, backend = self.address.record_key(), self.filler.backend
        reading = await self.filler.read(key)
        there = record_of(reading)
        if there is not None:
            dims = replace(_widened(dims, there.vary), public=dims.public or there.public, head=head or there.head)
        narrowed = (there or self.dims or dims).plain and not dims.plain
        if dims != there:
            try:
                if narrowed:
                    await backend.invalidate([key])
                    reading = await self.filler.read(key)
            except BackendError as error:
                self.filler.outage.warn(
                    backend.clock(),
                    "%s: what was stored of its URL could not be invalidated: %s",
                    self.scope.name,
                    error,
                )
                return None
            tags = (key, *self.cache._implicit)
            expiry = Expiry(self.cache.max_ttl)
            job = Job(key, key, tags, DIMENSIONS, expiry, self.cache.namespace, _computed_elsewhere)
            scope = Scope(key, backend, self.cache.namespace)
            scope.tags.update(tags)
            await self.filler.store(job, dims, reading, None, scope, self._started)
        self.dims = dims
        return None if narrowed else dims

    async def stale_instead(self, error: Exception | None) -> tuple[Message, Message] | None:
        """A stored response to answer with instead of an error, within its `stale_if_error`.

        What a guard stands before is not let out because the guard failed.
        """
        if self._key is None or self.filler is None or self.scope.renewing:
            return None
        reading = await self.filler.read(self._key)
        if reading is None or reading.entry is None:
            return None
        response = load(reading.entry, RESPONSES)
        if response is MISSING or not (response.public or self._entered):
            return None
        logger.warning("%s failed: serving what was stored before", self.scope.name, exc_info=error)
        self.land(Fate.UNSHARED)
        self.scope.absorb(reading.entry, self.scope.backend, stale=reading.stale)
        return self.middleware.answer(response, reading.entry, self.facts, stale=reading.stale)


def _keyed(policy: Policy, known: tuple[bytes, ...]) -> Dimensions:
    """The dimensions by which a request is looked up under `policy`, where responses are `known` to vary."""
    return _looked_up_by(policy.vary_fields, policy.cookies, policy.query, known)


@lru_cache(maxsize=1024)
def _looked_up_by(
    vary: tuple[bytes, ...], cookies: tuple[str, ...] | None, query: tuple[str, ...] | None, known: tuple[bytes, ...]
) -> Dimensions:
    return _widened(Dimensions(vary, cookies, query), known)


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
