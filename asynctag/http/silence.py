"""What stands where an exchange would, for as long as nobody wants a request's response cached: mostly to its end."""

from collections.abc import Awaitable
from contextvars import copy_context
from typing import TYPE_CHECKING, Literal

from asynctag.backends.base import Reading
from asynctag.cache import Cache
from asynctag.fill import Filler
from asynctag.http.asgi import AsgiScope, Message, Receive, Send
from asynctag.http.client import Client
from asynctag.http.exchange import Address, Exchange, filler_in_use, scope_of_response
from asynctag.http.outgoing import Outgoing
from asynctag.http.request import SCOPE_KEY, RequestCache, ResponseExplanation
from asynctag.http.rules import may_be_stored, read_request
from asynctag.http.serving import Aside, Filling, Serving, current_exchange

if TYPE_CHECKING:
    from asynctag.http.middleware import CacheMiddleware


def exchange_here() -> "Exchange | Literal[False] | None":
    """The exchange of the request that runs here, for who wants its response cached; false where that cannot be."""
    found = current_exchange.get()
    if isinstance(found, Aside):
        return False
    return found.end() if isinstance(found, Silence) else found


class Silence(Client):
    """Stands where an exchange would, for a URL that has nothing stored, until somebody wants its response cached.

    Mostly nobody does, neither a route nor the response. `reading` is from before the application saw the request;
    without one, as for a URL that was asked for before in silence, only its next request can have an exchange.
    """

    __slots__ = (
        "_asgi",
        "_filling",
        "_middleware",
        "_origin",
        "_outgoing",
        "_reading",
        "_request_cache",
        "_send",
        "_start",
        "_started",
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
    ) -> None:
        self._receive = receive  # as a client does, without the call
        self.context = copy_context()
        self.gone = self.has_body = False
        self._middleware = middleware
        self._asgi = asgi
        self._send = send
        self._reading = reading
        self._outgoing: Outgoing | None = None
        self._filling: Filling | None = None
        self._request_cache: RequestCache | None = None
        self._start: Message | None = None  # once it is out
        #: Whether somebody wants the response cached.
        self.ended = False
        self.scope = scope_of_response(filler, middleware.cache, asgi)
        if reading is not None and filler is not None:
            origin = self._origin = dict(asgi)
            if origin.get("state"):
                origin["state"] = dict(origin["state"])
            self._started = filler.backend.clock()

    @property
    def cache(self) -> Cache:
        return self._middleware.cache

    @property
    def request_cache(self) -> RequestCache:
        """The cache as this request sees it."""
        if self._request_cache is None:
            self._request_cache = RequestCache(self.cache, self)
        return self._request_cache

    @property
    def routed(self) -> AsgiScope:
        return self._asgi if self._outgoing is None else self._outgoing.exchange.routed

    def end(self) -> "Exchange | Literal[False]":
        """Somebody wants the response cached: gives the exchange that sees to it from here on, where one can."""
        self.ended = True
        if self._reading is None:
            return False
        if self._outgoing is None:
            middleware, origin = self._middleware, self._origin
            cache = middleware.cache
            facts = read_request(origin["method"], origin["headers"])
            address = Address(origin, cache.namespace)
            exchange = Exchange(
                middleware,
                filler_in_use(cache),
                self._asgi,
                origin,
                self,
                facts,
                address,
                self._reading,
                self.scope,
                self._started,
            )
            self._outgoing = Outgoing(exchange, self._filling_now().send)
        return self._outgoing.exchange

    def send(self, message: Message) -> Awaitable[None]:
        # Not a coroutine of its own, since that would cost as much as all else here.
        if self._outgoing is not None:
            return self._outgoing.send(message)
        if message["type"] == "http.response.start":
            telling = self._middleware.telling
            for name, _ in message.get("headers") or ():
                if name in telling or name.lower() in telling:
                    if may_be_stored(message["headers"], self._middleware.targets) and self.end():
                        return self.send(message)
                    break
            if self.scope.places is None:
                self._start = message
        if self._filling is None and self.scope.places is None:
            return self._send(message)
        return self._filling_now().send(message)

    def _filling_now(self) -> Filling:
        if self._filling is None:
            self._filling = Filling(self._serving, self.scope, self._send, self._start)
        return self._filling

    def _serving(self, send: Send) -> Serving:
        if self._outgoing is not None:
            return self._outgoing.exchange.serving(send)
        return Serving(self._middleware, self._asgi, send, self.context)

    async def answer_stale(self, error: Exception) -> bool:
        """As an exchange does, where one has taken its place."""
        return self._outgoing is not None and await self._outgoing.exchange.failed(self._outgoing, error)

    def over(self) -> None:
        """Nothing more comes of this request."""
        self._asgi[SCOPE_KEY] = self._middleware.afterwards  # itself would be a cycle
        if self._request_cache is not None:
            self._request_cache._over()
        if self._outgoing is not None:
            self._outgoing.exchange.over()
        elif self.scope.parent is None:
            self.scope.closed = True
        else:
            self.scope.hand_up()

    async def explain(self) -> ResponseExplanation:
        exchange = self.end()
        return await exchange.explain() if exchange else ResponseExplanation(None)
