"""FastAPI: the cache as a dependency, and a policy for all routes of a router."""

import inspect
from collections.abc import Callable, Collection, Iterable
from functools import wraps
from typing import Annotated, Any

import anyio.from_thread

try:
    from fastapi import Depends
except ModuleNotFoundError as error:  # pragma: no cover - depends on what is installed
    raise ModuleNotFoundError("asynctag.integrations.fastapi needs FastAPI: pip install asynctag[fastapi]") from error
from starlette.requests import HTTPConnection

from asynctag.errors import ConfigurationError, InvalidTagError
from asynctag.expiry import Seconds
from asynctag.http.exchange import exchange_here
from asynctag.http.guards import effective_route
from asynctag.http.request import RequestCache, cache_of
from asynctag.http.routes import cache_response, is_async_callable, make_policy, policy_of, stored_reply
from asynctag.http.rules import Policy
from asynctag.names import tag_name
from asynctag.tags import check_tags

__all__ = ["CacheDep", "cache_policy", "cache_response", "get_cache"]


def get_cache(connection: HTTPConnection) -> RequestCache:
    """The dependency behind `CacheDep`, to be named in `app.dependency_overrides`."""
    return cache_of(connection)


#: A parameter of this type is the cache as the request sees it.
CacheDep = Annotated[RequestCache, Depends(get_cache)]


#: Marks an endpoint in whose place hits are served already.
_SERVING = "__asynctag_serving__"


def cache_policy(
    ttl: Seconds | None = None,
    *,
    tags: Iterable[str] | Callable[..., Any] = (),
    public: bool = False,
    vary: Collection[str] = (),
    cookies: Collection[str] | None = None,
    query: Collection[str] | None = None,
    ignore_query: Collection[str] = (),
    statuses: Collection[int] = (200,),
    stale_while_revalidate: Seconds | None = None,
    stale_if_error: Seconds | None = None,
    jitter: float = 0.0,
) -> Callable[..., Any]:
    """`cache_response` for every route of a router: `APIRouter(dependencies=[Depends(cache_policy(ttl=60))])`.

    `tags`: literal tags, or a dependency of its own that returns them; templates are refused, as a
    router has no arguments. A route's own `cache_response` overrides it. Unsafe methods and
    websockets ignore it. The other parameters are those of `cache_response`, without its `key`.

    Raises `ConfigurationError`, at once, for values that cannot be meant.
    """
    policy = make_policy(
        ttl,
        public=public,
        vary=vary,
        cookies=cookies,
        query=query,
        ignore_query=ignore_query,
        statuses=statuses,
        stale_while_revalidate=stale_while_revalidate,
        stale_if_error=stale_if_error,
        jitter=jitter,
    )
    if callable(tags):
        injected = tags

        async def declare_injected(connection: HTTPConnection, found: Any = Depends(injected)) -> None:  # noqa: B008
            try:
                checked = check_tags(found)
            except InvalidTagError as error:  # it was made of what the client sent
                if exchange := exchange_here():
                    exchange.refuse("tag", error)
                return
            _declare(connection, policy, checked)

        return declare_injected
    literal = check_tags(tags)
    for one in literal:
        if "{" in one:
            raise ConfigurationError(
                f"cache_policy(tags=[{one!r}]): a router has no arguments to fill in. Use cache_response on the route, "
                f"or a dependency that returns tags"
            )

    async def declare(connection: HTTPConnection) -> None:
        _declare(connection, policy, literal)

    return declare


def _declare(connection: HTTPConnection, policy: Policy, tags: tuple[str, ...]) -> None:
    cache_of(connection)  # raises without the middleware
    exchange = exchange_here()
    if not exchange:
        return
    exchange.routed = connection.scope
    names = {tag_name(exchange.cache.namespace, one) for one in tags}
    dependant = getattr(effective_route(connection.scope), "dependant", None)
    endpoint = getattr(dependant, "call", None)
    if policy_of(endpoint) is not None:  # the route's own policy counts
        exchange.scope.gather(names, exchange.scope.backend)
        return
    if dependant is not None and callable(endpoint) and not hasattr(endpoint, _SERVING):
        dependant.call = _serving(endpoint)
    exchange.declare(policy, names, by_router=True)


def _serving(endpoint: Callable[..., Any]) -> Any:
    """The endpoint, with hits by the router's policy in its place, once all the route's dependencies have run.

    FastAPI reads the callable of a route's dependant for each request, and whether it is async only
    once, of what it wraps too: the replacement is of the same kind.
    """
    whole = inspect.unwrap(endpoint)
    if inspect.isasyncgenfunction(whole) or inspect.isgeneratorfunction(whole):
        return endpoint  # what it yields is not stored: nothing tells here that it was reached

    @wraps(endpoint)
    async def async_endpoint(**values: Any) -> Any:
        exchange = exchange_here()
        reply = await stored_reply(exchange) if exchange else None
        if reply is not None:
            return reply
        result = endpoint(**values)
        return await result if inspect.isawaitable(result) else result

    @wraps(endpoint)
    def sync_endpoint(**values: Any) -> Any:
        exchange = exchange_here()
        reply = anyio.from_thread.run(stored_reply, exchange) if exchange else None
        return endpoint(**values) if reply is None else reply

    serving: Any = async_endpoint if is_async_callable(endpoint) else sync_endpoint
    setattr(serving, _SERVING, True)
    return serving
