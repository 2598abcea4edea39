"""Transactions in a request: what is read in them counts for its response, and what changes something is not cached."""

from collections.abc import Awaitable, Callable

import httpx
import pytest
from fastapi import FastAPI

from asynctag import Cache
from asynctag.http import CacheMiddleware, RequestCache
from asynctag.integrations.fastapi import CacheDep, cache_response

pytestmark = pytest.mark.anyio


def application(cache: Cache, work: Callable[[RequestCache], Awaitable[str]]) -> FastAPI:
    app = FastAPI()
    app.add_middleware(CacheMiddleware, cache=cache)

    @app.get("/")
    @cache_response(ttl=60, public=True)
    async def read(tagged: CacheDep) -> str:
        return await work(tagged)

    return app


async def get(app: FastAPI) -> str:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return (await client.get("/")).headers["cache-status"]


async def test_a_response_depends_on_what_a_transaction_has_read() -> None:
    """Also where it was entered without the request's context."""
    cache = Cache(default_ttl=60)

    async def work(tagged: RequestCache) -> str:
        async with tagged.transaction(isolation="read committed"):
            tagged.add_tags("late")
            return await tagged.get_or_set("x", row, tags=["x"])

    async def row() -> str:
        return "x@0"

    app = application(cache, work)
    assert "stored" in await get(app)
    assert "hit" in await get(app)
    for tag in ("x", "late"):
        await cache.invalidate(tag)
        assert "hit" not in await get(app)
        assert "hit" in await get(app)


async def test_a_response_that_changes_something_is_not_stored() -> None:
    """It may show what was never committed."""
    cache = Cache(default_ttl=60)

    async def work(tagged: RequestCache) -> str:
        async with tagged.transaction():
            await tagged.invalidate("x")
        return "uncommitted"

    app = application(cache, work)
    for _ in range(2):
        said = await get(app)
        assert "hit" not in said
        assert "stored" not in said
