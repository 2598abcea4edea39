"""Writers for the matrix of transactions: one transaction each, stopped at every step, as a task or as a process.

The database is two tables with one row each, so that two writers never wait for each other: "a" is the first writer's,
"b" the second's. Both are cached under one tag.
"""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import anyio
import anyio.lowlevel
import psycopg

from asynctag import Cache
from asynctag.backends.base import Backend, Entry, Written
from asynctag.backends.memory import MemoryBackend
from asynctag.backends.redis import RedisBackend
from asynctag.lag import Lag
from asynctag.transaction import Block
from tests.redis.servers import PATIENCE

ROOT = Path(__file__).parents[2]
TAG = "x"
LEASE = 60.0
ALL = "SELECT a.value, b.value FROM a, b"
#: Where a writer stops, in this order. `killed` at one of them, it has done what the step says and nothing more.
STEPS = ["entered", "updated", "read", "leased", "updated again", "committed", "releasing", "ended"]


class Plan(NamedTuple):
    """What a writer needs to know."""

    database: str
    place: str
    cache: str
    isolation: str
    rolls_back: bool
    lag: float
    row: str
    wrong: str


# --- the databases -----------------------------------------------------------------------------------


class Session(Protocol):
    """One connection, with or without a transaction."""

    def begin(self, isolation: str, *, writes: bool) -> None: ...
    def read(self, row: str) -> int: ...
    def read_all(self) -> dict[str, int]: ...
    def write(self, row: str, value: int) -> None: ...
    def end(self, how: str) -> None: ...
    def close(self) -> None: ...


