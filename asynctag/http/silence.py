"""What stands where an exchange would, for as long as nobody wants a request's response cached: mostly to its end."""

import time
from collections.abc import Awaitable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from asynctag.backends.base import Entry, Miss, Reading
from asynctag.cache import Cache
from asynctag.errors import BackendError
from asynctag.fill import MISSING, Filler, in_order, load
from asynctag.flight import Fate, Flight, Turn
from asynctag.http.asgi import AsgiScope, Message, Receive, Send
from asynctag.http.client import Client, as_it_came, receive_from_nobody
from asynctag.http.exchange import Address, Exchange, filler_in_use, record_of, scope_of_response
from asynctag.http.guards import effective_route
from asynctag.http.headers import make_etag, name_of
from asynctag.http.outgoing import Outgoing
from asynctag.http.precedents import Beginning, beginning_of
from asynctag.http.request import SCOPE_KEY, RequestCache, ResponseExplanation
from asynctag.http.rules import DECISIVE, PLAIN_GET, Policy, may_be_stored, read_request
from asynctag.http.serving import Aside, Filling, Serving, current_exchange
from asynctag.http.stored import RESPONSES, StoredResponse
from asynctag.http.variants import PLAIN
from asynctag.scope import current_scope

if TYPE_CHECKING:
    from asynctag.http.middleware import CacheMiddleware, Known


#: The context of what runs no more.
NOWHERE = Context()

#: The start and the body of a hit.
Reply: TypeAlias = tuple[Message, Message]


def silence_here() -> "Silence | None":
    """What stands where the exchange of the request that runs here would."""
    found = current_exchange.get()
    return found if isinstance(found, Silence) else None


def exchange_here() -> "Exchange | Literal[False] | None":
    """The exchange of the request that runs here, for who wants its response cached; false where that cannot be."""
    found = current_exchange.get()
    if isinstance(found, Aside):
        return False
    return found.end() if isinstance(found, Silence | Passing) else found


class _InPlace:
    """What stands where an exchange would, as the request finds it."""

    __slots__ = ()  # one of the two below is a client too, which has slots of its own

    _asgi: AsgiScope
    _is_over: bool
    _middleware: "CacheMiddleware"
    _outgoing: Outgoing | None
    _receive: Receive
    _request_cache: RequestCache | None
    _send: Send

    if TYPE_CHECKING:

        def end(self) -> "Exchange | Literal[False]": ...

    @property
    def cache(self) -> Cache:
        return self._middleware.cache

    @property
    def request_cache(self) -> RequestCache:
        """The cache as this request sees it."""
        if self._request_cache is None:
            seen = RequestCache(self.cache, cast("Passing | Silence", self))
            self._request_cache = seen  # type: ignore[misc]  # the slots are those of the two below
        return self._request_cache

    @property
    def routed(self) -> AsgiScope:
        return self._asgi if self._outgoing is None else self._outgoing.exchange.routed

    async def explain(self) -> ResponseExplanation:
        exchange = self.end()
        return await exchange.explain() if exchange else ResponseExplanation(None)

    def over(self) -> None:
        """Nothing more comes of this request."""
        self._is_over = True  # type: ignore[misc]  # as above
        self._asgi[SCOPE_KEY] = self._middleware.afterwards  # itself would be a cycle
        if self._request_cache is not None:
            self._request_cache._over()
        # A server's timer for an idle connection may hold the context in which the response went out, and this with it
        # (uvicorn's does). What hangs on it is there for as long, and work for the garbage collector.
        self._send, self._receive = send_to_nobody, receive_from_nobody
        if self._outgoing is not None:
            exchange = self._outgoing.exchange
            exchange.over()
            # Each would keep the other alive, and nobody can want the response cached any more.
            self._asgi, self._outgoing = exchange.routed, None  # type: ignore[misc]  # as above


