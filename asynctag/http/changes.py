"""Requests that may change something: what has changed is invalidated before their answer goes out."""

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING

from asynctag.http.asgi import AsgiScope, Message, Send
from asynctag.http.client import as_it_came
from asynctag.http.exchange import Address
from asynctag.http.rules import Headers
from asynctag.http.surrogates import OVERFLOW, parse_groups, write_groups
from asynctag.http.unsafe import changed_urls
from asynctag.names import tag_name

if TYPE_CHECKING:
    from asynctag.http.middleware import CacheMiddleware

logger = logging.getLogger("asynctag")

_GROUPS = b"cache-group-invalidation"

#: What was invalidated while the request that runs here was answered, as it was written.
invalidated_here: ContextVar[set[str] | None] = ContextVar("asynctag_invalidated_here", default=None)


class Change:
    """A request with an unsafe method, until its answer is out. Stands before the application as `send`.

    An answer that is no error says that the URL has changed, and those of `Location` and `Content-Location` (RFC 9111
    §4.4), and the groups that it names (RFC 9875 §3).
    """

    def __init__(self, middleware: "CacheMiddleware", asgi: AsgiScope, send: Send) -> None:
        self._middleware = middleware
        self._asgi = as_it_came(asgi)
        self._send = send
        self._begun = False
        self.invalidated: set[str] = set()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self._begun:
            self._begun = True
            headers: list[tuple[bytes, bytes]] = list(message.get("headers") or ())
            if 200 <= message["status"] < 400:
                groups = parse_groups([value for name, value in headers if name.lower() == _GROUPS])
                await self._invalidate(message["status"], headers, groups)
                message = {**message, "headers": self._announced(headers, groups)}
        await self._send(message)

    async def _invalidate(self, status: int, headers: Headers, groups: tuple[str, ...]) -> None:
        cache, asgi = self._middleware.cache, self._asgi
        target = Address(asgi, cache.namespace)
        others = changed_urls(
            status,
            headers,
            scheme=asgi.get("scheme", "http"),
            host=target.host,
            raw_path=asgi.get("raw_path"),
            path=asgi["path"],
            root_path=asgi.get("root_path", ""),
        )
        addresses = [Address({**asgi, "raw_path": raw, "path": path}, cache.namespace) for raw, path in others]
        names = [one.record_key() for one in (target, *addresses)]
        names += [tag_name(cache.namespace, one) for one in groups]
        try:
            await cache._invalidate(names, queue=True)
        except Exception as error:
            # What was changed is changed: that a backend or a CDN does not answer is no reason to tell the client of
            # a failure.
            logger.error(
                "%s %s has changed something, and what is cached of it may be old: %s",
                asgi["method"],
                asgi["path"],
                error,
                exc_info=error,
            )

    def _announced(self, headers: list[tuple[bytes, bytes]], groups: tuple[str, ...]) -> list[tuple[bytes, bytes]]:
        """The headers, with what was invalidated as groups, for the caches on the way."""
        if not self._middleware.groups or not self.invalidated.difference(groups):
            return headers
        named = write_groups({*groups, *self.invalidated})
        if named is None or named is OVERFLOW:
            return headers
        return [*((name, value) for name, value in headers if name.lower() != _GROUPS), (_GROUPS, named)]
