"""FastAPI: the cache as a dependency, a policy for all routes of a router, and windows that have dependencies."""

import inspect
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import wraps
from typing import Annotated, Any, get_args, get_origin

import anyio.from_thread

try:
    from fastapi import Depends, params
    from fastapi.dependencies.models import Dependant
    from fastapi.dependencies.utils import get_dependant, solve_dependencies
    from fastapi.exceptions import RequestValidationError
    from fastapi.security import SecurityScopes
except ModuleNotFoundError as error:  # pragma: no cover - depends on what is installed
    raise ModuleNotFoundError("asynctag.integrations.fastapi needs FastAPI: pip install asynctag[fastapi]") from error
from starlette.background import BackgroundTasks
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from asynctag.errors import ConfigurationError, InvalidTagError
from asynctag.expiry import Seconds
from asynctag.functions import resolve_annotations
from asynctag.http.guards import effective_route
from asynctag.http.request import RequestCache, cache_of
from asynctag.http.routes import cache_response, is_async_callable, make_policy, policy_of, stored_reply
from asynctag.http.rules import Policy
from asynctag.http.serving import current_request
from asynctag.http.silence import exchange_here
from asynctag.names import tag_name
from asynctag.tags import check_tags
from asynctag.windows import Injection, inject_into_windows

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


# --- windows -----------------------------------------------------------------------------------------

#: What FastAPI knows by the type of a parameter.
_BY_TYPE = (HTTPConnection, Response, BackgroundTasks, SecurityScopes)

#: What a dependency may ask for and a window cannot give, by the attribute of FastAPI's `Dependant`, and why not.
_NOT_IN_WINDOWS = {
    "path_params": "a parameter of the path. A window stands on pages of any path, and is filled before routing, too: "
    "give it what it needs of the path as a parameter of its own",
    "body_params": "the body of the request, which a window cannot read",
    "websocket_param_name": "a WebSocket. Windows are for responses to HTTP requests",
    "response_param_name": "the Response. Its headers are not a window's to set: they may be out",
    "background_tasks_param_name": "BackgroundTasks. Nothing runs them after a window",
}


def _dependencies_of_window(function: Callable[..., Any]) -> tuple[frozenset[str], Injection] | None:
    """The parameters that FastAPI fills, and how, each time the window is filled: for the request that is served."""
    annotations = resolve_annotations(function)
    injected = [
        parameter.replace(annotation=annotations.get(parameter.name, parameter.annotation))
        for parameter in inspect.signature(function).parameters.values()
        if _is_injected(parameter.default, annotations.get(parameter.name))
    ]
    if not injected:
        return None
    dependant = get_dependant(path="", call=_taking(injected))
    what = f"{function.__qualname__}({', '.join(parameter.name for parameter in injected)})"
    for place, current in _tree(dependant, what):
        for attribute, why in _NOT_IN_WINDOWS.items():
            if getattr(current, attribute):
                raise ConfigurationError(f"the window {place} asks FastAPI for {why}")

    @asynccontextmanager
    async def inject() -> AsyncIterator[Mapping[str, Any]]:
        try:
            served = current_request()
        except ConfigurationError as error:
            raise ConfigurationError(f"the window {what} has dependencies of FastAPI, and {error}") from error
        app = served.scope.get("app")
        async with AsyncExitStack() as for_request, AsyncExitStack() as for_function:
            # Of its own: what ends with the request, for the dependencies of a route, ends with the window here.
            stacks = {"fastapi_inner_astack": for_request, "fastapi_function_astack": for_function}
            solved = await solve_dependencies(
                request=Request({**served.scope, **stacks}),
                dependant=dependant,
                dependency_overrides_provider=app if hasattr(app, "dependency_overrides") else None,
                async_exit_stack=for_request,
                embed_body_fields=False,
            )
            if solved.errors:
                raise RequestValidationError(solved.errors)
            yield solved.values

    return frozenset(parameter.name for parameter in injected), inject


def _is_injected(default: object, annotation: Any) -> bool:
    annotation = getattr(annotation, "__value__", annotation)  # of a `type` statement
    kind, *marks = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if any(isinstance(mark, params.Depends | params.Param | params.Body) for mark in (default, *marks)):
        return True
    return isinstance(kind, type) and issubclass(kind, _BY_TYPE)


def _taking(parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    """A function of these parameters, for FastAPI to read them."""

    def function(**values: Any) -> Mapping[str, Any]:
        return values

    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return function


def _tree(dependant: Dependant, place: str) -> Iterator[tuple[str, Dependant]]:
    """What a dependant needs, and what that needs in turn, each with the way to it."""
    yield place, dependant
    for one in dependant.dependencies:
        name = getattr(one.call, "__qualname__", None) or type(one.call).__qualname__
        yield from _tree(one, f"{place} > {name}")


inject_into_windows(_dependencies_of_window)
