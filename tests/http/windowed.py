"""Pages with windows, as the tests of them share it."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asynctag import Cache
from asynctag.http import CacheMiddleware, cache_response, current_request
from asynctag.windows import Window
from tests.http.driver import Call

ALICE, BOB = {"x-user": "alice"}, {"x-user": "bob"}

Endpoint = Callable[[Request], Awaitable[Response]]


def visitor_of(cache: Cache, **options: Any) -> Window[[], str]:
    """A window with the name of whoever asks."""

    @cache.window(name="visitor", **options)
    async def visitor() -> str:
        return current_request().headers.get("x-user", "nobody")

    return visitor


def page_app(
    cache: Cache, endpoint: Endpoint, policy: dict[str, Any] | None = None, paths: Any = None, **options: Any
) -> Starlette:
    """An application of one page, `/`, with the middleware added as users do. Without a policy there is none.

    `paths` is the middleware's policy, `options` its other parameters.
    """
    page = endpoint if policy is None else cache_response(60, **policy)(endpoint)
    app = Starlette(routes=[Route("/", page, methods=["GET", "POST"])])
    app.add_middleware(CacheMiddleware, cache=cache, policy=paths, **options)
    return app


def is_for_one(call: Call) -> bool:
    """Whether the headers of a response keep every cache from keeping it."""
    return call.all("cache-control") == ["private, no-store"]