class Passing(_InPlace):
    """Stands where an exchange would, for a path that answered 200 the last time, and nobody wanted that cached.

    Nothing is gathered of this response. If somebody does want it cached, an exchange sees to what goes out, as where
    the backend does not answer: it is not stored, the next one for the path can be.
    """

    __slots__ = ("_asgi", "_is_over", "_middleware", "_outgoing", "_path", "_receive", "_request_cache", "_send")

    scope = None

    def __init__(self, middleware: "CacheMiddleware", asgi: AsgiScope, receive: Receive, send: Send) -> None:
        self._middleware = middleware
        self._asgi = asgi
        self._path = asgi["path"]
        self._receive = receive
        self._send = send
        self._outgoing: Outgoing | None = None
        self._request_cache: RequestCache | None = None
        self._is_over = False

    def end(self) -> "Exchange | Literal[False]":
        """Somebody wants the response cached: not this one, but the next."""
        if self._outgoing is not None:
            return self._outgoing.exchange
        if self._is_over:
            return False
        middleware, asgi = self._middleware, self._asgi
        cache = middleware.cache
        filler = filler_in_use(cache)
        if filler is not None:
            middleware.note_wanted(self._path, filler)
        facts, address = read_request(asgi["method"], asgi["headers"]), Address(asgi, cache.namespace)
        client, scope = Client(self._receive), scope_of_response(filler, cache, asgi)
        exchange = Exchange(middleware, filler, asgi, as_it_came(asgi), client, facts, address, None, scope, 0.0)
        self._outgoing = Outgoing(exchange, self._send)
        return exchange

    def send(self, message: Message) -> Awaitable[None]:
        if self._outgoing is not None:
            return self._outgoing.send(message)
        if message["type"] == "http.response.start":
            if type(message.get("headers")) is not list:
                message = with_list(message)
            if may_be_stored(message["headers"], self._middleware.telling) and self.end():
                return self.send(message)  # by the exchange
        return self._send(message)


def with_list(start: Message) -> Message:
    """The start of a response with its headers as a list: as an iterable, they could be looked at once only."""
    return {**start, "headers": list(start.get("headers") or ())}


def lead_at_once(filler: Filler, key: str) -> tuple[Miss, Flight] | None:
    """Why nothing is to be served from under `key`, and the flight that brings it; None where that is not told, or led,
    at once."""
    backend, flights = filler.backend, filler.flights
    landings = flights.landings(key)  # from before it is looked up
    miss = backend.why_absent(key)
    if miss is None:
        return None
    turn, flight = flights.board(key, backend.clock(), landings)
    return (miss, flight) if turn is Turn.LEAD and flight is not None else None


