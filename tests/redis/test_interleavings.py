"""The interleavings that were enumerated in memory, on a real server.

What a server holds cannot be seen, and so it cannot be told which orders of steps come to the same. But each execution
of the enumeration in memory has a schedule, which can be run again: here by two clients, each with a connection of its
own. The oracle looks on, and whatever they are told has to be what they were told in memory. Of executions in which
the server is asked the same in the same order, one is run.

What was not followed further in memory, because that state had been seen before, goes on to its end here. The wrong
variants show that it would be seen if a part of the protocol were missing.
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

from asynctag import Cache, add_tags
from asynctag.backends.base import Backend, Written
from asynctag.backends.redis import RedisBackend
from asynctag.backends.redis.connection import Last, pack
from asynctag.backends.redis.format import Format
from asynctag.backends.redis.link import Known, Link, open_link
from asynctag.backends.redis.scripts import DELETE, INVALIDATE, READ, WRITE, Script
from asynctag.names import key_name
from tests.interleaving.scenarios import APART, LIGHT, OTHERWISE, SCENARIOS, explored, reader, writer
from tests.interleaving.scheduler import Explored, OnAsyncio, Replayed, Step, Violation, explore, replay
from tests.interleaving.world import Build, Clock, World, in_memory_of_two, stage
from tests.redis.servers import Server

FORMAT = Format(secret=None, compress_from=4096, max_body=4096)

Schedule = tuple[Step, ...]

#: Where every command is a step of its own, the orders are tried as far as this many executions go.
AS_FAR_AS = 300


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of failing computations need not be logged."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# --- two clients ----------------------------------------------------------------------------------


async def flush(backend: RedisBackend) -> None:
    """Everything is gone, the journal with the entries."""
    await (await backend._client.link()).connection.send(pack("FLUSHALL"), 1)


async def evict(backend: RedisBackend) -> None:
    """The journal is gone, and the entries are not."""
    await (await backend._client.link()).connection.send(pack("DEL", backend._journal), 1)


class KeepsItsConnection(RedisBackend):
    """Leaves its connection to the next, and loses what it holds in some way."""

    loss: Callable[[RedisBackend], Awaitable[None]] = staticmethod(flush)

    async def aclose(self) -> None:
        pass

    async def wipe(self) -> None:
        await self.loss(self)


class Clients:
    """Makes two clients for one execution after the other, on the same two connections.

    Each execution has a journal of its own, and the clock of its world: it goes on only if it is told to.
    """

    def __init__(self, redis: Redis, links: list[Link], kind: type[RedisBackend]) -> None:
        self._redis = redis
        self._links = links
        self._kind = kind
        self._executions = 0

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str, kind: type[RedisBackend]) -> AsyncIterator["Clients"]:
        redis = Redis.from_url(url, protocol=3)
        links = [await open_link(redis, url, connect_timeout=20, timeout=20, max_waiting=100) for _ in range(2)]
        try:
            yield cls(redis, links, kind)
        finally:
            for link in links:
                link.connection.close()

    @asynccontextmanager
    async def __call__(self, clock: Clock) -> AsyncIterator[list[Backend]]:
        self._executions += 1
        made: list[Backend] = []
        for link in self._links:
            backend = self._kind(self._redis, prefix=f"execution-{self._executions}")
            # What the connection before has learned of entries is not handed on.
            backend._client._links[asyncio.get_running_loop()] = Link(link.connection, link.run)
            backend.clock = clock  # type: ignore[method-assign]
            made.append(backend)
        yield made


# --- running again --------------------------------------------------------------------------------


def schedules_of(name: str) -> list[Schedule]:
    """Those of the enumeration in which the backend was asked something else, or in another order."""
    return [run.schedule for run in enumerated(name).different()]


def enumerated(name: str) -> Explored:
    return explored(name, clients=2 if name in APART else 1)


async def run_again(
    name: str,
    url: str,
    schedules: Iterable[Schedule],
    *,
    kind: type[RedisBackend] = KeepsItsConnection,
    as_in_memory: bool = True,
) -> tuple[int, int]:
    """Run schedules of a scenario: in how many steps, and how many of theirs could not be taken.

    `as_in_memory`: what happens is held against what happens in memory.
    """
    runtime, steps, passed_over = OnAsyncio(), 0, 0

    async def run(backends: Any, schedule: Schedule) -> Replayed:
        return await replay(stage(name, SCENARIOS[name], backends, remote=name not in LIGHT), runtime, schedule)

    async with Clients.connected(url, kind) as clients:
        for schedule in schedules:
            here = await run(clients, schedule)
            if as_in_memory:
                there = await run(in_memory_of_two, schedule)
                assert here.log == there.log
            steps += here.steps
            passed_over += len(here.passed_over)
    return steps, passed_over


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in OTHERWISE])
def test_the_enumerated_interleavings_hold(name: str, redis_server: Server) -> None:
    """What two clients are told is what they were told in memory, answer by answer. So nobody gets old data."""
    schedules = schedules_of(name)
    steps, passed_over = asyncio.run(run_again(name, redis_server.url, schedules))
    assert not passed_over
    print(f"{name}: {enumerated(name).executions} executions, {len(schedules)} to be told apart, in {steps} steps")


@pytest.mark.parametrize("loss", [RedisBackend.wipe, evict])
def test_a_journal_is_lost(loss: Callable[[RedisBackend], Awaitable[None]], redis_server: Server) -> None:
    """Where the entries of a lost journal stay, none of them is served either."""
    name = "The journal is lost while something is computed, and with it an invalidation"

    class Loses(KeepsItsConnection):
        pass

    Loses.loss = staticmethod(loss)  # type: ignore[method-assign]
    once_more = run_again(name, redis_server.url, schedules_of(name), kind=Loses, as_in_memory=False)
    _, passed_over = asyncio.run(once_more)
    assert not passed_over


# --- between two commands -------------------------------------------------------------------------


def commands_of(request: bytes) -> Iterator[bytes]:
    """The commands in what is sent at once."""
    at = 0
    while at < len(request):
        first, end = at, request.index(b"\r\n", at)
        parts, at = int(request[at + 1 : end]), end + 2
        for _ in range(parts):
            end = request.index(b"\r\n", at)
            at = end + 2 + int(request[at + 1 : end]) + 2
        yield request[first:at]


class OneByOne:
    """A connection that sends commands one at a time, and others may come between: a server promises no more."""

    def __init__(self, connection: Any, world: World) -> None:
        self._connection = connection
        self._world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def send(self, request: bytes, replies: int, last: Last | None = None) -> "asyncio.Future[list[Any]]":
        return asyncio.ensure_future(self._send(request, replies))

    async def _send(self, request: bytes, replies: int) -> list[Any]:
        first, *others = commands_of(request)
        answers = await self._connection.send(first, 1)
        for command in others:
            await self._world.point(f"goes on with {command.split()[2].decode()}")
            answers += await self._connection.send(command, 1)
        assert len(answers) == replies
        return answers


Read = Callable[[World, Cache], Callable[[], Awaitable[None]]]


def reader_of_versions(world: World, cache: Cache) -> Callable[[], Awaitable[None]]:
    """Asks for a value whose second version has one tag more than its first."""

    async def compute() -> str:
        value = await world.row("x")
        add_tags(*(["x"] if value == "x@0" else ["x", "y"]))
        return value

    return partial(world.ask, lambda: cache.get_or_set("k", compute))


def looker(world: World, cache: Cache) -> Callable[[], Awaitable[None]]:
    """Asks for what is there and fresh."""
    return partial(world.ask, lambda: cache.get("k", "nothing"), fresh=True)


def replaced(world: World, seen_by: int, read: Read) -> None:
    """Somebody invalidates an entry and stores another in its place while it is looked up."""
    here, there = world.cache(0), world.cache(1)

    async def replace() -> None:
        await writer(world, there)()
        await read(world, there)()

    world.before(read(world, world.cache(seen_by)))
    world.process("reader", looker(world, here))
    world.process("writer", replace)
    world.after(looker(world, here))


def softened(world: World, seen_by: int) -> None:
    """Somebody softly invalidates an entry and stores another in its place while it is looked up."""
    here, there = (world.cache(client, stale_while_revalidate=100) for client in (0, 1))

    async def replace() -> None:
        await writer(world, there, soft=True)()
        found = await there.lookup("k")
        await there.set("k", await world.row("x"), since=found, tags=["x"])

    world.before(reader(world, (here, there)[seen_by]))
    world.process("reader", looker(world, here))
    world.process("writer", replace)
    world.after(looker(world, here))


#: By which client an entry was seen: of one that it has seen, the reader asks in another way.
BETWEEN: dict[str, Build] = {
    "an entry that it has seen": partial(replaced, seen_by=0, read=reader),
    "an entry that it has not seen": partial(replaced, seen_by=1, read=reader),
    "one that it has seen, and gets another tag": partial(replaced, seen_by=0, read=reader_of_versions),
    "one that it has not seen, and gets another tag": partial(replaced, seen_by=1, read=reader_of_versions),
    "softly, one that it has seen": partial(softened, seen_by=0),
    "softly, one that it has not seen": partial(softened, seen_by=1),
}


async def explore_between(name: str, url: str) -> Explored:
    """Try orders in which the commands of two clients can come, each by itself: there is no state to be seen."""

    def build(world: World) -> None:
        for backend in world.backends:
            inner: Any = backend.inner
            for link in inner._client._links.values():
                link.connection = OneByOne(link.connection, world)
        BETWEEN[name](world)

    async with Clients.connected(url, KeepsItsConnection) as clients:
        return await explore(stage(name, build, clients, remote=False), OnAsyncio(), limit=AS_FAR_AS)


@pytest.mark.parametrize("name", BETWEEN)
def test_others_may_come_between_the_commands_of_a_request(name: str, redis_server: Server) -> None:
    """A read is two commands, a store too: whatever comes between them, nobody gets old data."""
    found = asyncio.run(explore_between(name, redis_server.url))
    assert found.complete or found.executions == AS_FAR_AS
    print(f"{name}: {found.executions} executions, {found.steps} steps")


# --- wrong variants -------------------------------------------------------------------------------

Break = Callable[[pytest.MonkeyPatch], "type[RedisBackend] | None"]
VARIANTS: dict[str, tuple[Break, str, type[AssertionError]]] = {}


def variant(scenario: str, *, seen_as: type[AssertionError] = Violation) -> Callable[[Break], Break]:
    """What is caught in which scenario: by the oracle, or (AssertionError) by what it does in memory."""

    def add(breaks: Break) -> Break:
        VARIANTS[(breaks.__doc__ or "").rstrip(".")] = breaks, scenario, seen_as
        return breaks

    return add


def edit(patch: pytest.MonkeyPatch, script: Script, old: str, new: str) -> None:
    """Put something else in the place of what matches `old`."""
    text, found = re.subn(old, new, script.text.decode())
    assert found, f"{script.name}.lua is another by now: look for what breaks it"
    changed = text.encode()
    patch.setattr(script, "text", changed)
    patch.setattr(script, "sha", hashlib.sha1(changed).hexdigest().encode())


@variant("Two readers and a writer", seen_as=AssertionError)
def stored_unchecked(patch: pytest.MonkeyPatch) -> None:
    """A store is not held against the journal."""
    edit(patch, WRITE, r"= why_invalid\(.*\)", "= nil")


@variant("Two readers and a writer")
def read_unchecked(patch: pytest.MonkeyPatch) -> None:
    """The script that checks what is read finds everything valid."""
    edit(patch, READ, r"= why_invalid\(.*\)", "= nil")


@variant("Two readers and a writer")
def stamped_at_the_store(patch: pytest.MonkeyPatch) -> type[RedisBackend]:
    """The stamp is taken when an entry is stored."""
    return StampsAtTheStore


class StampsAtTheStore(KeepsItsConnection):
    async def write_many(self, entries: Any) -> list[Written]:
        now = (await self.read(key_name("", "nothing"))).stamp
        for entry in entries:
            entry.stamp = now
        return await super().write_many(entries)


def patch_judge(patch: pytest.MonkeyPatch, change: Callable[[Known, Any, Any], tuple[Known, Any]]) -> None:
    """Let `change` make something else of what is known of an entry and of the journal's answer about it."""
    judge: Any = RedisBackend._judge

    def changed(self: RedisBackend, link: Link, key: str, known: Any, body: Any, answer: Any, newest: Any) -> Any:
        if known is not None and type(answer) is list and type(body) is bytes:
            known, answer = change(known, body, answer)
        return judge(self, link, key, known, body, answer, newest)

    patch.setattr(RedisBackend, "_judge", changed)


