"""What a worker can be asked: each command runs once, in the worker's own loop, and gives a number or a small dict.

Commands are written once, over the few things that a library does (`Library`), so that all are asked the same.
"""

import asyncio
import gc
import os
import random
import tracemalloc
from collections.abc import Awaitable, Callable
from itertools import count, repeat
from time import perf_counter, process_time
from typing import Any

from benchmarks.workers import functions
from benchmarks.workers.payloads import SPOIL, VALUES

Function = Callable[..., Awaitable[Any]]


class Library:
    """A caching library, as its documentation recommends to use it in memory."""

    name: str
    has_tags = True

    async def start(self) -> None:
        """What has to run in the loop before the first call."""

    def cached(self, function: Any, *tags: str) -> Function:
        """`function`, cached for longer than a run takes, with templates of tags where the library has tags."""
        raise NotImplementedError

    def guarded(self, function: Any, *tags: str) -> Function:
        """`function`, cached with whatever the library has against many misses at once."""
        return self.cached(function, *tags)

    async def invalidate(self, tag: str) -> None:
        raise NotImplementedError

    async def reset(self) -> None:
        """Drop everything."""
        raise NotImplementedError


async def seconds_of(function: Function, n: int) -> float:
    """Seconds of the processor for `n` awaited calls with one argument: waiting for a turn on it is left out."""
    started = process_time()
    for _ in repeat(None, n):
        await function(635)
    return process_time() - started


class Commands:
    """The commands over one library."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._ids = count(1)
        tags = ("product:{product_id}", "products")
        self.by_payload = {name: library.cached(function, *tags) for name, function in functions.BY_PAYLOAD.items()}
        self.item = library.cached(functions.item, "item:{item_id}", "group:{group_id}")
        self.stored = library.cached(functions.stored, "item:{item_id}", "group:{group_id}")
        self.slow = library.guarded(functions.slow)
        self.version = library.guarded(functions.version, "version:{item_id}")

    # --- hits

    async def bare(self, payload: str, n: int) -> float:
        """The function itself returning something that is there already: what any hit is compared with."""
        value = VALUES[payload]

        async def function(product_id: int) -> Any:
            return value

        return await seconds_of(function, n)

    async def hit(self, payload: str, n: int) -> float:
        function = self.by_payload[payload]
        await function(635)
        return await seconds_of(function, n)

    async def promise(self, payload: str) -> dict[str, bool]:
        """Whether a hit is what the miss returned, and whether a caller that changes its own changes the others'."""
        function, pristine = self.by_payload[payload], VALUES[payload]
        await function(1)
        first = await function(1)
        same = type(first) is type(pristine) and first == pristine
        try:
            SPOIL[payload](first)
        except (AttributeError, TypeError):  # not what was asked for: a dict in place of a model
            return {"same": same, "isolated": False}
        again = await function(1)
        return {"same": same, "isolated": again == pristine}

    async def nested(self, n: int) -> float:
        """`n` hits inside the computation of another cached function: seconds inside of it."""
        text = self.by_payload["str"]
        await text(635)
        took = 0.0

        async def around(product_id: int) -> str:
            nonlocal took
            await text(635)
            took = await seconds_of(text, n)
            return "around"

        await self.enclose(around)
        return took

    async def enclose(self, function: Function) -> None:
        raise NotImplementedError

    # --- misses

    async def miss(self, n: int) -> float:
        """New keys with next to no computation, each stored with two tags."""
        started = process_time()
        for number in range(start := next(self._ids) * 1_000_000, start + n):
            await self.item(number, number)
        took = process_time() - started
        await self.library.reset()
        return took

    async def stampede(self, n: int) -> dict[str, float]:
        """`n` callers of one missing key at once, whose computation waits 5 ms."""
        key = next(self._ids)
        before = functions.computed
        started = perf_counter()
        await asyncio.gather(*(self.slow(key) for _ in range(n)))
        return {"seconds": perf_counter() - started, "computed": functions.computed - before}

    # --- invalidation

    async def invalidation(self, dependents: int) -> float:
        """One invalidation of a tag that `dependents` entries carry, each stored afresh."""
        await self.library.reset()
        group = next(self._ids)
        for number in range(dependents):
            await self.item(number, group)
        for number in range(200):  # warm: what is measured is not the processor's cache
            await self.library.invalidate(f"nobody:{number}")
        started = perf_counter()
        await self.library.invalidate(f"group:{group}")
        took = perf_counter() - started
        await self.library.reset()
        return took

    async def recheck(self, n: int) -> float:
        """Hits that each come first after an invalidation of some other tag; the invalidations are not counted."""
        text, clock, took = self.by_payload["str"], perf_counter, 0.0
        await text(635)
        for _ in repeat(None, n):
            await self.library.invalidate("other")
            started = clock()
            await text(635)
            took += clock() - started
        for _ in repeat(None, n):  # what the clock costs
            started = clock()
            took -= clock() - started
        return took

    async def races(self, reads: int, seed: int) -> dict[str, int]:
        """Readers and writers of 20 versions: reads that gave less than what was invalidated before they began."""
        chance = random.Random(seed)
        keys = range(20)
        functions.written.update(dict.fromkeys(keys, 1))
        acknowledged = dict.fromkeys(keys, 0)
        done = stale = 0

        async def pause() -> None:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)

        async def write() -> None:
            while done < reads:
                key = chance.choice(keys)
                functions.written[key] = new = functions.written[key] + 1
                await pause()
                await self.library.invalidate(f"version:{key}")
                acknowledged[key] = max(acknowledged[key], new)
                await pause()
                await asyncio.sleep(0)

        async def read() -> None:
            nonlocal done, stale
            while done < reads:
                key = chance.choice(keys)
                required = acknowledged[key]
                found = await self.version(key)
                done += 1
                stale += found < required
                await asyncio.sleep(0)
                await pause()

        await self.library.reset()
        await asyncio.gather(*(read() for _ in range(16)), *(write() for _ in range(4)))
        return {"reads": done, "stale": stale}

    # --- memory

    async def memory(self, entries: int, groups: int, traced: bool) -> float:
        """Bytes an entry, beyond the text in it, which is there before. For a process that did nothing else."""
        functions.texts[:] = [f"{number:<200}" for number in range(entries)]
        await self.stored(0, 0)
        gc.collect()
        before = 0
        if traced:
            tracemalloc.start()
        else:
            before = resident()
        for number in range(1, entries):
            await self.stored(number, number % groups)
        gc.collect()
        used = tracemalloc.get_traced_memory()[0] if traced else resident() - before
        return used / (entries - 1)

    async def ratio(self, trace: list[int], entries: int) -> float:
        raise NotImplementedError


def resident() -> int:
    """The resident bytes of this process now (the most there were, where the system does not say)."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource
        import sys

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
