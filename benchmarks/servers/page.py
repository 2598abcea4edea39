"""A page of 20 KB: cached, with and without windows in it, and with sub-requests. In Redis where `REDIS_URL` is set."""

import asyncio
import os
import re

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from asynctag import Cache
from asynctag.backends.base import Backend
from asynctag.backends.memory import MemoryBackend
from asynctag.http import CacheMiddleware, cache_response
from benchmarks.servers import body
from benchmarks.servers.asgi import Receive, Scope, Send
from benchmarks.workers.payloads import prose

TEXT = prose(5_120)
WAIT = 0.05


def backend() -> Backend:
    url = os.environ.get("REDIS_URL")
    if not url:
        return MemoryBackend()
    from asynctag.backends.redis import RedisBackend

    return RedisBackend.from_url(url, timeout=30)


cache = Cache(backend())


@cache.window
async def at_once(number: int) -> str:
    return shown(number)


@cache.window
async def after_a_turn(number: int) -> str:
    await asyncio.sleep(0)
    return shown(number)


@cache.window
async def after_a_timer(number: int) -> str:
    await asyncio.sleep(0.001)
    return shown(number)


@cache.window
async def slow(number: int) -> str:
    await asyncio.sleep(WAIT)
    return shown(number)


def shown(number: int) -> str:
    return f"<b>{number}</b>"


def included(number: int) -> str:
    return f'<esi:include src="/parts/{number}"/>'


def page_of(*parts: str) -> HTMLResponse:
    """Four texts of 5 KB with parts between them, and the rest of the parts at its end."""
    body.compute()
    return HTMLResponse(TEXT.join(["", *parts[:3], ""]) + "".join(parts[3:]))


def app_of(endpoint: object, *, cached: bool = True) -> CacheMiddleware:
    async def part(request: Request) -> Response:
        return HTMLResponse(shown(request.path_params["number"]))

    async def computed(request: Request) -> Response:
        return PlainTextResponse(str(body.computed))

    page = cache_response(ttl=3600, tags=["products"], public=True)(endpoint) if cached else endpoint  # type: ignore[type-var]
    routes = [Route("/products/{product_id:int}", page), Route("/parts/{number:int}", part)]  # type: ignore[arg-type]
    return CacheMiddleware(Starlette(routes=[*routes, Route("/computed", computed)]), cache=cache)


async def _plain(request: Request) -> Response:
    return page_of(*map(shown, range(3)))


async def _windows(request: Request) -> Response:
    return page_of(*map(at_once, range(3)))


async def _turns(request: Request) -> Response:
    return page_of(*map(after_a_turn, range(3)))


async def _timers(request: Request) -> Response:
    return page_of(*map(after_a_timer, range(3)))


async def _includes(request: Request) -> Response:
    return page_of(*map(included, range(3)))


async def _one(request: Request) -> Response:
    return page_of(slow(0))


async def _ten(request: Request) -> Response:
    return page_of(*map(slow, range(10)))


async def _ten_awaited(request: Request) -> Response:
    return page_of(*[await slow(number) for number in range(10)])


plain = app_of(_plain)
windows = app_of(_windows)
turns = app_of(_turns)
timers = app_of(_timers)
one = app_of(_one)
ten = app_of(_ten)
ten_awaited = app_of(_ten_awaited, cached=False)
uncached = app_of(_plain, cached=False)


class SubRequests:
    """Fills what `<esi:include>` names with the application's own answers, asked for one after the other.

    It is the least that this could cost: no errors, no headers of the parts, no connection of their own.
    """

    TAG = re.compile(rb'<esi:include src="([^"]+)"/>')

    def __init__(self, app: CacheMiddleware) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/computed":
            await self.app(scope, receive, send)
            return
        headers, page = await self._answer(scope, receive, scope["path"])
        parts = self.TAG.split(page)
        for at in range(1, len(parts), 2):
            parts[at] = (await self._answer(scope, receive, parts[at].decode()))[1]
        page = b"".join(parts)
        headers = [pair for pair in headers if pair[0] not in (b"content-length", b"etag")]
        headers.append((b"content-length", b"%d" % len(page)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": page})

    async def _answer(self, scope: Scope, receive: Receive, path: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
        messages: list[dict[str, object]] = []

        async def keep(message: object) -> None:
            messages.append(message)  # type: ignore[arg-type]

        await self.app({**scope, "path": path, "raw_path": path.encode()}, receive, keep)
        start, *rest = messages
        return start["headers"], b"".join(one["body"] for one in rest)  # type: ignore[return-value,misc]


sub_requests = SubRequests(app_of(_includes))
