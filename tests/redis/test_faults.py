"""Each way in which a server, or the way to it, fails: what callers get, and that all is well after it.

Reads fail open: the cache computes. What invalidates raises, with what may still be served old. Nothing hangs, and
nothing old is served once an invalidation has returned.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from hiredis import ReplyError

from asynctag import BackendError, Cache, InvalidationError
from asynctag.backends.base import Cause, Entry
from asynctag.backends.redis import RedisBackend
from asynctag.backends.redis.breaker import Breaker
from asynctag.backends.redis.replies import Outcome, outcome, refusal
from asynctag.codec import NOT_GIVEN, codec_for
from asynctag.names import ROOT, key_name, tag_name
from asynctag.testing import FakeClock
from tests.redis.faults import FAULTS, INVALIDATE, READ, STORE, Fault, NewServer, add_user
from tests.redis.proxy import Proxy
from tests.redis.servers import HOST, PATIENCE, Server

pytestmark = pytest.mark.anyio

CODEC = codec_for(NOT_GIVEN, owner="tests")
PAGE, OTHER, NOTHING = (key_name("", key) for key in ("page", "other", "nothing"))
RED, BLUE = tag_name("", "red"), tag_name("", "blue")

#: More than the breaker's.
PAUSE = 2.0

Op = Callable[[RedisBackend], Awaitable[object]]


def client_of(url: str, clock: FakeClock, **options: Any) -> RedisBackend:
    """One whose breaker goes by `clock`: nobody waits for the end of its pauses."""
    backend = RedisBackend.from_url(url, **options)
    backend._client._breaker = Breaker(clock)
    return backend


async def put(backend: RedisBackend, key: str = PAGE, value: str = "a value") -> bool:
    stamp = (await backend.read(key)).stamp
    return (await backend.write(entry(backend, stamp, key, value))).accepted


def entry(backend: RedisBackend, stamp: Any, key: str = PAGE, value: str = "a value") -> Entry:
    body, now = CODEC.encode(value), backend.clock()
    return Entry(key, body, CODEC.decode, CODEC, len(body), (key, RED), stamp, *[now + 60] * 4)


async def value(backend: RedisBackend, key: str = PAGE) -> Any:
    reading = await backend.read(key)
    if reading.entry is None:
        assert reading.miss is not None
        return reading.miss.cause
    return CODEC.decode(reading.entry.body)


READS: dict[str, Op] = {
    "a read as last time": lambda b: b.read(PAGE),
    "a read by script": lambda b: b.read(NOTHING),
    "a look-up for a person": lambda b: b.inspect(PAGE),
    "many reads": lambda b: b.read_many([PAGE, NOTHING]),
    "tags": lambda b: b.tags(PAGE),
    "an agreement": lambda b: b.agree(60),
}
STORES: dict[str, Op] = {
    "a store": lambda b: b.write(entry(b, b._client.newest, OTHER)),
    "two stores": lambda b: b.write_many([entry(b, b._client.newest, OTHER)] * 2),
}
INVALIDATIONS: dict[str, Op] = {
    "an invalidation": lambda b: b.invalidate([RED, BLUE]),
    "a soft one": lambda b: b.invalidate([RED, BLUE], soft=True),
    "a lease": lambda b: b.lease([RED, BLUE], "me", 10),
    "a release": lambda b: b.release([RED, BLUE], "me"),
    "a deletion": lambda b: b.delete(OTHER),
    "a wipe": lambda b: b.wipe(),
}
#: Of those that are not about RED and BLUE.
TAGS = {"a deletion": (OTHER,), "a wipe": (ROOT,)}


@pytest.fixture(params=FAULTS.values(), ids=FAULTS)
def fault(request: pytest.FixtureRequest) -> Fault:
    found: Fault = request.param
    return found


class Struck:
    """A server that the fault of a test can befall, and clients of it."""

    def __init__(self, fault: Fault, new_server: NewServer) -> None:
        self.fault = fault
        self.server = new_server(**fault.config)
        self.clock = FakeClock()
        self._new_server = new_server
        if fault.user:
            add_user(self.server)

    def client(self) -> RedisBackend:
        url = self.server.url.replace("redis://", f"redis://{self.fault.user}")
        return client_of(url, self.clock, timeout=self.fault.timeout, connect_timeout=self.fault.timeout)

    def during(self) -> AbstractContextManager[None]:
        return self.fault.during(self.server, self._new_server)


@pytest.fixture
def struck(fault: Fault, new_server: NewServer) -> Struck:
    return Struck(fault, new_server)


# --- what a server refuses -----------------------------------------------------------------------------


async def test_what_a_backend_says_of_a_fault(struck: Struck) -> None:
    """What is refused raises and says why, each time; the rest goes on; after the fault everything does."""
    fault, backend = struck.fault, struck.client()
    await put(backend)
    await value(backend)
    link = await backend._client.link()
    with struck.during():
        for kind, ops in {READ: READS, STORE: STORES, INVALIDATE: INVALIDATIONS}.items():
            for name, op in ops.items():
                struck.clock.advance(PAUSE)
                if kind not in fault.refuses:
                    if name != "a wipe":
                        await op(backend)
                    continue
                error = InvalidationError if kind == INVALIDATE else BackendError
                with pytest.raises(error, match=fault.says) as caught:
                    await op(backend)
                if isinstance(caught.value, InvalidationError):
                    assert caught.value.tags == TAGS.get(name, (RED, BLUE))
        assert link.connection.closed is not fault.keeps
    struck.clock.advance(PAUSE)
    assert await put(backend, value="a new one")
    assert await value(backend) == "a new one"
    await backend.invalidate([RED])
    assert await value(backend) is Cause.INVALIDATED
    await backend.aclose()


async def test_what_a_cache_does_meanwhile(struck: Struck) -> None:
    """It computes, stores what it can, and says which invalidations were not written. Nothing old is served after."""
    fault, cache = struck.fault, Cache(struck.client(), default_ttl=60)
    row, computed = "old", 0

    async def compute() -> str:
        nonlocal computed
        computed += 1
        return row

    async def read(key: str = "page") -> str:
        return await cache.get_or_set(key, compute, tags=["red"])

    async def invalidate() -> bool:
        return await cache.invalidate("red", "blue")

    async def delete() -> bool:
        return await cache.delete("page")

    async def clear() -> bool:
        return await cache.clear()

    for _ in range(2):
        assert await read() == "old"
    assert computed == 1
    with struck.during():
        for _ in range(4):  # with the breaker's help too
            assert await read() == row
            assert await read("other") == row
        assert computed == 1 + 8 if READ in fault.refuses else 1 + 4
        row = "new"
        if INVALIDATE in fault.refuses:
            for way, tags in ((invalidate, ("red", "blue")), (delete, ("key page",)), (clear, None)):
                struck.clock.advance(PAUSE)
                with pytest.raises(InvalidationError, match=fault.says) as caught:
                    await way()
                assert caught.value.tags == (tags or caught.value.tags)
        else:
            await invalidate()
            assert await read() == "new"
        async with Cache(struck.client(), default_ttl=60):
            pass  # that it does not answer is no obstacle
    struck.clock.advance(PAUSE)
    await cache.invalidate("red")
    computed = 0
    for _ in range(3):
        assert await read() == "new"
        assert await read("other") == "new"
    assert computed == 2
    await cache.aclose()


# --- what every refusal means --------------------------------------------------------------------------

MEANINGS = {
    "LOADING Redis is loading the dataset in memory": (Outcome.PAUSE, "loading its data"),
    "BUSY Redis is busy running a script.": (Outcome.PAUSE, "script that does not end"),
    "MASTERDOWN Link with MASTER is down": (Outcome.PAUSE, "lost its master"),
    "READONLY You can't write against a read only replica.": (Outcome.MOVE, "read-only replica"),
    "NOAUTH Authentication required.": (Outcome.MOVE, "wants a password"),
    "WRONGPASS invalid username-password pair": (Outcome.MOVE, "refuses the password"),
    "NOREPLICAS Not enough good replicas to write.": (Outcome.KEEP, "min-replicas-to-write"),
    "OOM command not allowed when used memory > 'maxmemory'.": (Outcome.KEEP, "maxmemory-policy"),
    "MISCONF Redis is configured to save RDB snapshots": (Outcome.KEEP, "cannot save"),
    "NOPERM this user has no permissions": (Outcome.KEEP, "ACL forbids"),
    "WRONGTYPE Operation against a key holding the wrong kind of value": (Outcome.KEEP, "choose another prefix"),
    "ERR something that nobody has thought of": (Outcome.KEEP, "that nobody has thought of"),
}


@pytest.mark.parametrize("said", MEANINGS)
def test_what_a_refusal_means(said: str) -> None:
    """What becomes of the connection, and what callers are told: the meaning, and the server's own words."""
    becomes, meaning = MEANINGS[said]
    reply = ReplyError(said)
    assert outcome(reply) is becomes
    error = refusal(reply, "Redis at here")
    assert isinstance(error, BackendError)
    assert meaning in str(error)
    assert said in str(error)
    assert "Redis at here" in str(error)


