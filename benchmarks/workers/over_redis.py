"""Commands over a library that keeps its entries in Redis: by the clock, for one caller and for many at once."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from itertools import count, cycle, islice
from time import perf_counter, process_time
from typing import Any

from benchmarks.watching import watching
from benchmarks.workers import functions
from benchmarks.workers.commands import Commands, Function, Library
from benchmarks.workers.line import serve

TAGS = ("page:{page_id}", "pages", "category:15", "brand:northway", "shop")

PATIENCE = 30.0
"""Seconds for a reply: on a busy machine a server may stand still for more than the second that is usual."""

ALONE = ("invalidations", "stores")
"""What is measured for one caller only."""


async def spend(function: Function, arguments: Sequence[Any], n: int, callers: int) -> dict[str, float]:
    """What one of `n` calls takes, by the clock and of the processor. Each caller goes through its own arguments."""

    async def caller(number: int) -> None:
        for argument in islice(cycle(arguments[number::callers]), len(range(number, n, callers))):
            await function(argument)

    busy, started = process_time(), perf_counter()
    await asyncio.gather(*map(caller, range(callers)))
    took, busy = perf_counter() - started, process_time() - busy
    return {"seconds": took / n, "processor": busy / n}


class OverRedis(Commands):
    """The commands over one library, on the server at `url`. What is measured goes through `self.spend`."""

    def __init__(self, library: Library, url: str) -> None:
        super().__init__(library)
        self.url = url
        self.page = library.cached(functions.page, *TAGS)
        self.spend: Callable[[Function, Sequence[Any], int, int], Awaitable[dict[str, Any]]] = spend
        self._pages = count(1_000_000)

    def new_pages(self, n: int) -> list[int]:
        return list(islice(self._pages, n))

    async def counted(self, what: str, n: int) -> Any:
        """The round trips and the commands of one call, where the command `what` would measure its time."""
        self.spend = self.count
        try:
            ask = getattr(self, what)
            return await (ask(n=n) if what in ALONE else ask(n=n, callers=1))
        finally:
            self.spend = spend

    async def count(self, function: Function, arguments: Sequence[Any], n: int, callers: int) -> dict[str, Any]:
        with watching(self.url) as seen:
            await spend(function, arguments, n, callers)
        return {"trips": seen.trips / n, "commands": {name: times / n for name, times in seen.commands.items()}}

    async def hits(self, n: int, callers: int) -> dict[str, Any]:
        """Each caller asks for a page of its own, again and again."""
        return await self.only_hits(self.page, range(callers), n, callers)

    async def only_hits(self, function: Function, arguments: Sequence[Any], n: int, callers: int) -> dict[str, Any]:
        for argument in arguments:
            await function(argument)
        before = functions.read
        spent = await self.spend(function, arguments, n, callers)
        if functions.read != before:
            raise RuntimeError("the function ran while hits were measured")
        return spent

    async def misses(self, n: int, callers: int) -> dict[str, Any]:
        """New pages, each stored with five tags."""
        before = functions.read
        spent = await self.spend(self.page, self.new_pages(n), n, callers)
        if functions.read != before + n:
            raise RuntimeError("some were no misses")
        return spent

    async def invalidations(self, n: int) -> dict[str, Any]:
        """Pages that are stored, each dropped by a tag that it alone carries."""
        pages = self.new_pages(n)
        for page in pages:
            await self.page(page)
        return await self.spend(self.library.invalidate, [f"page:{page}" for page in pages], n, 1)


def main(commands: Callable[[str], OverRedis]) -> None:
    """Serve commands on the server at the first argument, in the kind of event loop that is the second."""
    url, loop = sys.argv[1:3]
    if loop == "uvloop":
        import uvloop

        loop_factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    else:
        loop_factory = asyncio.new_event_loop
    over = commands(url)
    serve(over, over.library.start, loop_factory)
