"""A Starlette route that returns ready bytes, and what may stand around it when each request is a miss.

And a FastAPI route that returns a model.
"""

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from asynctag import Cache, add_tags
from asynctag.backends.memory import MemoryBackend
from asynctag.http import CacheMiddleware, cache_response
from benchmarks.servers.body import BODY, PRODUCT
from benchmarks.workers.payloads import Product

#: So few that the cache is full after some rounds: a miss then makes room too.
MAX_ENTRIES = 10_000


async def silent(request: Request) -> Response:
    return Response(BODY, media_type="application/json")


async def refusing(request: Request) -> Response:
    return Response(BODY, headers={"cache-control": "no-store"}, media_type="application/json")


async def declaring(request: Request) -> Response:
    return Response(BODY, headers={"cache-control": "public, max-age=60"}, media_type="application/json")


async def tagged(request: Request) -> Response:
    add_tags("products")
    return await declaring(request)


async def with_three(request: Request) -> Response:
    """With what is added to a response that was stored."""
    headers = {
        "cache-control": "no-cache",
        "etag": '"0f343b0931126a20f133d67c2b018a3b"',
        "cache-status": "asynctag; fwd=uri-miss; stored",
    }
    return Response(BODY, headers=headers, media_type="application/json")


class NoOp:
    """An ASGI middleware that does nothing but stand before `send`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: dict[str, object]) -> None:
            await send(message)

        await self.app(scope, receive, send_on)  # type: ignore[arg-type]


class Invalidating:
    """An ASGI middleware that invalidates a tag before each request."""

    def __init__(self, app: ASGIApp, cache: Cache) -> None:
        self.app = app
        self.cache = cache

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.cache.invalidate("products")
        await self.app(scope, receive, send)


async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


def cached() -> Middleware:
    return Middleware(CacheMiddleware, cache=Cache(MemoryBackend(max_entries=MAX_ENTRIES)))


def invalidated(endpoint: object) -> Starlette:
    cache = Cache(MemoryBackend(max_entries=MAX_ENTRIES))
    return app_of(endpoint, Middleware(Invalidating, cache=cache), Middleware(CacheMiddleware, cache=cache))


def app_of(endpoint: object, *middleware: Middleware) -> Starlette:
    return Starlette(routes=[Route("/products/{product_id:int}", endpoint)], middleware=middleware)  # type: ignore[arg-type]


plain = app_of(silent)
plain_with_three = app_of(with_three)
plain_refusing = app_of(refusing)
plain_declaring = app_of(declaring)
no_op = app_of(silent, Middleware(NoOp))
base_http = app_of(silent, Middleware(BaseHTTPMiddleware, dispatch=pass_on))
nothing_said = app_of(silent, cached())
no_store = app_of(refusing, cached())
endpoint = app_of(cache_response(ttl=60)(silent), cached())
public = app_of(cache_response(ttl=60, public=True)(silent), cached())
declared = app_of(declaring, cached())
endpoint_invalidated = invalidated(cache_response(ttl=60, tags=["products"])(silent))
public_invalidated = invalidated(cache_response(ttl=60, public=True, tags=["products"])(silent))
declared_invalidated = invalidated(tagged)


async def read(product_id: int) -> Product:
    return PRODUCT


plain_fastapi = FastAPI()
plain_fastapi.get("/products/{product_id}")(read)
fastapi_silent = FastAPI(middleware=[cached()])
fastapi_silent.get("/products/{product_id}")(read)
fastapi_endpoint = FastAPI(middleware=[cached()])
fastapi_endpoint.get("/products/{product_id}")(cache_response(ttl=60, tags=["product:{product_id}"])(read))