@pytest.mark.parametrize(
    "said", ["MOVED 3999 127.0.0.1:6381", "ASK 3999 127.0.0.1:6381", "CROSSSLOT Keys", "CLUSTERDOWN", "TRYAGAIN"]
)
def test_what_only_a_cluster_says(said: str) -> None:
    """It has been exchanged for one since we connected: a node of a cluster is refused by then."""
    error = refusal(ReplyError(said), "Redis at here")
    assert "node of a Redis Cluster" in str(error)
    assert said in str(error)


# --- what is lost on the way ---------------------------------------------------------------------------


@pytest.fixture
def proxy(redis_server: Server) -> Iterator[Proxy]:
    with Proxy(redis_server.address) as one:
        yield one


@pytest.fixture
async def backend(proxy: Proxy) -> AsyncIterator[RedisBackend]:
    one = client_of(proxy.url, FakeClock())
    yield one
    await one.aclose()


def seq(server: Server) -> int:
    return int(-server.run("ZSCORE", "{asynctag}journal", "seq"))


@pytest.mark.parametrize("name", READS | INVALIDATIONS)
async def test_a_lost_reply_is_asked_for_again(backend: RedisBackend, proxy: Proxy, name: str) -> None:
    """The connection is closed between command and reply: the caller does not notice."""
    op = (READS | INVALIDATIONS)[name]
    await put(backend)
    expected = await op(backend)
    connections = proxy.connections
    proxy.cut()
    again = await op(backend)
    assert type(again) is type(expected)
    assert proxy.connections == connections + 1
    await backend.release([RED, BLUE], "me")
    assert await put(backend, value="a new one")
    assert await value(backend) == "a new one"