class Silence(_InPlace, Client):
    """Stands where an exchange would, for a URL that has nothing stored, until somebody wants its response cached.

    Mostly nobody does, neither a route nor the response. `reading` is from before the application saw the request;
    without one, as for a URL that was asked for before in silence, its exchange stores nothing.

    Where all that an exchange would find out is known already, by a precedent, the response is stored without one.
    """

    __slots__ = (
        "_address",
        "_asgi",
        "_filler",
        "_filling",
        "_flight",
        "_held",
        "_is_over",
        "_known",
        "_length",
        "_middleware",
        "_miss",
        "_origin",
        "_outgoing",
        "_policy",
        "_precedent",
        "_reading",
        "_replying",
        "_request_cache",
        "_send",
        "_start",
        "_started",
        "answered",
        "ended",
        "scope",
    )

    def __init__(
        self,
        middleware: "CacheMiddleware",
        filler: Filler | None,
        asgi: AsgiScope,
        receive: Receive,
        send: Send,
        reading: Reading | None,
        known: "Known | None" = None,
        address: Address | None = None,
    ) -> None:
        self._receive = receive  # as a client does, without the call
        self.context = copy_context()
        self.gone = self.has_body = False
        self._middleware = middleware
        self._filler = filler
        self._asgi = asgi
        self._send = send
        self._reading = reading if filler is not None else None  # while the cache is disabled, nothing counts
        self._outgoing: Outgoing | None = None
        self._filling: Filling | None = None
        self._request_cache: RequestCache | None = None
        #: The start of a response that has a precedent, until its body is there.
        self._held: Message | None = None
        self._start: Message | None = None  # once it is out
        self._address = address  # where its response stands, as far as it was asked for
        #: What the endpoint has declared, and the flight that brings it.
        self._policy: Policy | None = None
        self._flight: Flight | None = None
        self._miss: Miss | None = None  # why what was stored there cannot be served, as far as it was looked for
        #: Whether somebody wants the response cached.
        self.ended = False
        #: Whether a 200 went out, as a response that was to be expected: told when all is over.
        self.answered = False
        self._is_over = False
        self._replying = False  # a hit is on its way
        self._known = known
        self.scope = scope_of_response(filler, middleware.cache, asgi)
        self._origin = as_it_came(asgi)
        self._started = filler.backend.clock() if filler is not None else 0.0

    @property
    def client(self) -> Client:
        return self

    @property
    def address(self) -> Address:
        if self._address is None:
            self._address = Address(self._origin, self.cache.namespace)
        return self._address

    def end(self) -> "Exchange | Literal[False]":
        """Somebody wants the response cached: gives the exchange that sees to it from here on, unless all is over."""
        self.ended = True
        if self._is_over:
            return False
        if self._known is not None:
            self._known.silent = False  # from now on, for those who come while this runs
        if self._outgoing is None:
            middleware, origin = self._middleware, self._origin
            facts = read_request(origin["method"], origin["headers"])
            exchange = Exchange(
                middleware,
                self._filler,
                self._asgi,
                origin,
                self,
                facts,
                self.address,
                self._reading,
                self.scope,
                self._started,
            )
            exchange.miss, exchange.replying = self._miss, self._replying
            if self._policy is not None:
                exchange.take_over(self._policy, self._flight)
            elif self._flight is not None:
                exchange.lead(self._flight, self._flight.key)
            self._flight = None
            self._outgoing = Outgoing(exchange, self._filling_now().send)
        return self._outgoing.exchange

    def bring(self, miss: Miss, flight: Flight) -> None:
        """Others wait for the response to this request, which `miss` tells is not there."""
        self._miss, self._flight = miss, flight
        flight.scope = self.scope
        self.scope.flights = (flight,)

    # --- what a route says -----------------------------------------------------------------------------

    def lead(self, endpoint: object, policy: Policy) -> bool | Reply:
        """Declare the policy of `endpoint`, which was reached: true where its response is for this request to bring.

        The messages of a hit where there is one to serve. False where neither is told at once: an exchange is to find
        out.
        """
        filler = self._filler
        if self.ended or self.scope.closed or self._asgi.get("endpoint") is not endpoint or not self._is_plain():
            return False
        if current_scope.get() is not self.scope:  # a computation within would depend on what is found
            return False
        assert filler is not None
        self.ended = True
        plain = self._middleware.as_plain(effective_route(self._asgi), policy)
        if plain is None:
            return False
        if self._flight is None:
            key = self.address.response_key(PLAIN)
            entry = self.cache._peek(key)
            if entry is not None:
                return self._hit(entry, plain)
            led = lead_at_once(filler, key)
            if led is None:
                return False
            self.bring(*led)
        self._policy = plain
        self.scope.may_await = False
        return True

    def _hit(self, entry: Entry, policy: Policy) -> Literal[False] | Reply:
        """The messages of a hit, as `Exchange.hit` gives them. False where windows are to be filled.

        What the application sends from here on goes out as it is.
        """
        response = load(entry, RESPONSES)
        if response is MISSING or response.windows is not None:
            return False
        self._policy, self._replying = policy, True
        self.scope.may_await = False
        return self._middleware.answer(response, entry, PLAIN_GET, stale=False)

    async def reply(self, messages: Reply, send: Send, receive: Receive) -> None:
        """As an exchange does, of a hit without windows."""
        self.scope.hand_up()
        start, body = messages
        await send(start)
        await send(body)

    def _is_plain(self) -> bool:
        """Whether nothing but the URL and the response decides what is stored, and nothing around sees to it."""
        filler = self._filler
        return (
            self._reading is not None
            and filler is not None
            and filler.can_add
            and filler._agreed
            and self.scope.parent is None
            and filler is self._middleware.cache._filler
            and not self._middleware.cache._disabled
            and self._origin["method"] == "GET"
            and DECISIVE.isdisjoint(map(name_of, self._origin["headers"]))
        )

    def refuse(self, why: str, error: Exception) -> None:
        """As an exchange does."""
        if exchange := self.end():
            exchange.refuse(why, error)

    # --- the response ----------------------------------------------------------------------------------

    def send(self, message: Message) -> Awaitable[None]:
        # Not a coroutine of its own, since that would cost as much as all else here.
        if self._outgoing is not None:
            return self._outgoing.send(message) if self._held is None else self._go_on(message)
        if self._held is not None:
            return self._conclude(message)
        kind = message["type"]
        if self._replying:
            if self.scope.places is not None:  # something on the way may have put a window into the hit
                return self._filling_now().send(message)
            if kind == "http.response.start":
                self._start = message
            return self._send(message)
        if kind == "http.response.start":
            if type(message.get("headers")) is not list:
                message = with_list(message)
            reading = self._reading
            if (
                self._flight is not None
                or (reading is not None and reading.entry is not None)  # of such a URL, `Cache-Status` is told
                or may_be_stored(message["headers"], self._middleware.telling)
            ):
                judged = self._judge(message)
                if judged is not None:
                    return judged
            if self.scope.places is None:
                self._start = message
        elif self.scope.parent is not None and kind == "http.response.body" and not message.get("more_body", False):
            self.scope.hand_up()  # what is around may store this response with its last byte
        if self._filling is None and self.scope.places is None:
            return self._send(message)
        return self._filling_now().send(message)

    def _judge(self, start: Message) -> Awaitable[None] | None:
        """Hold the start of a response that may be stored, if it has a precedent; else leave it to an exchange."""
        if self._start is not None:  # a response is out: for the server to refuse
            return None
        precedents = self._middleware.precedents
        beginning, length = beginning_of(self._policy, start)
        precedent = precedents.find(beginning, self._policy)
        if precedent is not None and (self._flight is not None or self._is_plain()):
            self.ended = True
            self._precedent, self._length = precedent, length
            self._held = {**start, "headers": [*start["headers"]]}
            return done()
        return self._set_precedent(start, beginning) if self.end() else None

    async def _set_precedent(self, start: Message, beginning: Beginning | None) -> None:
        """Have the exchange judge the start of the response, for those that begin so too."""
        outgoing = self._outgoing
        assert outgoing is not None
        await outgoing.send(start)
        if beginning is not None:
            self._middleware.precedents.note(beginning, outgoing)

    def _conclude(self, message: Message) -> Awaitable[None]:
        """Store what is held with its body, if that is all of it; else leave it to an exchange."""
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            start = self._store(message.get("body", b""))
            if start is not None:
                self._start, self._held = start, None
                return self._send_both(start, message)
        self.end()
        return self._go_on(message)

    async def _send_both(self, start: Message, body: Message) -> None:
        await self._send(start)
        await self._send(body)

    async def _go_on(self, message: Message) -> None:
        """Give what was held to the exchange, and what follows it."""
        start, self._held = self._held, None
        assert self._outgoing is not None
        assert start is not None
        await self._outgoing.send(start)
        await self._outgoing.send(message)

    def _store(self, body: bytes) -> Message | None:
        """Store the response by its precedent, as `Exchange.store` does: gives its start, as it goes out.

        None, and nothing is stored, where there is something that the precedent does not tell.
        """
        scope, filler, middleware = self.scope, self._filler, self._middleware
        start, reading = self._held, self._reading
        assert filler is not None
        assert reading is not None
        assert start is not None
        cache, backend, precedent = middleware.cache, filler.backend, self._precedent
        scope.closed = True  # what is cached or tagged from here on is not part of the response
        recorded = record_of(reading)
        size = len(body)
        length = b"%d" % size
        if (
            type(body) is not bytes
            or size > middleware.max_body
            or (self._length is not None and self._length != length)
            or scope.places is not None
            or scope.no_store
            or scope.stale_stamp is not None
            or self.gone
            or self.has_body
            or filler is not cache._filler
            or cache._disabled
            or filler.pending.names
            or (recorded is not None and not precedent.is_recorded_as(recorded))
        ):
            return None
        origin = self._origin
        now, stamp, implicit = backend.clock(), reading.stamp, cache._implicit
        delay = now - self._started if precedent.ages_from_request else 0.0
        times = precedent.expiry.times(now - delay, 0.0, scope.fresh_until, scope.expires)
        validator = make_etag(body)
        etag = b"etag", validator
        response = StoredResponse(
            200,
            (*precedent.kept, etag, (b"content-length", length)),
            body,
            time.time() - precedent.age - delay,
            precedent.public,
            precedent.with_cookies,
            validator,
            None,
            precedent.stale_if_error,
            precedent.must_revalidate,
            precedent.adds_cache_control,
        )
        address = self.address
        record_key, key = address.record_key(), address.response_key(PLAIN)
        tags = in_order({key, record_key, *implicit, *scope.tags})
        entries = [Entry(key, response, None, RESPONSES, precedent.size + size, tags, stamp, *times)]
        if recorded is None:
            # The URL's record first, as ever: it is what tells other requests of the response.
            tags, end = in_order((record_key, *implicit)), now + filler.max_ttl
            entries.insert(0, precedent.record(record_key, tags, stamp, end))
        middleware.note_wanted(origin["path"], filler)
        flight = self._flight
        if flight is not None:
            filler.flights.close(flight)
        try:
            added = backend.add(entries)
        except BackendError:  # the exchange asks again, and says so
            added = False
        if not added:
            return None
        if flight is not None:
            filler.flights.land(flight, Fate.ACCEPTED, entry=entries[-1])
            self._flight, scope.flights = None, ()
        start["headers"] += (*precedent.added, etag, precedent.cache_status(self._miss, address))
        return start

    def _filling_now(self) -> Filling:
        if self._filling is None:
            self._filling = Filling(self._serving, self.scope, self._send, self._start)
        return self._filling

    def _serving(self, send: Send) -> Serving:
        if self._outgoing is not None:
            return self._outgoing.exchange.serving(send)
        return Serving(self._middleware, self._asgi, send, self.context)

    async def answer_stale(self, error: Exception) -> bool:
        """Answer with a stored response instead of the error, where an exchange would."""
        if self._held is not None:  # as for any response whose start is there
            self._land(Fate.UNSHARED)
            return False
        if self._flight is not None:
            self.end()
        return self._outgoing is not None and await self._outgoing.exchange.failed(self._outgoing, error)

    def over(self) -> None:
        super().over()
        if self._start is not None:
            self.answered = self._start.get("status") == 200
        if self._flight is not None:
            self._land(Fate.CANCELLED)
        if self.scope.parent is None:
            self.scope.closed = True
        else:
            self.scope.hand_up()
        self._origin, self.context = self._asgi, NOWHERE
        self._reading = self._held = self._start = self._address = self._filling = None

    def _land(self, fate: Fate) -> None:
        """Let those who wait go on, without this response."""
        if self._flight is not None and self._filler is not None:
            self._filler.flights.land(self._flight, fate, now=self._filler.backend.clock())
            self._flight, self.scope.flights = None, ()


async def done() -> None:
    """Nothing is left to do."""


async def send_to_nobody(message: Message) -> None:
    """Refuse what comes when all is over, as servers do."""
    raise OSError(f"{message['type']} was sent after the application had returned: it reaches nobody")
