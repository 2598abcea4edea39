"""The cache is opened before the application starts and closed before it says that it has shut down."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route as StarletteRoute

from asynctag import Cache
from asynctag.errors import ConfigurationError, LifecycleError
from asynctag.http import CacheMiddleware, cache_response
from asynctag.testing import FakeClock
from tests.http.driver import ask, running

pytestmark = pytest.mark.anyio


async def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("x")


def app_with(cache: Cache, lifespan: Any = None) -> Starlette:
    app = Starlette(
        routes=[StarletteRoute("/", cache_response(60, stale_while_revalidate=60)(page))], lifespan=lifespan
    )
    app.add_middleware(CacheMiddleware, cache=cache)
    return app


def is_open(cache: Cache) -> bool:
    return cache._background.is_open


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
async def test_the_cache_is_open_from_before_startup_until_after_shutdown(cache: Cache, framework: Any) -> None:
    """Fails where the cache is opened at the first request, or closed when the task ends."""
    states: list[tuple[str, bool]] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        states.append(("startup", is_open(cache)))
        assert await cache.get_or_set("k", lambda: answer(1), ttl=60) == 1
        yield
        states.append(("shutdown", is_open(cache)))

    async def answer(value: int) -> int:
        return value

    app = framework(lifespan=lifespan)
    app.add_middleware(CacheMiddleware, cache=cache)
    assert not is_open(cache)
    async with running(app) as said:
        assert is_open(cache)
    assert not is_open(cache)
    assert states == [("startup", True), ("shutdown", True)]
    assert [one["type"] for one in said] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_the_cache_is_closed_before_the_server_is_told(cache: Cache) -> None:
    """A server may end the process as soon as it hears `shutdown.complete`."""
    told: list[bool] = []

    async def receive() -> dict[str, str]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        told.append(is_open(cache))

    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    await app_with(cache)({"type": "lifespan", "asgi": {}}, receive, send)
    assert told == [True, False]


async def test_the_lifespans_state_reaches_the_server(cache: Cache) -> None:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, str]]:
        yield {"pool": "pool"}

    state: dict[str, Any] = {}
    async with running(app_with(cache, lifespan), state):
        assert state == {"pool": "pool"}


async def test_a_startup_that_fails_closes_the_cache(cache: Cache) -> None:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        assert is_open(cache)
        raise RuntimeError("no database")
        yield

    said: list[Any] = []
    with pytest.raises((RuntimeError, BaseExceptionGroup)):
        async with running(app_with(cache, lifespan)) as said:
            pass
    assert [one["type"] for one in said] in ([], ["lifespan.startup.failed"])
    assert not is_open(cache)
    async with running(app_with(cache)):  # and it can be opened again
        assert is_open(cache)


async def test_a_shutdown_that_fails_closes_the_cache(cache: Cache) -> None:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        raise RuntimeError("stuck")

    with pytest.raises((RuntimeError, BaseExceptionGroup)):
        async with running(app_with(cache, lifespan)):
            pass
    assert not is_open(cache)


async def test_an_application_without_a_lifespan_says_so_and_serves(cache: Cache) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http", "no lifespan here"
        await PlainTextResponse("x", headers={"cache-control": "public, max-age=60"})(scope, receive, send)

    wrapped = CacheMiddleware(app, cache=cache)

    async def nothing(*args: Any) -> Any:
        raise AssertionError

    with pytest.raises(AssertionError, match="no lifespan here"):
        await wrapped({"type": "lifespan"}, nothing, nothing)
    assert not is_open(cache)
    await ask(wrapped)
    assert (await ask(wrapped)).hit


async def test_an_application_that_ends_without_a_word_closes_the_cache(cache: Cache) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert is_open(cache)

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        raise AssertionError

    await CacheMiddleware(app, cache=cache)({"type": "lifespan"}, receive, send)
    assert not is_open(cache)


async def test_requests_are_served_without_any_lifespan(cache: Cache, clock: FakeClock) -> None:
    """As under test clients that start none. What is stale is then renewed in the foreground."""
    app = app_with(cache)
    await ask(app)
    assert (await ask(app)).hit
    clock.advance(61)
    assert "fwd=" in (await ask(app)).cache_status
    assert (await ask(app)).hit


async def test_a_cache_that_is_open_already_fails_the_startup_with_advice(cache: Cache) -> None:
    async with cache:
        with pytest.raises((LifecycleError, BaseExceptionGroup)) as caught:
            async with running(app_with(cache)):
                pass
        assert caught.group_contains(LifecycleError) if isinstance(caught.value, BaseExceptionGroup) else True
        assert is_open(cache)


async def test_a_cache_without_its_backend_fails_the_startup() -> None:
    with pytest.raises((LifecycleError, BaseExceptionGroup)):
        async with running(app_with(Cache(require_backend=True))):
            pass


async def test_a_public_route_behind_a_guard_fails_the_startup_with_the_cache_closed(cache: Cache) -> None:
    from fastapi import Header

    app = FastAPI()

    @app.get("/")
    @cache_response(60, public=True)
    async def guarded(x_key: str = Header()) -> str:
        return x_key

    app.add_middleware(CacheMiddleware, cache=cache)
    with pytest.raises((ConfigurationError, BaseExceptionGroup)):
        async with running(app):
            pass
    assert not is_open(cache)
