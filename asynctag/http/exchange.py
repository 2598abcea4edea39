"""One request on its way through the response cache: what is looked up for it, and what its response is stored as."""

import logging
import time
from collections.abc import Collection, Iterable
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.requests import HTTPConnection

from asynctag.backends.base import Cause, Entry, Miss, Reading
from asynctag.cache import Cache
from asynctag.errors import BackendError, ConfigurationError, TagTooLongError
from asynctag.expiry import Expiry
from asynctag.fill import MISSING, Filler, Job, load
from asynctag.flight import Fate, Flight
from asynctag.http.asgi import AsgiScope, Message, Receive, Send
from asynctag.http.client import Client
from asynctag.http.guards import effective_route, is_part_of
from asynctag.http.headers import Forward, cache_status, parse_age
from asynctag.http.outgoing import Outgoing
from asynctag.http.request import ResponseExplanation
from asynctag.http.rules import (
    Headers,
    Policy,
    RequestFacts,
    Storable,
    ages_from_request,
    may_serve,
    storable,
    why_bypass,
)
from asynctag.http.serving import Filling, Serving, current_exchange
from asynctag.http.stored import RESPONSES, StoredResponse, field, make_stored
from asynctag.http.surrogates import parse_groups
from asynctag.http.validation import conditional, head_matches, updated_by, validators
from asynctag.http.variants import (
    DIMENSIONS,
    PLAIN,
    Dimensions,
    dimensions,
    keyed_by,
    shortened,
    url_base,
    url_path,
    variant_key,
    widened,
)
from asynctag.names import KEY, tag_name
from asynctag.placeholders import Segments
from asynctag.scope import Scope, current_scope, gathering_scope, live_scope

if TYPE_CHECKING:
    from asynctag.http.middleware import CacheMiddleware

logger = logging.getLogger("asynctag")


def filler_in_use(cache: Cache) -> Filler | None:
    """None while the cache is disabled."""
    return None if cache._disabled else cache._filling()


def scope_of_response(filler: Filler | None, cache: Cache, asgi: AsgiScope, *, renewing: bool = False) -> Scope:
    """The scope in which the response to a request gathers its tags. `filler`: the one that is in use."""
    # Where a cached computation calls the application, its own: mostly there is none.
    parent = live_scope() if current_scope.get() is not None else None
    if filler is None and parent is not None:
        filler = cache._filler  # to that its tags belong, disabled or not
    backend = filler.backend if filler is not None else None
    scope = Scope(f"the response to {asgi['method']} {asgi['path']}", backend, cache.namespace, parent, renewing)
    scope.is_response = scope.may_await = True
    return scope


def tag_response(scope: Scope, tags: set[str]) -> None:
    """Tag the response that `scope` gathers for, and a computation within it that calls the rest of the application."""
    scope.gather(tags, scope.backend)
    within = computation_within(scope)
    if within is not None:
        within.gather(tags, scope.backend)


def computation_within(scope: Scope) -> Scope | None:
    """The computation that runs here for the response that `scope` gathers for, if there is one."""
    here = gathering_scope()
    return here if here is not scope else None


def record_key(namespace: str, base: str) -> str:
    """The key of the first record of a URL without its query."""
    return f"{namespace}|{KEY}|http record {shortened(base)}"


class Address:
    """Where a request goes: what its keys are made of."""

    __slots__ = ("_base", "_query", "_record_key", "headers", "namespace", "own_key")

    def __init__(self, asgi: AsgiScope, namespace: str, base: str | None = None, record_key: str | None = None) -> None:
        self.namespace = namespace
        #: As they came: what stands within may change the others in place.
        self.headers: list[tuple[bytes, bytes]] = [*asgi["headers"]]
        self._query: bytes = asgi.get("query_string", b"")
        #: Whose the response is, where a function says it.
        self.own_key = ""
        if base is None:
            path = url_path(asgi.get("raw_path"), asgi["path"], asgi.get("root_path", ""))
            base = url_base(asgi.get("scheme", "http"), self.host, path)
        self._base = base
        self._record_key = record_key

    @property
    def host(self) -> bytes:
        """All that were sent: of several, another server or the application may take another."""
        hosts = [value for name, value in self.headers if name == b"host"]
        return hosts[0] if len(hosts) == 1 else b"\n".join(hosts)

    def record_key(self) -> str:
        """Under which the URL's first record is kept: what tells its responses apart. They carry it as a tag."""
        if self._record_key is None:
            self._record_key = record_key(self.namespace, self._base)
        return self._record_key

    def response_key(self, dims: Dimensions) -> str:
        return f"{self.namespace}|{KEY}|http {variant_key(self._base, self._query, self.headers, dims, self.own_key)}"


