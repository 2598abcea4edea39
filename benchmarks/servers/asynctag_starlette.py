"""Starlette under asynctag's middleware, which answers hits before routing."""

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from asynctag import Cache
from asynctag.http import CacheMiddleware, cache_response
from benchmarks.servers import body


@cache_response(ttl=3600, tags=["products"], public=True)
async def read(request: Request) -> Response:
    body.compute()
    return Response(body.BODY, media_type="application/json")


async def computed(request: Request) -> Response:
    return PlainTextResponse(str(body.computed))


app = Starlette(
    routes=[Route("/products/{product_id:int}", read), Route("/computed", computed)],
    middleware=[Middleware(CacheMiddleware, cache=Cache())],
)
