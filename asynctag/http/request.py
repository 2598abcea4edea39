"""The cache as one request sees it."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import HTTPConnection

from asynctag.cache import Cache, Hit, Miss
from asynctag.codec import NOT_GIVEN
from asynctag.errors import ConfigurationError
from asynctag.expiry import Seconds
from asynctag.explain import Explanation
from asynctag.http.rules import Policy
from asynctag.lag import DuringLag, Probe
from asynctag.names import tag_name
from asynctag.scope import Scope, live_scope
from asynctag.tags import check_tag
from asynctag.transaction import Isolation, Transaction

if TYPE_CHECKING:
    from asynctag.http.exchange import Exchange
    from asynctag.http.silence import Passing, Silence

T = TypeVar("T")

#: Where the request's `RequestCache` stands in the ASGI scope, or the `Silence` that makes one for who asks.
SCOPE_KEY = "asynctag"


@dataclass(frozen=True, slots=True)
class ResponseExplanation:
    """What the response cache has decided for a request. Printed, it is a sentence.

    `policy`: that of its route, router or path, the last that was declared. `bypass`: why the request is none of the
    cache's business, in the word that `Cache-Status` has for it. `entry`: what is stored for it.
    """

    policy: Policy | None
    bypass: str | None = None
    entry: Explanation | None = None

    def __str__(self) -> str:
        if self.bypass == "method":
            return "a response to this method is never cached"
        if self.bypass is not None:
            return f"the request bypasses the cache: {self.bypass}"
        entry = "nothing is stored for this URL." if self.entry is None else str(self.entry)
        by = f"Its policy: {self.policy}" if self.policy is not None else "No policy: what the response says counts."
        return f"{entry} {by}"


class RequestCache:
    """Tagged access to the cache, bound to a request: what is used and tagged counts for its response."""

    __slots__ = ("_bypass", "_exchange", "_scope", "cache")

    def __init__(
        self, cache: Cache, exchange: "Exchange | Silence | Passing | None", bypass: str | None = None
    ) -> None:
        self.cache = cache
        self._bypass = bypass
        self._exchange = exchange
        self._scope = exchange.scope if exchange is not None else None

    def _over(self) -> None:
        """The response is out. What refers to the request is no longer kept alive by it."""
        self._exchange = None

    def _gathering(self) -> Scope | None:
        return live_scope() or self._scope

    def add_tags(self, *tags: str) -> None:
        """Tag the response, or the cached computation that runs here, with the data it was built from."""
        names = {tag_name(self.cache.namespace, check_tag(one)) for one in tags}
        scope = self._gathering()
        if scope is not None:
            scope.gather(names, scope.backend)

    def no_store(self) -> None:
        """Keep the response, or the cached computation that runs here, out of the cache."""
        scope = self._gathering()
        if scope is not None:
            scope.forbid_store()

    async def invalidate(self, *tags: str, soft: bool = False, queue: bool = False) -> bool:
        """As `Cache.invalidate`."""
        return await self.cache.invalidate(*tags, soft=soft, queue=queue)

    def transaction(
        self,
        *,
        isolation: Isolation = "repeatable read",
        replica_lag: Seconds | None = None,
        during_lag: DuringLag | None = None,
        caught_up: Probe | None = None,
        lease: Seconds = 30,
    ) -> Transaction:
        """As `Cache.transaction`. What is cached of this request's response is none of it."""
        options = self.cache._transaction_options(isolation, replica_lag, during_lag, caught_up, lease)
        return Transaction(self.cache, options, self._gathering)

    async def explain_response(self) -> ResponseExplanation:
        """What is decided for the response to this request so far: by which policy, and why it is not cached."""
        if self._exchange is None:
            return ResponseExplanation(None, self._bypass)
        return await self._exchange.explain()

    async def lookup(self, key: str, *, returns: Any = NOT_GIVEN) -> Hit | Miss:
        """As `Cache.lookup`."""
        return await self.cache.lookup(key, returns=returns)

    async def get_or_set(
        self,
        key: str,
        compute: Callable[[], Awaitable[T]],
        *,
        ttl: Seconds | None = None,
        tags: Iterable[str] = (),
        returns: Any = NOT_GIVEN,
    ) -> T:
        """As `Cache.get_or_set`. What is stale is renewed here and now: `compute` may need this request's session."""
        job = self.cache._job(key, tags, returns, self.cache._expiry(ttl=ttl), compute)
        value: T = await self.cache._obtain(job._replace(in_background=False))
        return value


def cache_of(connection: HTTPConnection) -> RequestCache:
    """The cache of this request or websocket. Raises `ConfigurationError` without the middleware."""
    found = connection.scope.get(SCOPE_KEY)
    if found is not None and not isinstance(found, RequestCache):
        found = getattr(found, "request_cache", None)  # of a request for whose response nobody has asked the cache yet
    if found is None:
        raise ConfigurationError(
            "there is no CacheMiddleware around this application: app.add_middleware(CacheMiddleware, cache=cache)"
        )
    return found
