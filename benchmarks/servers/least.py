"""The least that a middleware has to do which gathers tags and stores responses by them, in Python: a measure for ours.

One object and one context variable a request; to store, one key, one hash of the body, the two headers that go out with
it, one entry in a dictionary that lets go of the oldest. Nothing is judged but `Cache-Control`, nobody waits for
another, and nothing is served: that is left out of it.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks.servers.miss import MAX_ENTRIES, app_of, declaring, silent

STATUS = b"least; fwd=uri-miss; stored"

gathering: ContextVar["Gathering | None"] = ContextVar("gathering", default=None)


class Gathering:
    """The tags of one response, and its start until its body is there."""

    __slots__ = ("asgi", "held", "middleware", "send_on", "stamp", "tags")

    def __init__(self, middleware: "Least", asgi: Scope, send: Send) -> None:
        self.middleware = middleware
        self.asgi = asgi
        self.send_on = send
        self.stamp = middleware.stamp
        self.tags: set[str] = set()
        self.held: Message | None = None

    def send(self, message: Message) -> Awaitable[None]:
        if self.held is not None:
            return self.store(self.held, message)
        if message["type"] == "http.response.start":
            for name, value in message["headers"]:
                if name == b"cache-control" and value.startswith(b"public"):
                    self.held = message
                    return nothing()
        return self.send_on(message)

    async def store(self, start: Message, message: Message) -> None:
        asgi, middleware, body = self.asgi, self.middleware, message["body"]
        host = next(value for name, value in asgi["headers"] if name == b"host")
        key = f"{asgi['scheme']}://{host.decode()}{asgi['path']}?{asgi['query_string'].decode()}"
        etag = b'"%b"' % blake2b(body, digest_size=16).hexdigest().encode()
        start["headers"] += ((b"etag", etag), (b"cache-status", STATUS))
        now = time.monotonic()
        with middleware.lock:
            if self.stamp is middleware.stamp:  # nothing was invalidated meanwhile
                middleware.entries[key] = start["headers"], body, now + 60, self.stamp, self.tags
                if len(middleware.entries) > MAX_ENTRIES:
                    middleware.entries.popitem(last=False)
        self.held = None
        await self.send_on(start)
        await self.send_on(message)


class Least:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.lock = threading.Lock()
        self.stamp = object()
        self.entries: OrderedDict[str, Any] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        one = Gathering(self, scope, send)
        token = gathering.set(one)
        try:
            await self.app(scope, receive, one.send)
        finally:
            gathering.reset(token)


async def nothing() -> None:
    """Nothing is left to do."""


least = app_of(silent, Middleware(Least))
least_stored = app_of(declaring, Middleware(Least))