@variant("The row of a child changes while its parent is computed")
def known_tags_unchecked(patch: pytest.MonkeyPatch) -> None:
    """Of an entry that was seen before, the numbers of its tags are not looked at."""
    patch_judge(patch, lambda known, body, answer: (known, answer[:5] + [None] * len(answer[5:])))


@variant("The tags of a value are others than they were in the version before")
def known_tags_trusted(patch: pytest.MonkeyPatch) -> None:
    """An entry is taken to have the tags that it had when it was last seen."""

    def trust(known: Known, body: bytes, answer: Any) -> tuple[Known, Any]:
        return Known(known.request, known.tags, FORMAT.head(body), known.softened), answer

    patch_judge(patch, trust)


@variant("an entry that it has not seen")
def word_about_another(patch: pytest.MonkeyPatch) -> None:
    """What the script says of an entry is taken for its word on the one before, which was fetched."""
    judge: Any = RedisBackend._judge_by_script

    def trust(self: RedisBackend, link: Link, key: str, body: Any, answer: Any, newest: Any) -> Any:
        *journal, about = answer
        if about is not None and body is not None:
            answer = [*journal, [FORMAT.head(body).raw, *about[1:]]]
        return judge(self, link, key, body, answer, newest)

    patch.setattr(RedisBackend, "_judge_by_script", trust)


