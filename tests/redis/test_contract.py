"""The contract of backends on a real server."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from asynctag.backends.base import Backend
from asynctag.backends.redis import RedisBackend
from asynctag.names import tag_name
from asynctag.testing import BackendContract
from tests.redis.servers import Server

MAX_TAGS = 12_000


class TestRedisBackend(BackendContract):
    unit = 0.15

    @pytest.fixture
    async def backend(self, redis_server: Server) -> AsyncIterator[RedisBackend]:
        backend = self.client(redis_server.url)
        yield backend
        await backend.aclose()

    def client(self, url: str) -> RedisBackend:
        backend = RedisBackend.from_url(url, max_tags=MAX_TAGS)
        backend.url = url  # type: ignore[attr-defined]
        return backend

    async def advance(self, backend: Backend, clock: Any, seconds: float) -> None:
        await anyio.sleep(seconds)  # the time is the server's

    async def lose(self, backend: Any) -> None:
        await backend.wipe()

    async def forget(self, backend: Backend) -> None:
        for slice_of in range(20):  # pruning goes in slices
            await backend.invalidate(tag_name("", f"filler:{slice_of}:{number}") for number in range(1_000))

    async def other_handle(self, backend: Any) -> Backend:
        return self.client(backend.url)


class TestSealed(TestRedisBackend):
    """The same, with entries sealed and compressed."""

    def client(self, url: str) -> RedisBackend:
        backend = RedisBackend.from_url(url, max_tags=MAX_TAGS, hmac_key=b"0123456789abcdef", compress_from=1)
        backend.url = url  # type: ignore[attr-defined]
        return backend