class Postgres:
    """On a primary, or on a replica of it."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)

    def begin(self, isolation: str, *, writes: bool) -> None:
        self._connection.execute(f"BEGIN ISOLATION LEVEL {isolation} READ {'WRITE' if writes else 'ONLY'}".encode())

    def read(self, row: str) -> int:
        found = self._connection.execute(f"SELECT value FROM {row}".encode()).fetchone()
        assert found is not None
        return int(found[0])

    def read_all(self) -> dict[str, int]:
        found = self._connection.execute(ALL.encode()).fetchone()
        assert found is not None
        return dict(zip("ab", found, strict=True))

    def write(self, row: str, value: int) -> None:
        self._connection.execute(f"UPDATE {row} SET value = {value}".encode())

    def end(self, how: str) -> None:
        self._connection.execute(how.encode())

    def close(self) -> None:
        self._connection.close()


class Sqlite:
    """On a file with a write-ahead log: a transaction reads one snapshot, and one of them writes at a time.

    At "read uncommitted" it shares its cache with the others of the process that do, and reads what they have written.
    """

    def __init__(self, place: str, isolation: str = "") -> None:
        dirty = isolation == "read uncommitted"
        self._connection = sqlite3.connect(
            f"file:{place}?cache={'shared' if dirty else 'private'}", uri=True, isolation_level=None
        )
        self._connection.execute(f"PRAGMA read_uncommitted = {int(dirty)}")
        self._connection.execute("PRAGMA synchronous = OFF")

    def begin(self, isolation: str, *, writes: bool) -> None:
        self._connection.execute("BEGIN")

    def read(self, row: str) -> int:
        return int(self._connection.execute(f"SELECT value FROM {row}").fetchone()[0])

    def read_all(self) -> dict[str, int]:
        return dict(zip("ab", self._connection.execute(ALL).fetchone(), strict=True))

    def write(self, row: str, value: int) -> None:
        self._connection.execute(f"UPDATE {row} SET value = {value}")

    def end(self, how: str) -> None:
        self._connection.execute(how)

    def close(self) -> None:
        self._connection.close()


def connect(database: str, place: str, isolation: str = "") -> Session:
    return Postgres(place) if database == "PostgreSQL" else Sqlite(place, isolation)


# --- the rules, each left out --------------------------------------------------------------------------


async def _lease_nothing(self: Block, names: Any, by: Any, **options: Any) -> bool:
    return True


async def _release_nothing(self: RedisBackend, tags: Any, holder: str, **options: Any) -> None:
    pass


def _store_at_once(self: Block, filler: Any, entry: Entry) -> Written:
    with suppress(StopIteration):  # memory waits for nothing
        filler.backend.write(entry).send(None)
    return Written(False)


_view = Block._view


def _stamp_each_computation(self: Block, filler: Any) -> Any:
    return _view(self, filler)._replace(stamp=None)


async def _agree(self: Block, *args: Any) -> bool:
    return True


async def _let_go(self: MemoryBackend, tags: Any, holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
    for tag in tags:
        self._leases.get(tag, {}).pop(holder, None)
        if not self._leases.get(tag):
            self._leases.pop(tag, None)


_release = Block._release


async def _release_without_lag(self: Block, names: list[str], holder: str, lag: Lag) -> None:
    await _release(self, names, holder, lag._replace(seconds=0.0))


#: What is replaced: where, under which name, by what.
WRONG: dict[str, tuple[Any, str, Any]] = {
    "nothing is leased": (Block, "_lease", _lease_nothing),
    "nothing is released": (RedisBackend, "release", _release_nothing),
    "the end lets go and invalidates nothing": (MemoryBackend, "release", _let_go),
    "stores are not kept back": (Block, "hold", _store_at_once),
    "each computation has its own stamp": (Block, "_view", _stamp_each_computation),
    "a snapshot is served what is newer": (Block, "_agrees", _agree),
    "the end does not wait for replicas": (Block, "_release", _release_without_lag),
}


# --- a writer ------------------------------------------------------------------------------------------


class RolledBackError(Exception):
    """What a writer raises that has rolled back."""


Step = Callable[[str], Awaitable[None]]


def at_release(backend: Backend, step: Callable[[], Awaitable[None]]) -> None:
    """Have `step` taken before anything is released, once."""
    release = backend.release

    async def stepping(*args: Any, **options: Any) -> None:
        del backend.release  # type: ignore[method-assign]
        await step()
        await release(*args, **options)

    backend.release = stepping  # type: ignore[method-assign]


async def write(cache: Cache, backend: Backend, plan: Plan, step: Step) -> None:
    """One transaction that changes one row, from 0 to 1 and to 2, and ends as it should."""
    session = connect(plan.database, plan.place, plan.isolation)
    try:
        transaction = cache.transaction(isolation=plan.isolation, replica_lag=plan.lag, lease=LEASE)  # type: ignore[arg-type]
        with suppress(RolledBackError):
            async with transaction:
                await step("entered")
                session.begin(plan.isolation, writes=True)
                session.write(plan.row, 1)
                await step("updated")

                async def compute() -> dict[str, int]:
                    return {plan.row: session.read(plan.row)}

                own = {plan.row: 1}
                assert await cache.get_or_set(f"{plan.row} writer", compute, tags=[TAG]) == own
                await step("read")
                await cache.invalidate(TAG)
                assert plan.wrong or await cache.get_or_set(f"{plan.row} writer", compute, tags=[TAG]) == own
                await step("leased")
                session.write(plan.row, 2)
                await step("updated again")
                session.end("ROLLBACK" if plan.rolls_back else "COMMIT")
                await step("committed")
                at_release(backend, lambda: step("releasing"))
                if plan.rolls_back:
                    raise RolledBackError
        await step("ended")
    finally:
        session.close()


class Writer(Protocol):
    """A writer that is told how far to go."""

    async def advance(self, step: str) -> None:
        """Let it go on as far as `step`, which is the next one."""

    async def end(self) -> None:
        """A process is killed, a task is cancelled."""


class Task:
    """A writer in this process, in a context of its own."""

    def __init__(self, cache: Cache, backend: Backend, plan: Plan) -> None:
        self._steps: asyncio.Queue[str] = asyncio.Queue()
        self._go = asyncio.Event()
        self._task = asyncio.create_task(self._run(cache, backend, plan), context=Context())

    async def _run(self, cache: Cache, backend: Backend, plan: Plan) -> None:
        await self._go.wait()
        await write(cache, backend, plan, self._step)

    async def _step(self, step: str) -> None:
        self._go.clear()
        self._steps.put_nowait(step)
        await self._go.wait()

    async def advance(self, step: str) -> None:
        self._go.set()
        reached = asyncio.create_task(self._steps.get())
        await asyncio.wait([reached, self._task], return_when=asyncio.FIRST_COMPLETED)
        if not reached.done():
            reached.cancel()
            self._task.result()
        assert reached.result() == step

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


class Process:
    """A writer in a process of its own, with a client of its own."""

    def __init__(self, pipe: "Connection[Any, Any]") -> None:
        self._pipe = pipe
        self._pid = pipe.recv()

    async def advance(self, step: str) -> None:
        self._pipe.send(None)
        assert self._pipe.poll(PATIENCE), f"a writer did not come to {step!r}"
        assert self._pipe.recv() == step

    async def end(self) -> None:
        if not self._pipe.closed:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            with suppress(EOFError, ConnectionResetError):
                while True:  # till it is gone
                    self._pipe.recv()
            self._pipe.close()


class Starter:
    """Starts writers in processes of their own, by a fork of one that has imported everything, in milliseconds."""

    def __init__(self) -> None:
        self._listener = Listener(family="AF_UNIX")
        self._forking = subprocess.Popen(
            [sys.executable, "-m", "tests.postgres.writers", str(self._listener.address)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._forking.stdout is not None
        assert self._forking.stdout.readline() == "ready\n"

    def start(self, plan: Plan) -> Process:
        assert self._forking.stdin is not None
        self._forking.stdin.write(json.dumps(plan) + "\n")
        self._forking.stdin.flush()
        return Process(self._listener.accept())

    def close(self) -> None:
        """It ends as its input does."""
        self._forking.communicate()
        self._listener.close()


def main() -> None:
    """Fork a writer for each line of the input."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    anyio.run(anyio.lowlevel.checkpoint)  # which imports the rest of anyio
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, ""):
        if os.fork() == 0:
            with Client(sys.argv[1]) as pipe:
                asyncio.run(run(pipe, Plan(*json.loads(line))))
            return


async def run(pipe: "Connection[Any, Any]", plan: Plan) -> None:
    """What such a process does, until it is killed."""

    async def step(name: str) -> None:
        pipe.send(name)
        pipe.recv()

    if plan.wrong:
        setattr(*WRONG[plan.wrong])
    backend = RedisBackend.from_url(plan.cache)
    cache = Cache(backend, default_ttl=1000)
    pipe.send(os.getpid())
    pipe.recv()
    await cache.get("warm")  # so that it has seen the journal
    await write(cache, backend, plan, step)
    pipe.recv()


if __name__ == "__main__":
    main()