@pytest.mark.parametrize("name", STORES)
async def test_a_store_whose_reply_is_lost_is_not_repeated(backend: RedisBackend, proxy: Proxy, name: str) -> None:
    """It is said, and what was stored is served, or would be refused: it is valid or it is not."""
    await put(backend)
    proxy.cut()
    with pytest.raises(BackendError, match="closed the connection"):
        await STORES[name](backend)
    assert await value(backend, OTHER) == "a value"
    await backend.invalidate([RED])
    assert await value(backend, OTHER) is Cause.INVALIDATED


async def test_an_invalidation_that_ran_twice_does_no_harm(
    backend: RedisBackend, proxy: Proxy, redis_server: Server
) -> None:
    """It takes another number: what was read in between the two is computed once more, that is all."""
    await put(backend)
    before = seq(redis_server)
    proxy.cut()
    await backend.invalidate([RED])
    assert seq(redis_server) == before + 2
    assert await value(backend) is Cause.INVALIDATED
    assert await put(backend)


async def test_a_lease_whose_reply_was_lost_is_not_said_to_have_gone_on(
    backend: RedisBackend, proxy: Proxy, redis_server: Server
) -> None:
    """The second time finds what the first has put there: whether it was held before that is not known."""
    await backend.lease([RED], "me", 30)
    redis_server.run("HSET", "{asynctag}lease:" + RED, "me", 1)  # it ended long ago
    await backend.invalidate([BLUE])  # which settles it
    proxy.cut()
    assert await backend.lease([RED], "me", 30) is False
    assert await backend.lease([RED], "me", 30) is True


