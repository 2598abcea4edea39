"""Readers and writers at work while a test breaks the server under them, and an oracle that knows what is too old.

The data are rows with a version, kept here. A writer raises a row's version and invalidates it; the version counts as
acknowledged once that has returned without an error, and not before: until then the writer tries again. A reader notes
what is acknowledged *before* it begins; what it gets may be newer, and never older.

The load runs in threads, each with an event loop, on the same caches; the test itself stays in the main thread.
"""

import asyncio
import faulthandler
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from asynctag import Cache, InvalidationError
from asynctag.backends.redis import RedisBackend
from tests.redis.servers import eventually

#: Seconds: for one operation, and for what a test waits for. Neither is ever used up unless something hangs.
PER_OPERATION, PATIENCE = 10.0, 20.0

ROWS = 20

_computed: ContextVar[list[int]] = ContextVar("computed")


class StaleError(AssertionError):
    """Something was served that was older than an acknowledged invalidation."""


class HangError(AssertionError):
    """Something did not end."""


class Rows:
    """The database: a version for each row. Loads may share it; each knows what it has acknowledged itself."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.versions = [0] * ROWS


class Client:
    """A cache on a backend of its own, as another process has it."""

    def __init__(self, backend: RedisBackend, rows: Rows) -> None:
        self.backend = backend
        self.rows = rows
        self.cache = cache = Cache(backend, default_ttl=300)

        @cache.cached(name="row", tags=["row:{number}"])
        async def row(number: int) -> int:
            return await self.load(number)

        @cache.cached(name="page")
        async def page(number: int) -> list[int]:
            _count()
            return list(await asyncio.gather(*map(row, near(number))))

        @cache.cached(name="shelf")
        async def shelf(number: int) -> list[list[int]]:
            _count()
            return [await page(one) for one in near(number)]

        self.row, self.page, self.shelf = row, page, shelf

    async def load(self, number: int) -> int:
        """As from a database: what is read there is old by the time it arrives."""
        _count()
        version = self.rows.versions[number]
        await asyncio.sleep(random.choice((0, 0, 0, 0.002)))
        return version

    async def read(self, kind: str, number: int) -> dict[int, int]:
        """The versions of the rows that were shown."""
        if kind == "row":
            return {number: await self.row(number)}
        if kind == "key":
            key = f"row {number}"
            return {number: await self.cache.get_or_set(key, lambda: self.load(number), tags=[f"row:{number}"])}
        if kind == "page":
            return dict(zip(near(number), await self.page(number), strict=True))
        if kind == "many":
            return await self._many(number)
        found: dict[int, int] = {}
        for page, versions in zip(near(number), await self.shelf(number), strict=True):
            for row, version in zip(near(page), versions, strict=True):
                found[row] = min(version, found.get(row, version))
        return found

    async def _many(self, number: int) -> dict[int, int]:
        async def build(keys: list[str]) -> dict[str, int]:
            return dict(zip(keys, await asyncio.gather(*(self.load(int(key)) for key in keys)), strict=True))

        keys = map(str, near(number))
        found = await self.cache.get_or_set_many(keys, build, tags=lambda key: [f"row:{key}"])
        return {int(key): version for key, version in found.items()}


KINDS = ("row", "key", "page", "many", "shelf")


def near(number: int) -> list[int]:
    return [number, (number + 1) % ROWS, (number + 5) % ROWS]


def rows_of(kind: str, number: int) -> list[int]:
    if kind in ("row", "key"):
        return [number]
    if kind == "shelf":
        return [row for page in near(number) for row in near(page)]
    return near(number)


def _count() -> None:
    _computed.get()[0] += 1


class Load:
    """What runs until the block is left. `reads`, `hits` and the others grow meanwhile.

    `tried` counts invalidations that were begun, `failed` those that raised. `acked` is what reads are held against,
    with what is added to `oracles`.
    """

    def __init__(
        self,
        backends: Sequence[Callable[[], RedisBackend]],
        *,
        rows: Rows | None = None,
        threads: int = 2,
        readers: int = 4,
        writers: int = 1,
    ) -> None:
        self.rows = rows or Rows()
        self._new = backends[0]
        self.clients = [Client(new(), self.rows) for new in backends]
        self.acked = [0] * ROWS
        self.oracles: list[list[int]] = [self.acked]
        self.reads = self.hits = self.computed = self.invalidations = self.failed = self.tried = 0
        self.longest = 0.0
        self.epochs: set[int] = set()
        self.stale: list[str] = []
        self.errors: list[BaseException] = []
        self._may_read, self._may_write = threading.Event(), threading.Event()
        self._may_read.set()
        self._may_write.set()
        self._under_way: set[object] = set()
        self._stopping = False
        self._readers, self._writers = readers, writers
        self._threads = [
            threading.Thread(target=self._run, args=[seed], name=f"load {seed}", daemon=True) for seed in range(threads)
        ]

    # --- for the test ------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._may_read.set()
        self._may_write.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            if thread.is_alive():
                faulthandler.dump_traceback(sys.__stderr__)
                raise HangError(f"{thread.name} does not end") from error
        if error is None:
            self._check()
            asyncio.run(self._look_at_all(self.clients))
            self._check()

    def go_on(self, **more: int) -> None:
        """Wait until so many more have been counted: `hits=100`, `failed=1`."""
        goals = {name: getattr(self, name) + number for name, number in more.items()}

        def reached() -> bool:
            self._check()
            return all(getattr(self, name) >= goal for name, goal in goals.items())

        eventually(f"{more} more than {self.figures()}", reached, seconds=PATIENCE)

    @contextmanager
    def without_writers(self) -> Iterator[None]:
        """No invalidation is begun within the block."""
        self._may_write.clear()
        try:
            yield
        finally:
            self._may_write.set()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Nothing is under way within the block; connections stay as they are."""
        self._may_read.clear()
        with self.without_writers():
            try:
                eventually("the end of what is under way", lambda: not self._under_way, seconds=PATIENCE)
                yield
            finally:
                self._may_read.set()

    def newcomer(self) -> None:
        """Have a client look at everything that has seen nothing yet, as a process does that was just started."""
        asyncio.run(self._look_at_all([Client(self._new(), self.rows)]))
        self._check()

    def figures(self) -> dict[str, Any]:
        return {
            "reads": self.reads,
            "hits": self.hits,
            "computed": self.computed,
            "invalidations": self.invalidations,
            "failed": self.failed,
            "epochs": len(self.epochs),
            "longest": f"{self.longest:.2f} s",
            "stale": len(self.stale),
        }

    def report(self, what: str, times: int) -> None:
        """Write a row of the table in the docs, where ASYNCTAG_FIGURES names a file."""
        if path := os.environ.get("ASYNCTAG_FIGURES"):
            with Path(path).open("a") as file:
                file.write(f"| {what} | {times} | {' | '.join(str(one) for one in self.figures().values())} |\n")

    def _check(self) -> None:
        if self.errors:
            raise self.errors[0]
        if self.stale:
            raise StaleError(f"{len(self.stale)} stale reads of {self.reads}, such as {self.stale[0]}")

    # --- at work -----------------------------------------------------------------------------------

    def _run(self, seed: int) -> None:
        try:
            asyncio.run(self._work(random.Random(seed)))
        except BaseException as error:
            self.errors.append(error)

    async def _work(self, chance: random.Random) -> None:
        async with asyncio.TaskGroup() as group:
            for client in self.clients:
                for _ in range(self._readers):
                    group.create_task(self._read_on(client, random.Random(chance.random())))
                for _ in range(self._writers):
                    group.create_task(self._write_on(client, random.Random(chance.random())))
        for client in self.clients:
            await client.cache.aclose()

    async def _read_on(self, client: Client, chance: random.Random) -> None:
        while not self._stopping:
            with self._one_under_way(self._may_read) as may:
                if may:
                    await self._read(client, chance.choice(KINDS), chance.randrange(ROWS))
            await asyncio.sleep(0 if may else 0.001)

    @contextmanager
    def _one_under_way(self, allowed: threading.Event) -> Iterator[bool]:
        """Whether it may begin. It is under way before that is looked at, so that nobody misses it."""
        one = object()
        self._under_way.add(one)
        try:
            yield allowed.is_set()
        finally:
            self._under_way.discard(one)

    async def _read(self, client: Client, kind: str, number: int) -> None:
        expected = [
            (row, max(oracle[row] for oracle in self.oracles)) for row in rows_of(kind, number)
        ]  # before it begins
        counter = [0]
        _computed.set(counter)
        found = await self._in_time(client.read(kind, number), f"{kind} {number}")
        self.reads += 1
        self.hits += not counter[0]
        self.computed += counter[0]
        self.epochs.add(client.backend._client.newest.epoch)
        for row, version in expected:
            if found[row] < version:
                self.stale.append(
                    f"row {row} in {kind} {number}: version {found[row]}, when {version} was acknowledged"
                    f"{'' if counter[0] else ', a hit'}"
                )

    async def _write_on(self, client: Client, chance: random.Random) -> None:
        # By the number of reads, so that there are as many hits on a slow machine as on a fast one.
        turn = self.reads
        while not self._stopping:
            with self._one_under_way(self._may_write) as may:
                if may and self.reads >= turn:
                    await self._write(client, chance.sample(range(ROWS), chance.choice((1, 1, 2))))
                    turn = self.reads + chance.randrange(60)
            await asyncio.sleep(0.001)

    async def _write(self, client: Client, numbers: list[int]) -> None:
        written = {}
        with self.rows.lock:
            for number in numbers:
                self.rows.versions[number] += 1
                written[number] = self.rows.versions[number]
        while True:
            self.tried += 1
            try:
                await self._in_time(client.cache.invalidate(*(f"row:{one}" for one in numbers)), "an invalidation")
            except InvalidationError as error:
                if set(error.tags) != {f"row:{one}" for one in numbers}:
                    raise
                self.failed += 1
                if self._stopping:
                    return  # it never was acknowledged
                await asyncio.sleep(0.005)
            else:
                break
        self.invalidations += 1
        with self.rows.lock:
            for number, version in written.items():
                self.acked[number] = max(self.acked[number], version)

    async def _in_time(self, work: Any, what: str) -> Any:
        started = time.monotonic()
        try:
            async with asyncio.timeout(PER_OPERATION):
                return await work
        except TimeoutError:
            raise HangError(f"{what} took more than {PER_OPERATION} s") from None
        finally:
            self.longest = max(self.longest, time.monotonic() - started)

    async def _look_at_all(self, clients: Sequence[Client]) -> None:
        """Whatever is cached, whoever asks: nothing is older than what was written last."""
        for client in clients:
            for kind in KINDS:
                for number in range(ROWS):
                    await self._read(client, kind, number)
            await client.cache.aclose()
