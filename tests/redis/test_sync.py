"""The cache without an event loop, on a real server: one round trip each, and what connections that block add to it."""

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.sentinel import Sentinel as SentinelClient
from redis.exceptions import RedisError
from redis.sentinel import Sentinel as SyncSentinelClient

from asynctag import Cache, Cause, ConfigurationError, InvalidationError
from asynctag.backends.redis import RedisBackend, blocking
from asynctag.sync import at_once
from tests.redis.proxy import Proxy
from tests.redis.servers import Sentinel, Server, end_leases, eventually
from tests.redis.test_connection import certificate, with_tls
from tests.redis.watching import watching

__all__ = ["certificate"]

ROOT = Path(__file__).parents[2]

#: Longer than any step takes on a busy machine, in seconds.
PATIENCE = 20.0

NewServer = Callable[..., Server]


@contextmanager
def caching(backend: RedisBackend) -> Iterator[Cache]:
    cache = Cache(backend, default_ttl=60)
    with closing(cache.sync):
        yield cache


@pytest.fixture
def cache(redis_server: Server) -> Iterator[Cache]:
    with caching(RedisBackend.from_url(redis_server.url)) as one:
        yield one


@pytest.fixture
def other(redis_server: Server) -> Cache:
    """Another client of the same journal, as another process has it. Of what it asks, each has a loop of its own."""
    return Cache(RedisBackend.from_url(redis_server.url), default_ttl=60)


def ask(cache: Cache, work: Callable[[], Any]) -> Any:
    """What comes of async `work`, which leaves no connection behind."""

    async def run() -> Any:
        try:
            return await work()
        finally:
            await cache.aclose()

    return anyio.run(run)


def stored(cache: Cache, *keys: str) -> None:
    async def compute() -> str:
        return "a value"

    async def put() -> None:
        for key in keys:
            await cache.get_or_set(key, compute, tags=[key])

    ask(cache, put)


def cause(cache: Cache, key: str = "x") -> Cause | None:
    """Why what is stored under a key is no hit; None for a hit."""
    explained = ask(cache, lambda: cache.explain(key))
    return None if explained.hit else explained.cause


def transaction(cache: Cache) -> None:
    with cache.sync.transaction():
        cache.sync.invalidate("x", "y")
        cache.sync.invalidate("z")


def connections(server: Server) -> int:
    """Those of clients other than the one that asks."""
    return len(server.run("CLIENT", "LIST").decode().splitlines()) - 1


def number(server: Server) -> int:
    """The last number that the journal has given."""
    return int(-float(server.run("ZSCORE", "{asynctag}journal", "seq")))


def ends_of_leases(server: Server) -> list[int]:
    """When each holder's lease of "x" ends. The tag's own number stands beside them, negative."""
    return [end for end in map(int, server.run("HVALS", "{asynctag}lease:" + tag("x"))) if end > 0]


# --- round trips ---------------------------------------------------------------------------------------