async def test_an_invalidation_that_can_be_written_nowhere_is_said(
    backend: RedisBackend, proxy: Proxy, redis_server: Server
) -> None:
    """Its reply is lost, and then the server: it raises, whatever the first time has done."""
    await put(backend)
    connections = proxy.connections
    proxy.cut_each()
    with pytest.raises(InvalidationError, match="tag red, tag blue") as caught:
        await backend.invalidate([RED, BLUE])
    assert caught.value.tags == (RED, BLUE)
    assert proxy.connections == connections + 1  # once more, and not for ever
    proxy.mend()
    await backend.invalidate([RED, BLUE])
    assert await value(backend) is Cause.INVALIDATED


async def test_a_reply_that_is_cut_is_no_reply(backend: RedisBackend, proxy: Proxy) -> None:
    """At whichever byte it ends: the value is whole, on both ways to read one."""
    text = "\r\n$-1\r\n*2\r\n" * 3
    await put(backend, value=text)
    assert await value(backend) == text
    link, before = await backend._client.link(), proxy.replied
    await value(backend)
    by_zmscore = proxy.replied - before
    link.known.clear()
    before = proxy.replied
    await value(backend)
    by_script = proxy.replied - before
    for length, forget in ((by_zmscore, False), (by_script, True)):
        for after in range(0, length, 5):
            link = await backend._client.link()
            await value(backend)
            if forget:
                link.known.clear()
            proxy.cut(after=after)
            assert await value(backend) == text
            assert link.connection.closed


async def test_an_invalidation_counts_wherever_its_reply_is_cut(backend: RedisBackend, proxy: Proxy) -> None:
    """Before it returns, it is written."""
    await put(backend)
    before = proxy.replied
    await backend.invalidate([BLUE])
    length = proxy.replied - before
    for after in range(0, length, 4):
        assert await put(backend)
        assert await value(backend) == "a value"
        proxy.cut(after=after)
        await backend.invalidate([RED])
        proxy.mend()
        assert await value(backend) is Cause.INVALIDATED


async def test_a_command_that_is_cut_is_not_run(backend: RedisBackend, proxy: Proxy, redis_server: Server) -> None:
    """Half of it arrives, and the connection ends: the server drops it, and it is sent again."""
    await put(backend)
    for after in (0, 1, 20, 60):
        before = seq(redis_server)
        proxy.cut_requests(after=after)
        await backend.invalidate([RED])
        assert seq(redis_server) == before + 1
        assert await value(backend) is Cause.INVALIDATED


@pytest.mark.parametrize("after", [0, 1, 200, 1000, 3000, 6000, 9000])
async def test_many_callers_lose_one_connection(proxy: Proxy, after: int) -> None:
    """Each gets what it asked for, from one new connection: those whose replies had come, and those whose had not."""
    cache = Cache(client_of(proxy.url, FakeClock()), default_ttl=60)
    rows = {str(row): 0 for row in range(60)}

    async def read(row: str) -> int:
        async def compute() -> int:
            return rows[row]

        return await cache.get_or_set(row, compute, tags=[f"row:{row}"])

    await asyncio.gather(*map(read, rows))
    await asyncio.gather(*map(read, rows))
    connections = proxy.connections
    rows = dict.fromkeys(rows, 1)
    proxy.cut(after=after)
    changed = list(rows)[::2]
    written = asyncio.gather(*(cache.invalidate(f"row:{row}") for row in changed))
    found = await asyncio.gather(*map(read, rows))
    assert await written == [True] * len(changed)
    assert set(found) <= {0, 1}
    assert proxy.connections == connections + 1
    assert [await read(row) for row in changed] == [1] * len(changed)
    await cache.aclose()


# --- what takes too long -------------------------------------------------------------------------------


