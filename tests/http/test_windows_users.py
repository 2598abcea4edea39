"""Two users, ten thousand serves, and no fragment of one in the other's page."""

import json
import logging
from base64 import b64encode
from random import Random
from typing import Any
from zlib import crc32

import anyio
import itsdangerous
import pytest
from anyio.lowlevel import checkpoint
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from asynctag import Cache, add_tags
from asynctag.http import CacheMiddleware, cache_response, current_request
from tests.http.driver import ask
from tests.http.test_windows_streaming import Pieces

pytestmark = pytest.mark.anyio

SECRET = "secret"
USERS = ("alice", "bob")

#: How a request says whose it is.
HOW = ("header", "cookie", "session")

PATHS = ("/public", "/endpoint", "/keyed", "/declared", "/plain", "/stream", "/json")


def headers_of(user: str, how: str, serial: int) -> dict[str, str]:
    """What the user's browser sends. Each request has a number: not even those of one user may be mixed up."""
    sent = {"x-how": how, "x-serial": str(serial)}
    if how == "header":
        return sent | {"x-user": user}
    if how == "cookie":
        return sent | {"cookie": f"user={user}"}
    session = b64encode(json.dumps({"user": user}).encode())
    return sent | {"cookie": f"session={itsdangerous.TimestampSigner(SECRET).sign(session).decode()}"}


def who_asks() -> str:
    request = current_request()
    how = request.headers["x-how"]
    if how == "header":
        user = request.headers["x-user"]
    else:
        user = request.cookies["user"] if how == "cookie" else request.session["user"]
    return f"{user} {request.headers['x-serial']}"


def chance_of(what: str, count: int) -> int:
    """A number below `count`, the same for the same text."""
    return crc32(what.encode()) % count


def shown(who: str, window: str) -> str:
    """What a window shows to whom: for one in four, since it has failed, the fallback."""
    fails = window == "flaky" and chance_of(who, 4) == 0
    return "[-]" if fails else f"[{who}: {window}]"


class Site:
    """Pages with windows that take their time, and some that fail."""

    def __init__(self, cache: Cache) -> None:
        self.runs = 0

        async def show(window: str) -> str:
            who = who_asks()
            for _ in range((0, 0, 1, 2, 5)[chance_of(f"{who} {window}", 5)]):
                await checkpoint()
            assert who_asks() == who
            if shown(who, window) == "[-]":
                raise LookupError(window)
            return shown(who, window)

        @cache.cached(ttl=60, name="basket_of", tags=["basket"])
        async def basket_of(who: str) -> str:
            await checkpoint()
            return f"[{who}: basket]"

        @cache.window(name="greeting")
        async def greeting() -> str:
            return await show("greeting")

        @cache.window(name="basket")
        async def basket() -> str:
            return await basket_of(who_asks())

        @cache.window(name="price")
        async def price(product: int) -> str:
            return await show(f"price {product}")

        @cache.window(name="flaky", fallback="[-]", timeout=60)
        async def flaky() -> str:
            return await show("flaky")

        @cache.cached(ttl=60, name="footer", tags=["page"])
        async def footer() -> str:
            await checkpoint()
            return f"{price(2)} {greeting()}"

        async def parts() -> list[str]:
            self.runs += 1
            add_tags("page")
            await checkpoint()
            return [f"<p>{greeting()}</p>", f"{basket()} {price(1)} {flaky()}", f"<p>{await footer()}</p>"]

        async def page(request: Request) -> Response:
            return HTMLResponse("\n".join(await parts()))

        async def declared(request: Request) -> Response:
            return HTMLResponse("\n".join(await parts()), headers={"cache-control": "public, max-age=60"})

        async def stream(request: Request) -> Response:
            return StreamingResponse(Pieces("\n".join(await parts()).partition(" ")))

        async def as_json(request: Request) -> Response:
            return JSONResponse({"parts": await parts(), "who": greeting()})

        public = cache_response(60, public=True, cookies=())
        routes = [
            Route("/public", public(page)),
            Route("/endpoint", cache_response(60, cookies=())(page)),
            Route("/keyed", cache_response(60, key=lambda request: "everybody's")(page)),
            Route("/declared", declared),
            Route("/plain", page),
            Route("/stream", public(stream)),
            Route("/json", public(as_json)),
        ]
        around = [Middleware(SessionMiddleware, secret_key=SECRET), Middleware(CacheMiddleware, cache=cache)]
        self.app = Starlette(routes=routes, middleware=around)


def expected(path: str, who: str) -> Any:
    def see(window: str) -> str:
        return shown(who, window)

    first = f"<p>{see('greeting')}</p>"
    second = f"[{who}: basket] {see('price 1')} {see('flaky')}"
    third = f"<p>{see('price 2')} {see('greeting')}</p>"
    parts = [first, second, third]
    return {"parts": parts, "who": see("greeting")} if path == "/json" else "\n".join(parts)


async def test_two_users_ten_thousand_serves(
    cache: Cache, caplog: pytest.LogCaptureFixture, anyio_backend: str
) -> None:
    """Hits, misses and invalidations side by side; users known by headers, cookies and sessions; windows that wait and
    fail as it happens. Every page is exactly its own request's."""
    caplog.set_level(logging.CRITICAL, logger="asynctag")
    site, serves = Site(cache), 10_000 if anyio_backend == "asyncio" else 2_000
    numbers = iter(range(serves))
    hits = misses = 0

    async def visit(seed: int) -> None:
        nonlocal hits, misses
        chance = Random(seed)
        for serial in numbers:
            user, how, path = chance.choice(USERS), chance.choice(HOW), chance.choice(PATHS)
            call = await ask(site.app, path, headers=headers_of(user, how, serial))
            found = json.loads(call.body) if path == "/json" else call.text
            assert found == expected(path, f"{user} {serial}"), (path, how)
            assert call.all("cache-control") == ["private, no-store"]
            hits += call.hit
            misses += not call.hit
            if chance.random() < 0.05:
                await cache.invalidate(chance.choice(["page", "basket"]))

    async with anyio.create_task_group() as tasks:
        for seed in range(20):
            tasks.start_soon(visit, seed)
    assert hits + misses == serves
    assert min(hits, misses, site.runs) > serves / 20
