"""FastAPI: the cache as a dependency, and a policy for all routes of a router."""

import inspect
from collections.abc import Callable, Collection, Iterable
from functools import partial, wraps
from typing import Annotated, Any

import anyio.from_thread

try:
    from fastapi import Depends
except ModuleNotFoundError as error:  # pragma: no cover - depends on what is installed
    raise ModuleNotFoundError("asynctag.integrations.fastapi needs FastAPI: pip install asynctag[fastapi]") from error
from starlette.requests import HTTPConnection

from asynctag.errors import ConfigurationError, TagTooLongError
from asynctag.expiry import Seconds
from asynctag.http.exchange import current_exchange
from asynctag.http.guards import effective_route
from asynctag.http.request import RequestCache, cache_of
from asynctag.http.routes import cache_response, endpoint_with, make_policy, policy_of, reply_from
from asynctag.http.rules import Policy
from asynctag.names import tag_name
from asynctag.tags import check_tags

__all__ = ["CacheDep", "cache_policy", "cache_response", "get_cache"]


def get_cache(connection: HTTPConnection) -> RequestCache:
    """The dependency behind `CacheDep`, to be named in `app.dependency_overrides`."""
    return cache_of(connection)


#: A parameter of this type is the cache as the request sees it.
CacheDep = Annotated[RequestCache, Depends(get_cache)]


def _no_tags(parameters: object) -> tuple[str, ...]:
    return ()


def cache_policy(
    ttl: Seconds | None = None,
    *,
    tags: Iterable[str] | Callable[..., Any] = (),
    public: bool = False,
    vary: Collection[str] = (),
    cookies: Collection[str] | None = None,
    query: Collection[str] | None = None,
    statuses: Collection[int] = (200,),
    stale_while_revalidate: Seconds | None = None,
    stale_if_error: Seconds | None = None,
    jitter: float = 0.0,
) -> Callable[..., Any]:
    """`cache_response` for every route of a router: `APIRouter(dependencies=[Depends(cache_policy(ttl=60))])`.

    `tags`: literal tags, or a dependency of its own that returns them; templates are refused, as a
    router has no arguments. A route's own `cache_response` overrides it. Unsafe methods and
    websockets ignore it. The other parameters are those of `cache_response`.

    Raises `ConfigurationError`, at once, for values that cannot be meant.
    """
    policy = make_policy(
        ttl,
        public=public,
        vary=vary,
        cookies=cookies,
        query=query,
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
            except TagTooLongError as error:  # it was made of what the client sent
                if exchange := current_exchange.get():
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
    exchange = current_exchange.get()
    if not exchange:
        return
    exchange.scope.gather({tag_name(exchange.cache.namespace, one) for one in tags}, exchange.scope.backend)
    dependant = getattr(effective_route(connection.scope), "dependant", None)
    endpoint = getattr(dependant, "call", None)
    if policy_of(endpoint) is not None:
        if not hasattr(endpoint, "__asynctag_router__"):
            return  # the route's own policy counts
    elif dependant is not None and callable(endpoint):
        _serve_at(dependant, endpoint, policy)
    exchange.declare(policy)


def _serve_at(dependant: Any, endpoint: Callable[..., Any], policy: Policy) -> None:
    """Let hits take the endpoint's place, once all the route's dependencies have run.

    FastAPI reads the callable of a route's dependant for each request, and whether it is async once:
    the replacement is of the same kind.
    """
    if inspect.isasyncgenfunction(inspect.unwrap(endpoint)) or inspect.isgeneratorfunction(inspect.unwrap(endpoint)):
        return  # what it yields is stored as it streams by, and served only with public=True
    if inspect.iscoroutinefunction(endpoint):
        serving = endpoint_with(endpoint, policy, _no_tags)
    else:
        serving = _sync_endpoint_with(endpoint, policy)
    serving.__asynctag_router__ = True
    dependant.call = serving


def _sync_endpoint_with(endpoint: Callable[..., Any], policy: Policy) -> Any:
    @wraps(endpoint)
    def cached_endpoint(**values: Any) -> Any:
        exchange = current_exchange.get()
        if exchange:
            reply = anyio.from_thread.run(partial(reply_from, exchange, policy, _no_tags, values))
            if reply is not None:
                return reply
        return endpoint(**values)

    cached_endpoint.__asynctag_policy__ = policy  # type: ignore[attr-defined]
    return cached_endpoint
