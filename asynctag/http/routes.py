"""What a route says of its responses: the decorator over its endpoint."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial, wraps
from typing import Any, TypeVar, cast

import anyio.to_thread
from starlette.background import BackgroundTask
from starlette.requests import HTTPConnection
from starlette.responses import Response

from asynctag.errors import ConfigurationError, InvalidTagError
from asynctag.expiry import Seconds, fraction, seconds
from asynctag.functions import resolve_annotations
from asynctag.http.asgi import Receive, Send
from asynctag.http.exchange import Exchange, tag_response
from asynctag.http.rules import Policy
from asynctag.http.silence import Silence, exchange_here, silence_here
from asynctag.names import tag_name
from asynctag.tags import compile_tags

F = TypeVar("F", bound=Callable[..., Any])
TagsOf = Callable[[Mapping[str, object]], tuple[str, ...]]

_MARK = "__asynctag_policy__"


def cache_response(
    ttl: Seconds | None = None,
    *,
    tags: Iterable[str] | Callable[..., Iterable[str]] | None = None,
    public: bool = False,
    vary: Collection[str] = (),
    cookies: Collection[str] | None = None,
    query: Collection[str] | None = None,
    ignore_query: Collection[str] = (),
    key: Callable[[HTTPConnection], str | None] | None = None,
    statuses: Collection[int] = (200,),
    heuristic: float = 0.0,
    stale_while_revalidate: Seconds | None = None,
    stale_if_error: Seconds | None = None,
    jitter: float = 0.0,
) -> Callable[[F], F]:
    """Cache the whole responses of a route, by their tags. Goes under the route's own decorator.

    Hits are served in place of the endpoint, after the route's dependencies have run: guards,
    limits and all. With `public=True` they are served before routing, and nothing of the route
    runs; that is refused where FastAPI knows of a guard among the dependencies, but one that reads
    `Request` itself cannot be seen.

    `ttl`: seconds or a `timedelta`; without one, the cache's `default_ttl` or what the response
    itself says. `tags`: templates over the endpoint's validated arguments (in Starlette, over the
    converted path parameters), or a function of them. `vary`, `cookies`, `query`: the names of the
    request headers, cookies and query parameters that tell responses apart; by default no header,
    every query parameter, and a request with `Authorization` or any cookie bypasses the cache
    (`cookies=()` says that none matters), as does one with a header that FastAPI makes an argument
    of. What is named goes out in `Vary`. `ignore_query`: query parameters that tell nothing apart,
    whole or by their beginning (`"utm_*"`). `key`: a function of the request that says whose the
    response is, such as `lambda request: str(request.state.user.id)`, asked at the endpoint; then it
    is served to nobody else, whatever cookies or `Authorization` the request has. `statuses`: what
    may be stored. `heuristic`: see `Policy`.

    Raises `ConfigurationError` for values that cannot be meant, at decoration, and where the route
    is called without the middleware.
    """
    policy = make_policy(
        ttl,
        public=public,
        vary=vary,
        cookies=cookies,
        query=query,
        ignore_query=ignore_query,
        key=key,
        statuses=statuses,
        heuristic=heuristic,
        stale_while_revalidate=stale_while_revalidate,
        stale_if_error=stale_if_error,
        jitter=jitter,
    )
    if public and key is not None:
        raise ConfigurationError(
            f"public=True and key={key!r}: what is one user's is served at the endpoint, after the route's "
            f"dependencies have found out who asks. Leave public=True out"
        )

    def decorate(endpoint: F) -> F:
        _check_endpoint(endpoint)
        tags_of = compile_tags(
            tags,
            inspect.signature(endpoint),
            owner=getattr(endpoint, "__qualname__", repr(endpoint)),
            annotations=resolve_annotations(endpoint),
            extra_names=_takes_request_alone(endpoint),
        )
        wrapped: F = endpoint_with(endpoint, policy, tags_of)
        return wrapped

    return decorate


def make_policy(
    ttl: Seconds | None,
    *,
    public: bool,
    vary: Collection[str],
    cookies: Collection[str] | None,
    query: Collection[str] | None,
    ignore_query: Collection[str] = (),
    key: Callable[[HTTPConnection], str | None] | None = None,
    statuses: Collection[int],
    heuristic: float = 0.0,
    stale_while_revalidate: Seconds | None,
    stale_if_error: Seconds | None,
    jitter: float,
) -> Policy:
    def optional(value: Seconds | None, name: str) -> float | None:
        return None if value is None else seconds(value, name)

    def names(value: Collection[str], name: str) -> tuple[str, ...]:
        if isinstance(value, str | bytes) or not isinstance(value, Collection):
            raise ConfigurationError(f"{name}={value!r}: give a list of names")
        return tuple(value)

    if not isinstance(public, bool):
        raise ConfigurationError(f"public={public!r}: give True or False")
    if not isinstance(statuses, Collection) or not all(type(one) is int for one in statuses):
        raise ConfigurationError(f"statuses={statuses!r}: give a list of numbers, such as [200, 404]")
    return Policy(
        ttl=None if ttl is None else seconds(ttl, "ttl", zero=False),
        public=public,
        vary=names(vary, "vary"),
        cookies=None if cookies is None else names(cookies, "cookies"),
        query=None if query is None else names(query, "query"),
        ignore_query=names(ignore_query, "ignore_query"),
        key=key,
        statuses=frozenset(statuses),
        heuristic=heuristic,
        stale_while_revalidate=optional(stale_while_revalidate, "stale_while_revalidate"),
        stale_if_error=optional(stale_if_error, "stale_if_error"),
        jitter=fraction(jitter, "jitter"),
    )


def endpoint_with(endpoint: Callable[..., Any], policy: Policy, tags_of: TagsOf) -> Any:
    """The endpoint, with its hits served in its place. Async, whatever the endpoint is: a hit needs no thread."""
    is_async = is_async_callable(endpoint)
    names = tuple(inspect.signature(endpoint).parameters)

    @wraps(endpoint)
    async def cached_endpoint(*args: Any, **kwargs: Any) -> Any:
        silence = silence_here()
        led = silence.lead(cached_endpoint, policy) if silence is not None else False
        if silence is not None and isinstance(led, tuple):
            return StoredReply(silence, led)
        if silence is not None and led:
            _tag(silence, tags_of, _values(names, args, kwargs))
        else:
            exchange = exchange_here()
            if exchange is None:
                raise ConfigurationError(
                    f"{endpoint!r} is cached by cache_response, and there is no CacheMiddleware around the "
                    f"application: app.add_middleware(CacheMiddleware, cache=cache)"
                )
            if exchange and exchange.is_for(cached_endpoint):  # not where another calls this one as a function
                exchange.declare(policy)
                reply = await stored_reply(exchange)
                if reply is not None:
                    return reply
                _tag(exchange, tags_of, _values(names, args, kwargs))
        if not is_async:
            return await anyio.to_thread.run_sync(partial(endpoint, *args, **kwargs))
        result = endpoint(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    setattr(cached_endpoint, _MARK, policy)
    return cached_endpoint


def _tag(exchange: Exchange | Silence, tags_of: TagsOf, values: Mapping[str, object]) -> None:
    """Tag the response with the tags of its route."""
    try:
        tags = tags_of(values)
    except InvalidTagError as error:  # it was made of what the client sent, which the endpoint is to judge
        exchange.refuse("tag", error)
        return
    if tags:
        tag_response(exchange.scope, {tag_name(exchange.scope.namespace, one) for one in tags})


async def stored_reply(exchange: Exchange) -> "StoredReply | None":
    """The hit by the policy that is declared already, where there is one."""
    stored = await exchange.enter()
    if stored is None and exchange.facts.only_if_cached:
        return StoredReply(exchange, exchange.nothing_cached())
    return None if stored is None else StoredReply(exchange, exchange.hit(stored))


class StoredReply(Response):
    """A stored response, as a framework passes it on: sent as it was stored."""

    def __init__(self, exchange: Exchange | Silence, messages: tuple[Any, Any]) -> None:
        self._exchange = exchange
        self._messages = messages
        start, body = messages
        self.status_code = start["status"]
        self.raw_headers = start["headers"]
        self.body = body.get("body", b"")
        self.background: BackgroundTask | None = None

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        await self._exchange.reply(self._messages, send, self._exchange.client.receive)
        if self.background is not None:
            await self.background()


def is_async_callable(endpoint: object) -> bool:
    """Whether it, or what it wraps, is an async function or has an async `__call__`: as FastAPI looks at it."""
    for one in (endpoint, inspect.unwrap(cast(Callable[..., Any], endpoint))):
        call = getattr(one, "__call__", None)  # noqa: B004 - the method, to look at
        if inspect.iscoroutinefunction(one) or inspect.iscoroutinefunction(call):
            return True
    return False


def policy_of(endpoint: object) -> Policy | None:
    """The policy that `cache_response` gave to an endpoint."""
    found = getattr(endpoint, _MARK, None)
    return found if isinstance(found, Policy) else None


def routes_of(app: object) -> Iterator[object]:
    """The routes of a Starlette or FastAPI application that can be found before the first request."""
    waiting: list[object] = list(getattr(app, "routes", None) or ())
    while waiting:
        route = waiting.pop()
        effective: Callable[[], Iterable[object]] | None = getattr(route, "effective_candidates", None)
        if effective is not None:  # a router that FastAPI includes without copying its routes
            waiting.extend(effective())
            continue
        waiting.extend(getattr(route, "routes", None) or ())  # a mounted application's
        yield route


def _values(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, object]:
    """The validated arguments, and for an endpoint that gets the request alone, the path parameters."""
    if not args:
        return kwargs
    values = dict(zip(names, args, strict=False)) | kwargs
    request = args[-1]
    return {**request.path_params, **values} if hasattr(request, "path_params") else values


def _takes_request_alone(endpoint: Callable[..., Any]) -> bool:
    parameters = [name for name in inspect.signature(endpoint).parameters if name not in ("self", "cls")]
    return parameters == ["request"]


def _check_endpoint(endpoint: object) -> None:
    if policy_of(endpoint) is not None:
        raise ConfigurationError(f"{endpoint!r} has a cache_response already")
    if isinstance(endpoint, staticmethod | classmethod) or not callable(endpoint) or inspect.isclass(endpoint):
        raise ConfigurationError(f"cache_response goes over an endpoint function, not over {endpoint!r}")
    if inspect.isasyncgenfunction(endpoint) or inspect.isgeneratorfunction(endpoint):
        raise ConfigurationError(
            f"{endpoint!r} is a generator: return a StreamingResponse over it instead, which is stored as a whole"
        )