class Stored(NamedTuple):
    """A stored response that was found for a request."""

    response: StoredResponse
    entry: Entry
    stale: bool
    #: It was brought by another request, for which this one waited.
    collapsed: bool = False


#: A look-up stores nothing: what it is asked for with has no expiry of its own.
_LOOKED_UP = Expiry(1.0)


class Exchange:
    """A `GET` or `HEAD` that no hit answered at once, until its response is out.

    Routes find it by a context variable. Its response goes out through an `Outgoing`.
    """

    policy: Policy | None = None
    #: Why this request does not touch the cache, as far as it is known before a route says more.
    bypass: str | None
    #: Why the request went to the application, for `Cache-Status`.
    forward: Forward = "uri-miss"
    miss: Miss | None = None
    #: Whether a hit is on its way: what the application sends goes out as it is.
    replying = False
    #: Whether that hit has windows.
    fills = False
    #: What was found and may not be served before the application has said that it still is good.
    stale: StoredResponse | None = None
    #: What the application was asked about, instead of what the client asked.
    validating: StoredResponse | None = None
    refused = False
    #: Whether the hits of what goes out are served before routing.
    public = False
    _key: str | None = None
    _flight: Flight | None = None
    _entered = False  # the endpoint was reached: whatever guards the route has let the request in
    _by_router = False  # the policy is a router's: it speaks for the endpoint, not for what stands before
    _over = False

    def __init__(
        self,
        middleware: "CacheMiddleware",
        filler: Filler | None,
        asgi: AsgiScope,
        origin: AsgiScope,
        client: Client,
        facts: RequestFacts,
        address: Address,
        reading: Reading | None,
        scope: Scope,
        started: float,
    ) -> None:
        self.middleware = middleware
        self.cache = middleware.cache
        self.filler = filler
        self.asgi = asgi
        self._origin = origin  # the scope as it came
        #: Where the routing has written what it found: a middleware in between may have copied the scope.
        self.routed = asgi
        self.client = client
        self.facts = facts
        self.address = address
        #: What tells the URL's responses apart, as far as it is known.
        self.dims = record_of(reading)
        known = self.dims or PLAIN
        self.bypass = why_bypass(facts, vary=known.vary, cookies=known.cookies)
        self.scope = scope
        self._reading = reading  # from before the application saw the request: the response's stamp
        self._started = started

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
            if entry is not None and entry.codec is RESPONSES and self.scope.transaction is None:  # as most are
                stored = Stored(entry.load(), entry, stale=False)
                if self._wants(stored):
                    return stored
            self.land(Fate.CANCELLED)
            job = self._job(key, replace(_LOOKED_UP, while_leased=self.cache._defaults.while_leased))
            # What is found and not served is no part of the response that takes its place.
            looking = Scope(self.scope.name, self.scope.backend, self.cache.namespace, self.scope.parent)
            looking.renewing = self.scope.renewing
            # A HEAD brings nothing that could be stored, nor does a part: nobody is to wait for it.
            waits = self.facts.method == "GET" and self.facts.range is None
            search = filler.find if waits else filler.look
            try:
                found = await search(job, looking)
            except BaseException:  # gave up waiting: what the caller does instead depends on it too
                looking.hand_up()
                raise
            if found.value is not MISSING and found.entry is not None:
                stored = Stored(found.value, found.entry, found.stale, collapsed=found.reading is None)
                if self._wants(stored):
                    return stored
                self.forward = "request"
                return None
            self.lead(found.flight, key)
            if found.reading is not None:
                self.miss = found.reading.miss
                if found.reading.entry is not None:
                    self.forward = "stale"
                    self.consider(found.reading.entry)
                elif self.dims is not None and dims.vary and self.miss is not None and self.miss.cause is Cause.ABSENT:
                    self.forward = "vary-miss"
            if found.flight is not None:
                return None
            known = record_of(await filler.read(self.address.record_key()))
            if known is None or set(known.vary) <= set(dims.vary):
                return None
            # The response that was waited for turned out to vary by more than was known.
            dims = replace(dims, vary=tuple(sorted({*dims.vary, *known.vary})))
        return None

    def consider(self, entry: Entry) -> None:
        """Take note of a response that may be asked about (RFC 9111 §4.3)."""
        if self.facts.method != "GET":
            return
        response = load(entry, RESPONSES)
        if response is not MISSING and validators(response):
            self.stale = response

    def _wants(self, stored: Stored) -> bool:
        """Whether this response is for this request, by its cookies and by what it asks for."""
        if self.facts.cookie and not stored.response.with_cookies:
            return False
        if stored.response.windows is not None and not self.middleware.can_fill(stored.response):
            return False
        if self.facts.cache_control is None or self.filler is None:
            return True
        now, entry = self.filler.backend.clock(), stored.entry
        age = max(0.0, time.time() - stored.response.born)
        lifetime = age + entry.fresh_until - now
        period = entry.stale_until - entry.fresh_until
        return may_serve(self.facts, age, lifetime, stale=period, must_revalidate=stored.response.must_revalidate)

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
        self.scope.may_await = False
        policy = policy.with_ttl(self.cache._default_ttl, self.cache.max_ttl)
        self.policy, self.public = policy, policy.public
        self.check_guards()
        if tags:
            self.tag(tags)
        self.bypass = (
            why_bypass(self.facts, vary=policy.held_fields, cookies=policy.held_cookies)
            or self._unkeyed(policy)
            or self._name_owner(policy)
        )

    def take_over(self, policy: Policy, flight: Flight | None) -> None:
        """Go on from an endpoint that was reached, and brings the response of its URL. `flight`: in case it is open."""
        self.declare(policy)
        self._entered = True
        self.lead(flight, self.address.response_key(PLAIN))

    def tag(self, tags: Iterable[str]) -> None:
        """Tags of the response, as they stand in the backend."""
        tag_response(self.scope, set(tags))

    def group(self, headers: Headers) -> None:
        """Tag the response with the groups that it says it is in (RFC 9875 §2)."""
        lines = [value for name, value in headers if name == b"cache-groups"]
        if lines:
            self.tag(tag_name(self.cache.namespace, one) for one in parse_groups(lines))

    def _name_owner(self, policy: Policy) -> str | None:
        """Have the policy's function say whose the response is; why it bypasses the cache where that is not known."""
        if policy.key is None:
            return None
        owner = policy.key(HTTPConnection(self.routed))
        if owner is None:
            return "key"
        if not isinstance(owner, str):
            raise ConfigurationError(
                f"the key function {policy.key!r} returned {owner!r}: return a str that no other user has, such as "
                f"str(user.id), or None to leave the cache alone"
            )
        # As a hash: it may be of any length, in any characters, and is nobody else's business in Redis.
        self.address.own_key = blake2b(owner.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()
        return None

    def _unkeyed(self, policy: Policy) -> str | None:
        """What the request carries that the endpoint's arguments are made of, and the key does not hold."""
        inputs = self.middleware.inputs_of(effective_route(self.routed))
        if inputs.headers is None or inputs.cookies is None:
            return "unreadable parameters"
        if (
            self.facts.cookie
            and b"cookie" not in policy.held_fields
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
        return await self.find(self._looked_up_by(policy))

    def _looked_up_by(self, policy: Policy) -> Dimensions:
        return keyed_by(policy, self.dims.vary if self.dims is not None else ())

    def hit(self, stored: Stored) -> tuple[Message, Message]:
        """The messages of a hit. What the application sends from here on goes out as it is."""
        self.replying = True
        self.public, self.fills = stored.response.public, stored.response.windows is not None
        self.land(Fate.CANCELLED)
        self.scope.absorb(stored.entry, self.scope.backend, stale=stored.stale)
        within = computation_within(self.scope)
        if within is not None:
            within.absorb(stored.entry, self.scope.backend, stale=stored.stale)
        return self.middleware.answer(
            stored.response, stored.entry, self.facts, stale=stored.stale, collapsed=stored.collapsed
        )

    @property
    def may_hit_later(self) -> bool:
        """Whether the endpoint may still find a stored response, which may not be served before it is reached."""
        return self.bypass is None and self.dims is not None and not self.dims.public

    async def explain(self) -> ResponseExplanation:
        """What was decided for this request so far, and what is stored for it."""
        bypass = "disabled" if self.filler is None else self.bypass
        dims = self.dims if self.policy is None else self._looked_up_by(self.policy)
        if bypass is not None or dims is None:
            return ResponseExplanation(self.policy, bypass)
        entry = await self.cache._explain(
            self.scope.name, self.address.response_key(dims), self.cache._defaults.while_leased
        )
        return ResponseExplanation(self.policy, None, entry)

    def nothing_cached(self) -> tuple[Message, Message]:
        """The answer to who wants nothing but what is stored, where nothing is (RFC 9111 §5.2.1.7)."""
        self.replying = True
        self.land(Fate.CANCELLED)
        status = cache_status(detail="only-if-cached", name=self.middleware.name)
        headers = [(b"content-length", b"0"), (b"cache-control", b"no-store"), (b"cache-status", status)]
        return (
            {"type": "http.response.start", "status": 504, "headers": headers},
            {"type": "http.response.body", "body": b"", "more_body": False},
        )

    # --- running the application -----------------------------------------------------------------------

    async def run(self, send: Send) -> None:
        """Run the application within the response's scope, and store what it sends if it may be."""
        if not self.scope.renewing:  # behind which no user is: what it sends goes nowhere
            send = Filling(self.serving, self.scope, send).send
        outgoing = Outgoing(self, send)
        asked = self.asgi["headers"]
        if self.stale is not None:
            self.validating = self.stale
            self.asgi["headers"] = conditional(asked, self.stale)
        scope_token = current_scope.set(self.scope)
        exchange_token = current_exchange.set(self)
        try:
            await self.middleware.app(self.asgi, self.client.receive, outgoing.send)
            if outgoing.unconfirmed:  # its 304 is of something else: asked once more, without conditions
                self.validating = None
                self.asgi["headers"] = asked
                outgoing = Outgoing(self, send)
                await self.middleware.app(self.asgi, self.client.receive, outgoing.send)
        except Exception as error:
            if not await self.failed(outgoing, error):
                raise
        finally:
            self.asgi["headers"] = asked
            current_exchange.reset(exchange_token)
            current_scope.reset(scope_token)
        # Where the application accepts a HEAD, those that come next may be answered before routing.
        accepted = outgoing.succeeded or self.replying
        if self.facts.method == "HEAD" and accepted and self.dims is not None and not self.dims.head:
            recorded = await self._record(replace(self.dims, head=True))
            if recorded is not None and recorded[1] is not None and self.filler is not None:
                await self.filler.write(recorded[1])

    def serving(self, send: Send, receive: Receive | None = None) -> Serving:
        """What fills windows in the response to this request."""
        return Serving(self.middleware, self._seen(), send, self.client.context, receive)

    def _seen(self) -> AsgiScope:
        """The request as its windows see it, on a hit and on a miss: with what is found on the way to the endpoint
        only where hits are served there too."""
        return self._origin if self.public else {**self.routed, "headers": self._origin["headers"]}

    async def reply(self, messages: tuple[Message, Message], send: Send, receive: Receive | None = None) -> None:
        """Send the messages of a hit. `receive`: where nobody else does."""
        self.scope.hand_up()  # what is around may store this response with its last byte
        start, body = messages
        windows = body.get("windows")
        if windows is None:
            await send(start)
            await send(body)
        else:
            await self.serving(send, receive).send(start, windows.segments, windows.charset)

    async def failed(self, outgoing: Outgoing, error: Exception) -> bool:
        """The application has raised: whether that was answered with what was stored before."""
        self.land(Fate.UNSHARED)
        return await outgoing.answer_stale(error)

    def over(self) -> None:
        """Nothing more comes of this request: who still waits for it goes on, and what was gathered goes up."""
        self._over = True
        self.land(Fate.CANCELLED)
        self.scope.hand_up()
        self.client.leave()

    # --- storing -----------------------------------------------------------------------------------------

    async def store(
        self,
        start: Message,
        body: bytes,
        lifetime: Storable,
        *,
        validated: bool,
        adds_cache_control: bool,
        segments: Segments | None = None,
    ) -> bool:
        """Store a whole response; whether it was. Its tags are those gathered until now.

        `validated`: it has a validator of the application's own, which can be asked about it later.
        `adds_cache_control`: what it says of caching was added for clients. `segments`: the body, where it has windows.
        """
        assert self.filler is not None
        headers = start.get("headers") or ()
        length = field(headers, b"content-length")
        self.middleware.note_wanted(self._origin["path"], self.filler)
        dims = dimensions(self.policy, headers, public=lifetime.public)
        if self.client.gone:
            self.land(Fate.CANCELLED)
            return False
        if dims is None or self.client.has_body or (length is not None and length != b"%d" % len(body)):
            self.land(Fate.UNSHARED)
            return False
        known = self.dims
        if known is not None:
            # Once one page of the URL is served before routing, the others are looked for there too.
            public = dims.public or known.public
            dims = replace(widened(dims, known.vary), public=public, head=known.head)
        record = None
        if dims != known:
            recorded = await self._record(dims)
            if recorded is None:
                self.land(Fate.UNSHARED)
                return False
            dims, record = recorded
        key = self.address.response_key(dims)
        if key != self._key:
            self.land(Fate.UNSHARED)  # those who wait asked for something else
        delay = self.filler.backend.clock() - self._started if ages_from_request(self.policy) else 0.0
        if lifetime.lifetime <= delay:
            self.land(Fate.UNSHARED)
            return False
        expiry = Expiry(
            ttl=min(lifetime.lifetime - delay, self.cache.max_ttl),
            stale_while_revalidate=lifetime.stale_while_revalidate,
            stale_if_error=lifetime.stale_if_error,
            jitter=self.policy.jitter if self.policy is not None else 0.0,
            kept=min(self.middleware.validate_for, self.cache.max_ttl) if validated else 0.0,
        )
        job = self._job(key, expiry)
        self.scope.tags.update(job.tags)
        age = parse_age([value for name, value in headers if name == b"age"]) or 0
        response = make_stored(
            start["status"],
            headers,
            body,
            now=time.time(),
            age=age + delay,
            public=lifetime.public,
            with_cookies=dims.cookies is not None or b"cookie" in dims.vary or dims.keyed,
            stale_if_error=lifetime.stale_if_error,
            must_revalidate=lifetime.must_revalidate,
            adds_cache_control=adds_cache_control,
            segments=segments,
        )
        # Dependencies may have read what it was built from before its flight began: who waits gets it only if the
        # store accepts it.
        written = await self.filler.store(
            job,
            response,
            self._reading,
            self._flight,
            self.scope,
            self._started,
            unaccepted=Fate.REFUSED,
            before=record,
        )
        return written.accepted

    async def compare(self, headers: Headers) -> None:
        """Hold what is stored against the application's answer to a `HEAD` (RFC 9111 §4.3.5).

        What is of another representation goes; what is the same, and stale, is fresh again.
        """
        if self.filler is None or self.dims is None or self.bypass is not None:
            return
        key = self._key or self.address.response_key(self.dims)
        reading = await self.filler.read(key)
        if reading is None or reading.entry is None:
            return
        response = load(reading.entry, RESPONSES)
        if not isinstance(response, StoredResponse) or response.status != 200 or response.windows is not None:
            return
        if not head_matches(response, headers):
            await self.cache._invalidate([key], queue=True)
        elif reading.stale:
            updated, adds = updated_by(response, headers), response.adds_cache_control
            verdict = self.verdict(200, updated, replace(self.facts, method="GET"))
            if not isinstance(verdict, str):
                updated += [pair for pair in response.headers if adds and pair[0] == b"cache-control"]
                start = {"status": 200, "headers": updated}
                await self.store(start, response.body, verdict, validated=True, adds_cache_control=adds)

    def verdict(self, status: int, headers: Headers, facts: RequestFacts | None = None) -> Storable | str:
        """Whether a response with this start may be stored, or why not."""
        if self.filler is None or self.cache._disabled:
            return "disabled"
        if why := self.bypass or self.unguarded:
            return why
        if self.client.has_body:
            return "body"
        middleware = self.middleware
        return storable(
            facts or self.facts,
            status,
            headers,
            self.policy,
            store=middleware.store,
            targets=middleware.targets,
            now=time.time(),
        )

    async def _record(self, dims: Dimensions) -> tuple[Dimensions, Entry | None] | None:
        """What tells the URL's responses apart, and its record, to be stored where any process finds it before routing.

        What is recorded meanwhile is kept too: gives all of it. No entry where all of it is there. `None` where what
        was stored so far had to go, since it is for some of the URL's requests only, once more tells them apart; then
        nothing that began before this moment is stored.
        """
        assert self.filler is not None
        key, backend = self.address.record_key(), self.filler.backend
        reading = await self.filler.read(key)
        there = record_of(reading)
        if there is not None:
            public, head = dims.public or there.public, dims.head or there.head
            dims = replace(widened(dims, there.vary), public=public, head=head)
        narrowed = (there or self.dims or dims).plain and not dims.plain
        if narrowed:
            try:
                await backend.invalidate([key])
            except BackendError as error:
                what = "%s: what was stored of its URL could not be invalidated: %s"
                self.filler.outage.warn(backend.clock(), what, self.scope.name, error)
                return None
            reading = await self.filler.read(key)
        self.dims = dims
        if dims == there:
            return dims, None
        record = self.filler.lasting(key, dims, DIMENSIONS, (key, *self.cache._implicit), reading)
        if narrowed:
            await self.filler.write(record)
            return None
        return dims, record

    async def stale_instead(self, error: Exception | None) -> tuple[Message, Message] | None:
        """A stored response to answer with instead of an error, within its `stale_if_error`.

        What a guard stands before is not let out because the guard failed.
        """
        if self._key is None or self.filler is None or self.scope.renewing:
            return None
        reading = await self.filler.read(self._key)
        if reading is None or reading.entry is None:
            return None
        entry = reading.entry
        response = load(entry, RESPONSES)
        if response is MISSING or not (response.public or self._entered) or not self.middleware.can_fill(response):
            return None
        if self.filler.backend.clock() >= max(entry.stale_until, entry.fresh_until + response.stale_if_error):
            return None  # it is kept to be asked about
        logger.warning("%s failed: serving what was stored before", self.scope.name, exc_info=error)
        self.land(Fate.UNSHARED)
        self.public = response.public
        self.scope.absorb(reading.entry, self.scope.backend, stale=reading.stale)
        return self.middleware.answer(response, reading.entry, self.facts, stale=reading.stale)


def record_of(reading: Reading | None) -> Dimensions | None:
    """The dimensions that a URL's record holds, if it is one."""
    if reading is None or reading.entry is None:
        return None
    value = load(reading.entry, DIMENSIONS)
    return value if isinstance(value, Dimensions) else None


async def _computed_elsewhere() -> Any:
    raise AssertionError("a response is computed by the application")
