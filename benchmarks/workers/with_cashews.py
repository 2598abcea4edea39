"""cashews over its memory backend: room for everything, its sweep as seldom as in its documentation.

Its protection against many misses at once is on by default and starts a task a call. It is off here where it is not
what is measured: hits take half the time without.
"""

from typing import Any

from cashews import Cache  # type: ignore[import-not-found, unused-ignore]

from benchmarks.workers.commands import Commands, Function, Library
from benchmarks.workers.line import serve


class Cashews(Library):
    name = "cashews"

    def __init__(self) -> None:
        self.cache = Cache()
        self.cache.setup("mem://", size=1_000_000, check_interval=10)

    async def start(self) -> None:
        await self.cache.init()

    def cached(self, function: Any, *tags: str) -> Function:
        return self._cached(function, tags, protected=False)

    def guarded(self, function: Any, *tags: str) -> Function:
        return self._cached(function, tags, protected=True)

    def _cached(self, function: Any, tags: tuple[str, ...], protected: bool) -> Function:
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        key = function.__name__ + "".join(f":{{{name}}}" for name in names)
        cached: Function = self.cache(ttl=3600, key=key, tags=tags, protected=protected)(function)
        return cached

    async def invalidate(self, tag: str) -> None:
        await self.cache.delete_tags(tag)

    async def reset(self) -> None:
        await self.cache.clear()


if __name__ == "__main__":
    library = Cashews()
    serve(Commands(library), library.start)