async def test_a_reply_that_does_not_come_in_time(proxy: Proxy, redis_server: Server) -> None:
    """It raises, and is not asked for again: the server is busy. When it comes, nobody takes it for another's."""
    clock = FakeClock()
    backend = client_of(proxy.url, clock, timeout=0.05)
    await put(backend)
    await put(backend, OTHER, "another value")
    for op in (*READS.values(), *STORES.values(), *INVALIDATIONS.values()):
        await put(backend)
        await value(backend)
        connections = proxy.connections
        proxy.hold()
        with pytest.raises(BackendError, match=r"did not reply within 0\.05 s"):
            await op(backend)
        assert proxy.held.is_set()
        assert proxy.connections == connections
        proxy.mend()
        clock.advance(PAUSE)
        await backend.release([RED, BLUE], "me")
    before = seq(redis_server)
    proxy.hold()
    with pytest.raises(InvalidationError, match=r"within 0\.05 s"):
        await backend.invalidate([RED])
    proxy.mend()
    assert seq(redis_server) == before + 1
    clock.advance(PAUSE)
    await put(backend)
    await put(backend, OTHER, "another value")
    assert (
        await asyncio.gather(*(value(backend, key) for key in (PAGE, OTHER) * 10)) == ["a value", "another value"] * 10
    )
    await backend.aclose()


async def test_a_connection_that_is_not_made_in_time(proxy: Proxy) -> None:
    """Somebody accepts it, and says nothing."""
    clock = FakeClock()
    cache = Cache(client_of(proxy.url, clock, connect_timeout=0.05), default_ttl=60)
    proxy.hold()
    assert await cache.get_or_set("page", one) == 1
    with pytest.raises(InvalidationError, match=r"no connection to .* within 0\.05 s"):
        await cache.invalidate("red")
    proxy.mend()
    clock.advance(PAUSE)
    assert await cache.invalidate("red")
    await cache.aclose()


async def one() -> int:
    return 1


async def test_an_outage_costs_callers_no_more_than_the_timeout(proxy: Proxy) -> None:
    """However many they are: they wait side by side, for the same two connections at most."""
    timeout, callers = 0.2, 200
    cache = Cache(client_of(proxy.url, FakeClock(), timeout=timeout, connect_timeout=timeout), default_ttl=60)
    await cache.get_or_set("page", one)
    connections = proxy.connections
    proxy.hold()
    started = time.monotonic()
    assert await asyncio.gather(*(cache.get_or_set(f"page {n}", one) for n in range(callers))) == [1] * callers
    assert time.monotonic() - started < callers * timeout / 4
    assert proxy.connections <= connections + 1
    proxy.mend()
    await cache.aclose()


async def test_nobody_is_cancelled_who_waits_for_a_connection_that_is_closed(proxy: Proxy) -> None:
    """`aclose` while one is made: those who wait get an error, not a cancellation that nobody has asked for."""
    backend = client_of(proxy.url, FakeClock())
    proxy.hold()
    reading = asyncio.create_task(backend.read(PAGE))
    await asyncio.to_thread(proxy.held.wait, PATIENCE)
    await backend.aclose()
    with pytest.raises(BackendError):
        await reading
    proxy.mend()
    assert await value(backend) is Cause.ABSENT
    await backend.aclose()


# --- what is no server of ours any more -----------------------------------------------------------------


async def _http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As a balancer does that has nobody to lead to."""
    writer.write(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
    await writer.drain()
    writer.close()


@pytest.mark.parametrize("by", ["a cluster", "a balancer"])
async def test_a_server_that_was_exchanged(proxy: Proxy, redis_server: Server, new_server: NewServer, by: str) -> None:
    """It has worked, so it is an outage, and no mistake of who configured the cache: reads fail open."""
    clock = FakeClock()
    cache = Cache(client_of(proxy.url, clock), default_ttl=60)
    await cache.get_or_set("page", one, tags=["red"])
    says = "node of a Redis Cluster" if by == "a cluster" else "does not answer as Redis does"
    async with await asyncio.start_server(_http, HOST, 0) as balancer:
        node = new_server(cluster_enabled="yes").address
        proxy.turn_to(node if by == "a cluster" else balancer.sockets[0].getsockname())
        assert await cache.get_or_set("page", one, tags=["red"]) == 1
        with pytest.raises(InvalidationError, match=says) as caught:
            await cache.invalidate("red")
        assert caught.value.tags == ("red",)
        assert await cache.invalidate("blue", queue=True) is False
        proxy.turn_to(redis_server.address)
    clock.advance(PAUSE)
    assert await cache.invalidate("red")
    assert cache.queued_invalidations == ()
    await cache.aclose()