OPERATIONS: dict[str, tuple[Callable[[Cache], object], int]] = {
    "an invalidation": (lambda cache: cache.sync.invalidate("x"), 1),
    "of many tags": (lambda cache: cache.sync.invalidate(*map(str, range(300))), 1),
    "a soft one": (lambda cache: cache.sync.invalidate("x", soft=True), 1),
    "one with a lag": (lambda cache: cache.sync.invalidate("x", replica_lag=5), 1),
    "all": (lambda cache: cache.sync.clear(), 1),
    "a deletion": (lambda cache: cache.sync.delete("x"), 1),
    "a transaction of two": (transaction, 3),
    "a transaction of none": (lambda cache: cache.sync.transaction()(lambda: None)(), 0),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_one_round_trip(name: str, cache: Cache, redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each call, whatever the number of tags, and for a transaction's end; none for what sends nothing."""
    monkeypatch.setattr(blocking, "ASKED_AGE", PATIENCE)
    operation, trips = OPERATIONS[name]
    operation(cache)
    cache.sync.invalidate("x")
    with watching(redis_server) as seen:
        operation(cache)
    assert seen.commands == ["EVALSHA"] * trips
    assert seen.reads == trips


def test_who_the_server_is_comes_in_the_same_round_trip(
    cache: Cache, redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked once a second, before the command, and answered with it."""
    monkeypatch.setattr(blocking, "ASKED_AGE", 0.0)
    cache.sync.invalidate("x")
    asked = int(redis_server.info("commandstats")["cmdstat_info"].partition(",")[0].removeprefix("calls="))
    with watching(redis_server) as seen:
        cache.sync.invalidate("x")
    assert seen.reads == 1
    assert int(redis_server.info("commandstats")["cmdstat_info"].partition(",")[0].removeprefix("calls=")) > asked


# --- the other side sees it ----------------------------------------------------------------------------

WRITER = """
import sys
from asynctag import Cache
from asynctag.backends.redis import RedisBackend

cache = Cache(RedisBackend.from_url(sys.argv[1]), default_ttl=60)

def change(row):
    with cache.sync.transaction(lease=float(sys.argv[2])):
        cache.sync.invalidate(row)
        print("held", flush=True)
        sys.stdin.readline()
    print("over", flush=True)

for line in sys.stdin:
    what, row = line.split()
    if what == "change":
        change(row)
    else:
        cache.sync.invalidate(row)
        print("invalidated", flush=True)
cache.sync.close()
"""


class Writer:
    """A process without an event loop, led step by step."""

    def __init__(self, server: Server, lease: float = 30) -> None:
        command = [sys.executable, "-W", "error", "-c", WRITER, server.url, str(lease)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, line: str) -> str:
        """What it says to that."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> int:
        self.process.communicate(timeout=PATIENCE)
        return self.process.returncode


@pytest.fixture
def writer(redis_server: Server) -> Iterator[Writer]:
    with closing(Writer(redis_server)) as one:
        yield one


def test_a_writer_and_a_reader_in_two_processes(writer: Writer, other: Cache) -> None:
    """What the one has invalidated, or holds, the other is not served; and after the end it has hits again."""
    stored(other, "x")
    assert writer.tell("invalidate x") == "invalidated"
    assert cause(other) is Cause.INVALIDATED
    stored(other, "x")
    assert cause(other) is None
    assert writer.tell("change x") == "held"
    assert cause(other) is Cause.LEASED
    stored(other, "x")
    assert cause(other) is Cause.LEASED
    assert writer.tell("commit") == "over"
    assert cause(other) is Cause.INVALIDATED
    stored(other, "x")
    assert cause(other) is None
    assert writer.end() == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_holder_that_dies(redis_server: Server, other: Cache, how: signal.Signals) -> None:
    """Its lease ends by its time, and counts as an invalidation: what was there before is not served, others store."""
    stored(other, "x")
    with closing(Writer(redis_server, lease=0.3)) as writer:
        assert writer.tell("change x") == "held"
        writer.process.send_signal(how)
        writer.process.wait(PATIENCE)
    assert cause(other) is Cause.LEASED

    def is_stored() -> bool:
        stored(other, "x")
        return cause(other) is None

    eventually("a store after the lease's end", is_stored)


def test_a_living_holder_goes_on_holding(redis_server: Server, other: Cache) -> None:
    """Longer than its lease lasts, with nothing that goes on in it but the thread that renews."""
    stored(other, "x")
    with closing(Writer(redis_server, lease=0.5)) as writer:
        assert writer.tell("change x") == "held"
        ends: set[int] = set()

        def renewed() -> bool:
            ends.update(ends_of_leases(redis_server))
            return len(ends) > 4  # each after a third of a lease

        eventually("four renewals", renewed)
        stored(other, "x")
        assert cause(other) is Cause.LEASED
        assert writer.tell("commit") == "over"
    stored(other, "x")
    assert cause(other) is None


def tag(name: str) -> str:
    return f"|t|{name}"


# --- the journal's identity ----------------------------------------------------------------------------


def test_a_server_of_before(new_server: NewServer) -> None:
    """A process that wrote to another server meanwhile begins a new epoch: this one has missed what it invalidated."""
    first, second = new_server(), new_server()
    reader = Cache(RedisBackend.from_url(first.url), default_ttl=60)
    with Proxy(second.address) as address, caching(RedisBackend.from_url(address.url)) as cache:
        stored(reader, "x")
        cache.sync.invalidate("x")
        assert cause(reader) is None
        address.turn_to(first.address)
        cache.sync.invalidate("y")
        assert cause(reader) is Cause.LOST


def test_a_journal_that_went_back(cache: Cache, other: Cache, redis_server: Server) -> None:
    """Numbers that this process knows are gone, on the same connection: a new epoch begins."""
    stored(other, "x", "y")
    cache.sync.invalidate("y")
    for _ in range(5):
        cache.sync.invalidate("z")
    redis_server.run("ZADD", "{asynctag}journal", -(number(redis_server) - 4), "seq")
    assert cause(other) is None
    cache.sync.invalidate("z")
    assert cause(other) is Cause.LOST


def test_each_side_knows_what_the_other_has_seen(redis_server: Server, other: Cache) -> None:
    """What the sync side was acknowledged is what the async side expects of the journal, and the other way round."""
    with caching(RedisBackend.from_url(redis_server.url)) as cache:
        stored(other, "x")
        before = number(redis_server)
        cache.sync.invalidate("y")
        cache.sync.invalidate("y")
        redis_server.run("ZADD", "{asynctag}journal", -before, "seq")
        assert cause(cache) is Cause.LOST  # read by the async side


def test_a_server_that_became_another_keeps_its_connections(
    new_server: NewServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A master that was demoted, took over older data and was promoted again: its first answer is not trusted.

    The journal that it has then is its own, and its numbers tell nothing.
    """
    monkeypatch.setattr(blocking, "ASKED_AGE", 0.0)
    server, replica = new_server(), new_server()
    with caching(RedisBackend.from_url(server.url)) as cache:
        cache.sync.invalidate("x")
        replica.replicate(server)
        cache.sync.invalidate("x")  # the first replica of a server changes its identity
        eventually("a replica that has everything", lambda: number(replica) == number(server))
        replica.promote()
        before = cache._filling().backend.newest()
        cache.sync.invalidate("x")
        assert cache._filling().backend.newest().epoch == before.epoch
        replica.run("ZADD", "{asynctag}journal", -100, "seq")
        kept = server.run("CLIENT", "LIST", "TYPE", "normal").decode()
        server.replicate(replica)
        server.promote()
        cache.sync.invalidate("y")
        assert cache._filling().backend.newest().epoch != before.epoch
        assert kept.count("cmd=evalsha") == 1


def test_a_demoted_master_is_left(new_server: NewServer) -> None:
    """It refuses; the error says what it is."""
    server, master = new_server(), new_server()
    with caching(RedisBackend.from_url(server.url)) as cache:
        cache.sync.invalidate("x")
        server.replicate(master)
        with pytest.raises(InvalidationError, match="read-only replica"):
            cache.sync.invalidate("x")
        server.promote()
        assert cache.sync.invalidate("x")


def test_a_server_that_forgot_the_scripts(cache: Cache, redis_server: Server) -> None:
    """Is given them again."""
    cache.sync.invalidate("x")
    redis_server.run("SCRIPT", "FLUSH", "SYNC")
    before = number(redis_server)
    cache.sync.invalidate("x")
    assert number(redis_server) == before + 1


def test_a_server_that_is_too_old_or_a_cluster(new_server: NewServer) -> None:
    """Is refused for what it is."""
    server = new_server(cluster_enabled="yes")
    with caching(RedisBackend.from_url(server.url)) as cache:
        with pytest.raises(ConfigurationError, match="Redis Cluster"):
            cache.sync.invalidate("x")


# --- connections ---------------------------------------------------------------------------------------


def test_connections_that_the_server_has_closed(cache: Cache, redis_server: Server) -> None:
    """Are noticed before anything is sent: nothing is sent twice, so a holder knows that it has held all the time."""
    backend = cache._filling().backend.blocking()
    held = [at_once(backend.lease([tag("x")], "me", 10)) for _ in range(2)]
    redis_server.run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    held.append(at_once(backend.lease([tag("x")], "me", 10)))
    assert held == [False, True, True]


def test_a_generator_that_is_left_in_the_middle_of_a_transaction(cache: Cache, redis_server: Server) -> None:
    """Its end is written. Nobody knows of its commit: what it held stays held for the lease's time, and no longer."""

    def rows() -> Iterator[int]:
        with cache.sync.transaction():
            cache.sync.invalidate("x")
            yield 1

    one = rows()
    next(one)
    before = number(redis_server)
    del one
    gc.collect()
    assert number(redis_server) == before + 1
    (end,) = ends_of_leases(redis_server)
    assert cache.queued_invalidations == ()
    assert 0 < end - 1000 * int(redis_server.run("TIME")[0]) <= 31_000
    assert end_leases(redis_server) == 1
    cache.sync.invalidate("other")
    assert ends_of_leases(redis_server) == []


def test_a_connection_that_breaks_on_the_way_back(redis_server: Server) -> None:
    """Nobody knows whether the script ran: it is sent once more, on a new one. One too many does no harm."""
    with Proxy(redis_server.address) as address, caching(RedisBackend.from_url(address.url)) as cache:
        cache.sync.invalidate("x")
        before = number(redis_server)
        address.cut()
        cache.sync.invalidate("x")
        assert number(redis_server) == before + 2
        address.cut_each(after=0)
        address.cut_now()
        with pytest.raises(InvalidationError, match="x may not have been invalidated"):
            cache.sync.invalidate("x")


def test_no_answer_in_time(redis_server: Server) -> None:
    """Raises after the timeout; and it is not sent again: one slow script would become many."""
    with caching(RedisBackend.from_url(redis_server.url, timeout=0.1)) as cache:
        cache.sync.invalidate("x")
        before = number(redis_server)
        redis_server.pause()
        try:
            with pytest.raises(InvalidationError, match=r"did not reply within 0\.1 s"):
                cache.sync.invalidate("x")
        finally:
            redis_server.resume()
        assert cache.sync.invalidate("x")
        assert number(redis_server) == before + 2


def test_a_server_that_answers_nothing_is_left_alone(redis_server: Server) -> None:
    """A reply that did not come in time counts as a failure, as a connection that could not be made does."""
    with caching(RedisBackend.from_url(redis_server.url, timeout=0.1, connect_timeout=0.1)) as cache:
        cache.sync.invalidate("x")
        said = []
        redis_server.pause()
        try:
            for _ in range(4):
                with pytest.raises(InvalidationError) as raised:
                    cache.sync.invalidate("x")
                said.append("not tried" in str(raised.value))
        finally:
            redis_server.resume()
        assert said == [False, False, False, True]


def test_a_server_that_is_down_is_left_alone(new_server: NewServer, caplog: pytest.LogCaptureFixture) -> None:
    """After a few failures it is not tried for a second; the end of a transaction is logged and queued."""
    server = new_server()
    with caching(RedisBackend.from_url(server.url)) as cache:
        with cache.sync.transaction():
            cache.sync.invalidate("x")
            server.kill()
        assert "the end of a transaction could not be written" in caplog.text
        assert cache.queued_invalidations == ("x",)
        said = []
        for _ in range(4):
            with pytest.raises(InvalidationError) as raised:
                cache.sync.invalidate("y")
            said.append(str(raised.value))
        assert "no connection to Redis" in said[0]
        assert "not tried" in said[-1]
        server.launch()
        eventually("what was queued", lambda: cache.sync.flush_invalidations())


class InterruptError(Exception):
    """What a signal raises in the main thread, as Celery's soft time limit does."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no such signal here")
def test_a_signal_in_the_middle_of_an_answer(
    cache: Cache, redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is closed: the next command would get the reply of the one that was left."""
    monkeypatch.setattr(blocking.BlockingConnection, "is_quiet", lambda one: True)  # as if that were still to come

    def interrupt(*_: object) -> None:
        raise InterruptError

    cache.sync.invalidate("x")
    before = signal.signal(signal.SIGALRM, interrupt)
    redis_server.pause()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptError):
            cache.sync.delete("x")
    finally:
        redis_server.resume()
        signal.signal(signal.SIGALRM, before)
    assert at_once(cache._filling().backend.blocking().lease([tag("x")], "me", 10)) is False  # a deletion said 0
    assert connections(redis_server) == 1


def test_threads_have_connections_of_their_own(
    cache: Cache, redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as are at work at once; of those a few are kept."""
    monkeypatch.setattr(blocking, "MAX_IDLE", 2)
    cache.sync.invalidate("x")
    before = number(redis_server)
    redis_server.run("CLIENT", "PAUSE", "200", "WRITE")
    threads = [threading.Thread(target=cache.sync.invalidate, args=("x",)) for _ in range(6)]
    for thread in threads:
        thread.start()
    eventually("six connections", lambda: connections(redis_server) == 6)
    for thread in threads:
        thread.join(PATIENCE)
    assert number(redis_server) == before + 6
    eventually("two connections", lambda: connections(redis_server) == 2)
    cache.sync.close()
    eventually("no connection", lambda: connections(redis_server) == 0)


FORK = """
import os, sys
from asynctag import Cache
from asynctag.backends.redis import RedisBackend
from redis import Redis

cache = Cache(RedisBackend.from_url(sys.argv[1]), default_ttl=60)
server = Redis.from_url(sys.argv[1])

def ours():
    return {one["id"] for one in server.client_list() if one["cmd"].startswith("eval")}

cache.sync.invalidate("x")
parents = ours()
assert len(parents) == 1
child = os.fork()
if child == 0:
    cache.sync.invalidate("x")
    assert len(ours() - parents) == 1
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
cache.sync.invalidate("x")
assert ours() == parents, "the child has closed the parent's"
cache.sync.close()
print("good")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_worker_has_connections_of_its_own(redis_server: Server) -> None:
    """As those of Celery: it neither uses the parent's nor ends them."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:.*fork:DeprecationWarning", "-c", FORK, redis_server.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr


# --- how it connects -----------------------------------------------------------------------------------


def invalidates(backend: RedisBackend, server: Server) -> None:
    """It reaches the server, and leaves nothing behind."""
    before = connections(server)
    with caching(backend) as cache:
        assert cache.sync.invalidate("x")
        at = number(server)
        assert cache.sync.invalidate("x")
        assert number(server) == at + 1
    eventually("the end of its connection", lambda: connections(server) == before)


def test_by_tls(redis_server: Server, certificate: Path) -> None:
    """With the certificates that the async client has."""
    with with_tls(redis_server, certificate) as url:
        invalidates(RedisBackend.from_url(url), redis_server)
        with caching(RedisBackend.from_url(url.partition("?")[0])) as cache:
            with pytest.raises(InvalidationError, match="CERTIFICATE_VERIFY_FAILED"):
                cache.sync.invalidate("x")


def test_by_unix_socket(unix_server: Server) -> None:
    """At the path that the async client has."""
    invalidates(RedisBackend.from_url(unix_server.url), unix_server)


@pytest.mark.parametrize("protocol", [2, 3])
def test_as_a_user(redis_server: Server, protocol: int) -> None:
    """With its password, in a database of its own, by either protocol; a wrong one is not shown."""
    redis_server.run("ACL", "SETUSER", "shop", "on", ">s3cret", "~*", "+@all")
    try:
        url = redis_server.url.replace("redis://", "redis://shop:s3cret@") + f"/0?protocol={protocol}"
        invalidates(RedisBackend.from_url(url), redis_server)
        with caching(RedisBackend.from_url(url.replace("s3cret", "wr0ng"))) as cache:
            with pytest.raises(InvalidationError) as raised:
                cache.sync.invalidate("x")
            assert "wr0ng" not in str(raised.value)
    finally:
        redis_server.run("ACL", "DELUSER", "shop")


def test_as_a_client_of_the_application_is_configured(redis_server: Server) -> None:
    """Whatever it says of retries, of decoding, of its name."""
    host, port = redis_server.address
    client = Redis(host=host, port=port, db=3, decode_responses=True, client_name="shop", max_connections=1)
    with caching(RedisBackend(client)) as cache:
        assert cache.sync.invalidate("x")
        (seen,) = [one for one in redis_server.run("CLIENT", "LIST").decode().splitlines() if "name=shop" in one]
        assert " db=3 " in seen
    anyio.run(client.aclose)


def test_by_sentinel(new_server: NewServer, new_sentinel: Callable[..., Sentinel]) -> None:
    """The master that it names, also after another became it."""
    master, replica = new_server(), new_server()
    replica.replicate(master)
    sentinel = new_sentinel(master)
    sentinel.wait_until_aware(replicas=1)
    watcher = SentinelClient([sentinel.address])
    with caching(RedisBackend(watcher.master_for(sentinel.name))) as cache:
        assert cache.sync.invalidate("x")
        at = number(master)
        sentinel.run("SENTINEL", "FAILOVER", sentinel.name)
        eventually("another master", lambda: sentinel.master_address() == replica.address)
        eventually("a replica", lambda: is_replica(master))
        assert cache.sync.invalidate("x")
        assert number(replica) > at
    sync = SyncSentinelClient([sentinel.address]).master_for(sentinel.name)
    with caching(RedisBackend(watcher.master_for(sentinel.name), sync_client=sync)) as cache:
        assert cache.sync.invalidate("x")
    eventually("no other client than this", lambda: sentinel.run("CLIENT", "LIST").count(b"lib-name=redis-py") == 1)
    anyio.run(partial(close_all, watcher))


def is_replica(server: Server) -> bool:
    with suppress(RedisError):  # its clients are sent away
        return server.info("replication")["role"] == "slave"
    return False


async def close_all(watcher: SentinelClient) -> None:
    for one in watcher.sentinels:
        await one.aclose()


class Odd(Connection):
    """One that connects in a way of its own."""


def test_what_is_for_asyncio_alone(redis_server: Server) -> None:
    """Is refused when it is first needed, with what to give besides; given, it is used."""
    host, port = redis_server.address

    async def prepare(connection: Connection) -> None:
        await connection.on_connect()

    for client, said in (
        (Redis(connection_pool=ConnectionPool(Odd, host=host, port=port)), "Odd"),
        (Redis(host=host, port=port, redis_connect_func=prepare), "redis_connect_func"),
    ):
        with pytest.raises(ConfigurationError, match=f"{said}.*sync_client="):
            Cache(RedisBackend(client)).sync.invalidate("x")
        with SyncRedis(host=host, port=port, client_name="besides") as besides:
            invalidates(RedisBackend(client, sync_client=besides), redis_server)


def test_what_is_no_sync_client(redis_server: Server) -> None:
    """Is said at once."""
    with pytest.raises(ConfigurationError, match=r"sync_client=.*give a redis\.Redis"):
        RedisBackend(Redis(), sync_client=Redis())  # type: ignore[arg-type]


# --- an async application ------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_worker_thread_in_an_async_block(redis_server: Server) -> None:
    """What it holds, the end of the block lets go of: the two have connections of their own, and one holder."""
    cache = Cache(RedisBackend.from_url(redis_server.url), default_ttl=60)
    async with cache:
        async with cache.transaction():
            await anyio.to_thread.run_sync(cache.sync.invalidate, "x")
            assert redis_server.run("ZSCORE", "{asynctag}journal", tag("x")) == float("inf")
        assert redis_server.run("ZSCORE", "{asynctag}journal", tag("x")) == float(number(redis_server))
        assert not redis_server.run("EXISTS", "{asynctag}lease:" + tag("x"))
    await anyio.to_thread.run_sync(eventually, "no connection", lambda: connections(redis_server) == 0)