@variant("The journal is lost while something is computed, and with it an invalidation")
def epochs_unchecked(patch: pytest.MonkeyPatch) -> None:
    """An entry of a journal that was lost is held against the new one."""
    for script in (READ, WRITE):
        edit(patch, script, "if its_epoch ~= epoch then", "if false then")


@variant("A reader and two writers")
def numbers_not_taken(patch: pytest.MonkeyPatch) -> None:
    """An invalidation has the number that the journal had before."""
    edit(patch, INVALIDATE, r"local number = take_number\(\)", "local number = seq")


@variant("A key without tags is deleted while it is computed")
def delete_without_its_tag(patch: pytest.MonkeyPatch) -> None:
    """A deletion takes the entry away and invalidates nothing."""
    edit(patch, DELETE, r"invalidate\(take_number\(\), .*\)", "take_number()")


@variant("A child is softly invalidated under its parent")
def soft_numbers_not_kept(patch: pytest.MonkeyPatch) -> None:
    """A soft invalidation is not written down."""
    edit(patch, INVALIDATE, r"number_tags\(number, tags, '~'.*\)", "")


@variant("A child is softly invalidated while one task computes it and another builds from it")
def soft_numbers_not_told(patch: pytest.MonkeyPatch) -> None:
    """A store does not say that it was stored stale."""
    edit(patch, WRITE, "softener or false", "false")


@variant("Several keys at once, in opposite orders", seen_as=AssertionError)
def superseded_unchecked(patch: pytest.MonkeyPatch) -> None:
    """An entry takes the place of one with a newer stamp."""
    edit(patch, WRITE, "old_seq > its_seq", "false")


@pytest.mark.parametrize("wrong", VARIANTS)
def test_a_wrong_variant_is_caught(wrong: str, redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks when a rule of the protocol is left out is seen, by the oracle or by what memory says."""
    breaks, name, seen_as = VARIANTS[wrong]
    kind = breaks(monkeypatch) or KeepsItsConnection
    trial: Any
    if name in BETWEEN:
        trial = explore_between(name, redis_server.url)
    else:
        compare = seen_as is not Violation
        trial = run_again(name, redis_server.url, schedules_of(name), kind=kind, as_in_memory=compare)
    with pytest.raises(seen_as) as caught:
        asyncio.run(trial)
    assert caught.type is seen_as
    print(f"{wrong}: {str(caught.value)[:2000]}")
