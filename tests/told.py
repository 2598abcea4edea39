"""A memory that tells what it is asked for, and fixtures of it: for tests that import `fake_clock` too."""

from collections.abc import Iterable, Sequence
from typing import Any

import anyio
import pytest

from asynctag import Cache, InvalidationError
from asynctag.backends.base import Reading, Stamp
from asynctag.backends.memory import MemoryBackend
from asynctag.testing import FakeClock


class Told(MemoryBackend):
    """A memory that notes what it is asked for, and fails where it is told to."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked: list[str] = []
        self.fails: set[str] = set()
        self.waits: dict[str, anyio.Event] = {}

    async def _note(self, what: str) -> None:
        self.asked.append(what)
        if what in self.fails:
            raise InvalidationError(f"{what} fails")
        if what in self.waits:
            await self.waits[what].wait()

    async def read(self, key: str) -> Reading:
        await self._note("read")
        return await super().read(key)

    async def write_many(self, entries: Any) -> Any:
        await self._note("write")
        return await super().write_many(entries)

    async def write(self, entry: Any) -> Any:
        await self._note("write")
        return await super().write(entry)

    async def invalidate(self, tags: Iterable[str], *, soft: bool = False) -> None:
        await self._note("invalidate")
        await super().invalidate(tags, soft=soft)

    async def lease(self, tags: Iterable[str], holder: str, duration: float) -> bool:
        await self._note("lease")
        return await super().lease(tags, holder, duration)

    async def release(self, tags: Iterable[str], holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
        await self._note("release")
        await super().release(tags, holder, lag=lag, serve=serve)

    async def unchanged(self, tags: Sequence[str], since: Stamp) -> bool:
        await self._note("unchanged")
        return await super().unchanged(tags, since)


@pytest.fixture
def backend(fake_clock: FakeClock) -> Told:
    return Told(clock=fake_clock)


@pytest.fixture
def cache(backend: Told) -> Cache:
    return Cache(backend, default_ttl=100)
