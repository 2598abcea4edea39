"""What Redis adds to the contract: one round trip for everything, epochs, leases, and bad input."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from itertools import count
from time import monotonic
from typing import Any

import pytest
from hiredis import ReplyError
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from asynctag import Cache, Hit
from asynctag.backends.base import OF_NO_EPOCH, Cause, Entry, Miss, Stamp, Written
from asynctag.backends.redis import RedisBackend
from asynctag.backends.redis.connection import ConnectionLostError, TimedOutError, connect, pack
from asynctag.backends.redis.link import check_server
from asynctag.backends.redis.scripts import ALL
from asynctag.codec import NOT_GIVEN, codec_for
from asynctag.errors import BackendError, ConfigurationError, InvalidationError
from asynctag.names import key_name, tag_name
from tests.redis.proxy import Proxy
from tests.redis.servers import Server, eventually
from tests.redis.watching import watching

pytestmark = pytest.mark.anyio

CODEC = codec_for(NOT_GIVEN, owner="tests")
PAGE, OTHER = key_name("", "page"), key_name("", "other")
RED, BLUE = tag_name("", "red"), tag_name("", "blue")
JOURNAL = "{asynctag}journal"
PLACE = "{asynctag}entry:" + PAGE


@pytest.fixture
async def backend(redis_server: Server) -> AsyncIterator[RedisBackend]:
    one = RedisBackend.from_url(redis_server.url)
    yield one
    await one.aclose()


@pytest.fixture
async def other(redis_server: Server) -> AsyncIterator[RedisBackend]:
    """Another client of the same journal, as another process has it."""
    one = RedisBackend.from_url(redis_server.url)
    yield one
    await one.aclose()


def entry(
    backend: RedisBackend,
    stamp: Stamp,
    *,
    key: str = PAGE,
    value: Any = "a value",
    tags: Iterable[str] = (),
    stale: float = 0,
) -> Entry:
    body, now = CODEC.encode(value), backend.clock()
    times = (now + 60, now + 60, now + 60 + stale, now + 60 + stale)
    return Entry(key, body, CODEC.decode, CODEC, len(body), (key, *tags), stamp, *times)


async def put(backend: RedisBackend, **more: Any) -> Written:
    stamp = (await backend.read(more.get("key", PAGE))).stamp
    return await backend.write(entry(backend, stamp, **more))


async def value(backend: RedisBackend, key: str = PAGE) -> Any:
    """The value under a key, or why there is none."""
    reading = await backend.read(key)
    if reading.entry is None:
        assert reading.miss is not None
        return reading.miss.cause
    return CODEC.decode(reading.entry.body)


# --- round trips ---------------------------------------------------------------------------------------

MANY = [tag_name("", f"row:{number}") for number in range(300)]

OPERATIONS: dict[str, tuple[Callable[[RedisBackend], Awaitable[object]], list[str]]] = {
    "a hit": (lambda b: b.read(PAGE), ["GETEX", "ZMSCORE"]),
    "a hit of another process": (lambda b: b.read(OTHER), ["GETEX", "EVALSHA"]),
    "a miss": (lambda b: b.read(key_name("", "nothing")), ["GETEX", "EVALSHA"]),
    "a look-up for a person": (lambda b: b.inspect(PAGE), ["GETEX", "ZMSCORE"]),
    "many hits": (
        lambda b: b.read_many([PAGE, OTHER, PAGE]),
        ["GETEX", "ZMSCORE", "GETEX", "EVALSHA", "GETEX", "ZMSCORE"],
    ),
    "a store": (lambda b: b.write(entry(b, b._client.newest, tags=MANY)), ["SET", "EVALSHA"]),
    "a store that is refused": (lambda b: b.write(entry(b, OF_NO_EPOCH)), ["SET", "EVALSHA"]),
    "two stores": (lambda b: b.write_many([entry(b, b._client.newest)] * 2), ["SET", "EVALSHA"] * 2),
    "an invalidation": (lambda b: b.invalidate([RED]), ["EVALSHA"]),
    "an invalidation of many tags": (lambda b: b.invalidate(MANY), ["EVALSHA"]),
    "a soft invalidation": (lambda b: b.invalidate([RED], soft=True), ["EVALSHA"]),
    "a deletion": (lambda b: b.delete(PAGE), ["EVALSHA"]),
    "a lease": (lambda b: b.lease([RED, BLUE], "me", 10), ["EVALSHA"]),
    "a release": (lambda b: b.release([RED, BLUE], "me"), ["EVALSHA"]),
    "a lag": (lambda b: b.release([RED, BLUE], "me", lag=10), ["EVALSHA"]),
    "a lag that is served": (lambda b: b.release([RED, BLUE], "me", lag=10, serve=True), ["EVALSHA"]),
    "whether tags have changed": (lambda b: b.unchanged([RED, BLUE], b.newest()), ["EVALSHA"]),
    "the tags of a key": (lambda b: b.tags(PAGE), ["EVALSHA"]),
    "more tags": (lambda b: b.add_tags(PAGE, [BLUE]), ["EVALSHA"]),
    "a wipe": (lambda b: b.wipe(), ["EVALSHA"]),
    "an agreement": (lambda b: b.agree(60), ["EVALSHA"]),
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_one_round_trip(name: str, backend: RedisBackend, other: RedisBackend, redis_server: Server) -> None:
    """Whatever it is, and whatever the number of tags: the server gets it in one piece, and answers once."""
    operation, commands = OPERATIONS[name]
    await put(backend, tags=[RED, *MANY[:40]])
    await put(other, key=OTHER, tags=[RED])
    # A client asks for the time once a second, beside what it asks for anyway.
    for _ in range(3):
        with watching(redis_server) as seen:
            await operation(backend)
        if "TIME" not in seen.commands:
            break
        await put(backend, tags=[RED, *MANY[:40]])
        backend._client._links.popitem()[1].connection.close()
        await put(backend, tags=[RED, *MANY[:40]])
    assert seen.commands == commands
    assert seen.reads == 1


async def test_what_is_known_of_one_tag_set_serves_the_next_entry(
    backend: RedisBackend, other: RedisBackend, redis_server: Server
) -> None:
    """Another process stores a new value with the same tags, then with others: no second round trip for the first."""
    await put(backend, tags=[RED])
    await other.invalidate([RED])
    await put(other, value="new", tags=[RED])
    with watching(redis_server) as seen:
        assert await value(backend) == "new"
    assert "EVALSHA" not in seen.commands
    await put(other, value="newer", tags=[BLUE])
    assert await value(backend) == "newer"
    await other.invalidate([BLUE])
    assert await value(backend) is Cause.INVALIDATED


async def test_soft_invalidations_of_others_are_seen_on_the_quick_path(
    backend: RedisBackend, other: RedisBackend
) -> None:
    """The quick look asks for hard invalidations alone until it meets a soft one."""
    await put(backend, tags=[RED, BLUE], stale=30)
    await put(backend, key=OTHER, tags=[RED])
    assert await value(backend) == "a value"
    await other.invalidate([BLUE], soft=True)
    for _ in range(3):
        assert (await backend.read(PAGE)).stale
        assert not (await backend.read(OTHER)).stale
    await other.invalidate([RED], soft=True)
    for _ in range(3):
        assert (await backend.read(PAGE)).stale
        assert (await backend.inspect(OTHER)).miss == Miss(Cause.INVALIDATED, RED)
    await other.invalidate([BLUE])
    assert (await backend.inspect(PAGE)).miss == Miss(Cause.INVALIDATED, BLUE)


async def test_a_store_leaves_nothing_behind(backend: RedisBackend, redis_server: Server) -> None:
    """What is on its way into its place is gone once the answer is there, whatever that was."""
    stamp = (await backend.read(PAGE)).stamp
    await backend.invalidate([RED])
    assert not (await backend.write(entry(backend, stamp, tags=[RED]))).accepted
    assert not (await backend.write(entry(backend, OF_NO_EPOCH))).accepted
    assert redis_server.run("KEYS", "*") == [JOURNAL.encode()]
    assert (await put(backend)).accepted
    assert sorted(redis_server.run("KEYS", "*")) == sorted([JOURNAL.encode(), PLACE.encode()])


async def test_entries_have_a_native_ttl_and_the_journal_none(backend: RedisBackend, redis_server: Server) -> None:
    """Nothing has to be swept: the server forgets entries by itself, and the journal not piece by piece."""
    await put(backend, stale=40)
    assert 95_000 < redis_server.run("PTTL", PLACE) <= 100_000
    assert redis_server.run("PTTL", JOURNAL) == -1


# --- scripts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ALL, ids=lambda script: script.name)
def test_every_script_counts_as_a_write_and_runs_on_a_full_server(script: Any) -> None:
    """Never `no-writes`: a demoted master must refuse it."""
    assert script.text.startswith(b"#!lua flags=allow-oom\n")


async def test_no_command_grows_with_the_entries(backend: RedisBackend, redis_server: Server) -> None:
    """Nothing asks for all members, or all keys."""
    for number in range(50):
        await put(backend, key=key_name("", f"page {number}"), tags=[RED])
    redis_server.run("CONFIG", "RESETSTAT")
    await backend.invalidate([RED])
    await backend.delete(PAGE)
    seen = {name.removeprefix("cmdstat_") for name in redis_server.info("commandstats")}
    assert not seen & {"smembers", "scan", "sscan", "zscan", "hscan", "keys", "zrange"}
    assert "zadd" in seen


async def test_a_replica_answers_nothing(new_server: Callable[..., Server]) -> None:
    """Neither by script nor on the quick path: what a demoted master knows may be old."""
    master, replica = new_server(), new_server()
    backend = RedisBackend.from_url(master.url)
    await put(backend, tags=[RED])
    assert await value(backend) == "a value"
    replica.replicate(master)
    # The one that is being talked to becomes a replica, and keeps the connection.
    replica.promote()
    master.replicate(replica)
    with pytest.raises(BackendError, match="read-only replica"):
        await backend.read(PAGE)
    with pytest.raises(InvalidationError, match="read-only replica") as caught:
        await backend.invalidate([RED])
    assert caught.value.tags == (RED,)
    await backend.aclose()


async def test_a_full_server_refuses_stores_and_still_invalidates(new_server: Callable[..., Server]) -> None:
    """Without eviction: stores fail, reads and invalidations go on."""
    server = new_server(maxmemory_policy="noeviction")
    backend = RedisBackend.from_url(server.url)
    await put(backend, tags=[RED])
    server.run("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(BackendError, match="full"):
        await put(backend, key=OTHER)
    assert await value(backend) == "a value"
    await backend.invalidate([RED])
    assert await value(backend) is Cause.INVALIDATED
    await backend.aclose()


async def test_fewer_replicas_than_wanted(new_server: Callable[..., Server]) -> None:
    """A master that has lost its replicas answers neither reads nor invalidations."""
    server = new_server()
    backend = RedisBackend.from_url(server.url)
    await put(backend, tags=[RED])
    assert await value(backend) == "a value"
    server.run("CONFIG", "SET", "min-replicas-to-write", "1")
    for read in (backend.read(PAGE), backend.read(OTHER), backend.read_many([PAGE])):
        with pytest.raises(BackendError, match="fewer replicas"):
            await read
    with pytest.raises(InvalidationError, match="fewer replicas"):
        await backend.invalidate([RED])
    server.run("CONFIG", "SET", "min-replicas-to-write", "0")
    assert await value(backend) == "a value"
    await backend.aclose()


async def test_forgotten_scripts_are_given_again(backend: RedisBackend, redis_server: Server) -> None:
    """After SCRIPT FLUSH everything works as before."""
    await put(backend, tags=[RED])
    for operation in (
        lambda: backend.read(OTHER),
        lambda: backend.read_many([OTHER, PAGE]),
        lambda: put(backend, key=OTHER),
        lambda: backend.invalidate([BLUE]),
        lambda: backend.delete(OTHER),
        lambda: backend.lease([BLUE], "me", 1),
    ):
        redis_server.run("SCRIPT", "FLUSH", "SYNC")
        await operation()
    assert await value(backend) == "a value"


# --- what the journal loses -----------------------------------------------------------------------------


@pytest.mark.parametrize("lose", ["FLUSHALL", "DEL", "RENAME", "EXPIRE"])
async def test_without_its_journal_nothing_is_served(backend: RedisBackend, redis_server: Server, lose: str) -> None:
    """The entry is still there, or comes back; the epoch is another."""
    before = await put(backend, tags=[RED])
    assert before.accepted
    stamp = (await backend.read(PAGE)).stamp
    data = redis_server.run("DUMP", PLACE)
    match lose:
        case "FLUSHALL":
            redis_server.run("FLUSHALL")
            redis_server.run("RESTORE", PLACE, 0, data)
        case "DEL":
            redis_server.run("DEL", JOURNAL)
        case "RENAME":
            redis_server.run("RENAME", JOURNAL, "elsewhere")
        case "EXPIRE":
            redis_server.run("PEXPIREAT", JOURNAL, 1)
    assert await value(backend) is Cause.LOST
    assert (await backend.read(PAGE)).stamp.epoch != stamp.epoch
    assert await backend.write(entry(backend, stamp)) == Written(False, miss=Miss(Cause.LOST))
    assert (await put(backend, value="new")).accepted
    assert await value(backend) == "new"


async def test_a_journal_of_an_earlier_time_begins_a_new_epoch(backend: RedisBackend, redis_server: Server) -> None:
    """Numbers that were given are gone, on the same connection: a client that knew them notices."""
    await put(backend, tags=[RED])
    old = redis_server.run("DUMP", JOURNAL)
    await backend.invalidate([RED])
    redis_server.run("RESTORE", JOURNAL, 0, old, "REPLACE")
    assert await value(backend) is Cause.LOST
    assert await value(backend) is Cause.LOST
    assert (await put(backend)).accepted
    # By an invalidation too, whose number is one that was given before.
    old = redis_server.run("DUMP", JOURNAL)
    await backend.invalidate([BLUE])
    redis_server.run("RESTORE", JOURNAL, 0, old, "REPLACE")
    await backend.invalidate([BLUE])
    assert await value(backend) is Cause.LOST


async def test_the_journal_of_another_server_begins_a_new_epoch(
    backend: RedisBackend, other: RedisBackend, redis_server: Server
) -> None:
    """As after a failover: the run id in the journal is not that of who answers."""
    await put(backend, tags=[RED])
    (run,) = [name for name in redis_server.run("ZRANGE", JOURNAL, 0, -1) if name.startswith(b"run:")]
    for client in (backend, other):  # one knows the server's journal already, the other opens it
        redis_server.run("ZREM", JOURNAL, run)
        redis_server.run("ZADD", JOURNAL, -(2**53), "run:" + "0" * 40)
        assert await value(client) is Cause.LOST
        assert (await put(client)).accepted
        assert await value(client) == "a value"
    names = redis_server.run("ZRANGE", JOURNAL, 0, -1)
    assert [name for name in names if name.startswith(b"run:")] == [run]


async def test_a_journal_of_before_is_not_taken_again(backend: RedisBackend, redis_server: Server) -> None:
    """There and back between two servers or databases: what was left has missed what was invalidated meanwhile."""
    await put(backend, tags=[RED])
    assert await value(backend) == "a value"
    redis_server.run("SWAPDB", 0, 1)
    assert await value(backend) is Cause.ABSENT
    await backend.invalidate([RED])
    redis_server.run("SWAPDB", 0, 1)
    assert await value(backend) is Cause.LOST
    assert (await put(backend, value="new")).accepted
    assert await value(backend) == "new"
    # By a new connection too, before anything is read over it.
    redis_server.run("SWAPDB", 0, 1)
    await backend.invalidate([RED])
    redis_server.run("SWAPDB", 0, 1)
    await backend.aclose()
    assert await value(backend) is Cause.LOST


async def test_epochs_are_new_each_time(backend: RedisBackend, redis_server: Server) -> None:
    """None comes back, however often the journal is lost."""
    epochs = set()
    for _ in range(20):
        redis_server.run("FLUSHALL")
        epochs.add((await backend.read(PAGE)).stamp.epoch)
    assert len(epochs) == 20


async def test_a_restart_from_an_old_dump_serves_nothing(new_server: Callable[..., Server]) -> None:
    """What was invalidated after the dump stays so."""
    server = new_server()
    backend = RedisBackend.from_url(server.url)
    await put(backend, tags=[RED])
    server.run("SAVE")
    await backend.invalidate([RED])
    server.kill()
    server.restart()
    assert server.run("EXISTS", PLACE) == 1
    assert await value(backend) is Cause.LOST
    assert (await put(backend, value="new")).accepted
    assert await value(backend) == "new"
    await backend.aclose()


async def test_a_master_that_comes_back_with_the_data_of_another_begins_a_new_epoch(
    new_server: Callable[..., Server],
) -> None:
    """It is the same process, with a journal that it wrote itself, and without its last invalidation."""
    here, there = new_server(), new_server()
    backend = RedisBackend.from_url(here.url)
    await put(backend, tags=[RED])
    there.replicate(here)
    there.promote()
    await backend.invalidate([RED])
    await backend.aclose()
    here.replicate(there)
    here.promote()
    fresh = RedisBackend.from_url(here.url)
    assert await value(fresh) is Cause.LOST
    assert (await put(fresh, value="new")).accepted
    # One that knew the server before begins one more: it cannot tell what it has missed.
    assert await value(backend) is Cause.LOST
    assert (await put(backend, value="newer")).accepted
    assert await value(fresh) == "newer"
    await fresh.aclose()
    await backend.aclose()


async def test_a_connection_that_lives_through_it_notices_too(
    new_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent while the server was a replica, so nothing was refused; no later number is known."""
    monkeypatch.setattr("asynctag.backends.redis.connection.ASKED_AGE", 0)  # once a second, else
    here, there = new_server(), new_server()
    here.replicate(there)
    here.promote()
    backend, other = RedisBackend.from_url(here.url), RedisBackend.from_url(here.url)
    await put(backend, tags=[RED])
    assert await value(backend) == "a value"
    there.replicate(here)
    there.promote()
    await other.invalidate([RED])
    here.replicate(there)
    here.promote()
    connections = here.info("stats")["total_connections_received"]
    assert await value(backend) is Cause.LOST
    assert here.info("stats")["total_connections_received"] > connections
    await backend.aclose()
    await other.aclose()


async def test_a_new_replication_id_alone_is_no_loss(new_server: Callable[..., Server]) -> None:
    """A master whose replicas have gone takes one by itself: clients of before and after come to agree on the epoch."""
    server, replica = new_server(repl_backlog_ttl="1"), new_server()
    before = RedisBackend.from_url(server.url)
    replica.replicate(server)
    await put(before, tags=[RED])
    stamp = (await before.read(PAGE)).stamp
    was = server.info("replication")["master_replid"]
    replica.kill()
    eventually("a new replication id", lambda: server.info("replication")["master_replid"] != was)
    after = RedisBackend.from_url(server.url)
    epochs = []
    for _ in range(4):
        for client in (after, before):
            await put(client)
            epochs.append((await client.read(PAGE)).stamp.epoch)
    assert len(set(epochs) - {stamp.epoch}) <= 2  # one for each that found another server than it knew
    assert len(set(epochs[2:])) == 1
    await before.aclose()
    await after.aclose()


async def test_max_ttl_is_put_down_again_after_a_loss(
    backend: RedisBackend, other: RedisBackend, redis_server: Server
) -> None:
    """Whoever makes the journal anew says what was agreed on."""
    await backend.agree(60)
    redis_server.run("FLUSHALL")
    await backend.read(PAGE)
    with pytest.raises(ConfigurationError, match="max_ttl=60"):
        await other.agree(90)
    await backend.wipe()
    await backend.agree(60)
    await other.agree(60)


# --- pruning -------------------------------------------------------------------------------------------


async def test_the_journal_is_bounded(redis_server: Server) -> None:
    """Past `max_tags` the oldest are forgotten, a slice at each invalidation, and what is older than they is a miss."""
    backend = RedisBackend.from_url(redis_server.url, max_tags=1_000)
    await put(backend, tags=[RED])
    stamp = (await backend.read(PAGE)).stamp
    for number in range(12):
        await backend.invalidate(tag_name("", f"{number}:{one}") for one in range(300))
    assert redis_server.run("ZCARD", JOURNAL) <= 1_310
    assert (await backend.inspect(PAGE)).miss == Miss(Cause.PRUNED)
    assert (await backend.write(entry(backend, stamp))).miss == Miss(Cause.PRUNED)
    assert (await put(backend)).accepted
    await backend.aclose()


@pytest.mark.parametrize("by", ["delete", "invalidate many", "soft", "lease and release"])
async def test_whatever_adds_to_the_journal_prunes_it(redis_server: Server, by: str) -> None:
    """Not the invalidations of a few tags alone."""
    backend = RedisBackend.from_url(redis_server.url, max_tags=500)
    for turn in range(8):
        names = [tag_name("", f"{turn}:{one}") for one in range(2_000 if by == "invalidate many" else 300)]
        match by:
            case "delete":
                for name in names:
                    await backend.delete(name)
            case "lease and release":
                await backend.lease(names, "me", 10)
                await backend.release(names, "me")
            case _:
                await backend.invalidate(names, soft=by == "soft")
    assert redis_server.run("ZCARD", JOURNAL) <= 500 + 2_000
    await backend.aclose()


async def test_what_is_older_than_any_entry_is_forgotten(backend: RedisBackend, redis_server: Server) -> None:
    """Twice the longest life after it was invalidated, a tag is gone from the journal."""
    await backend.agree(60)
    await backend.invalidate(MANY)
    assert redis_server.run("ZCARD", JOURNAL) > len(MANY)
    hour_and_more = (60 + 3600) * 1000 + 1
    for _ in range(3):  # once to set a mark, once to forget what is before it
        marked = -float(redis_server.run("ZSCORE", JOURNAL, "marked"))
        redis_server.run("ZADD", JOURNAL, -(marked - hour_and_more), "marked")
        await backend.invalidate([RED])
    assert redis_server.run("ZCARD", JOURNAL) < 20
    assert (await put(backend)).accepted


# --- leases --------------------------------------------------------------------------------------------


async def test_a_leased_tag_makes_entries_invalid_and_refuses_stores(
    backend: RedisBackend, other: RedisBackend
) -> None:
    """For everybody, until it is released; and what was computed meanwhile is not stored after it."""
    await put(backend, tags=[RED])
    assert await backend.lease([RED], "a", 30) is False
    assert (await other.inspect(PAGE)).miss == Miss(Cause.LEASED, RED)
    during = (await other.read(PAGE)).stamp
    assert await other.write(entry(other, during, tags=[RED])) == Written(False, miss=Miss(Cause.LEASED, RED))
    await other.invalidate([RED])
    assert (await other.inspect(PAGE)).miss == Miss(Cause.LEASED, RED)
    assert await backend.lease([RED], "a", 30) is True
    await backend.release([RED], "a")
    assert (await other.inspect(PAGE)).miss == Miss(Cause.INVALIDATED, RED)
    assert not (await other.write(entry(other, during, tags=[RED]))).accepted
    assert (await put(other, tags=[RED])).accepted
    assert await value(backend) == "a value"


async def test_one_holders_release_leaves_the_others(backend: RedisBackend) -> None:
    """Two transactions on one tag."""
    await backend.lease([RED], "a", 30)
    await backend.lease([RED], "b", 30)
    await backend.release([RED], "a")
    assert (await put(backend, tags=[RED])).miss == Miss(Cause.LEASED, RED)
    await backend.release([RED], "b")
    assert (await put(backend, tags=[RED])).accepted


async def test_a_lease_that_has_ended_is_settled_by_who_stores(backend: RedisBackend, redis_server: Server) -> None:
    """Readers refuse it still, with no look at a clock; a store makes an invalidation of it, the next succeeds."""
    await put(backend, tags=[RED])
    await backend.lease([RED], "a", 30)
    redis_server.run("HSET", "{asynctag}lease:" + RED, "a", 1)  # it ended long ago
    assert (await backend.inspect(PAGE)).miss == Miss(Cause.LEASED, RED)
    before = (await backend.read(PAGE)).stamp
    assert not (await backend.write(entry(backend, before, tags=[RED]))).accepted
    assert (await backend.inspect(PAGE)).miss == Miss(Cause.INVALIDATED, RED)
    assert not (await backend.write(entry(backend, before, tags=[RED]))).accepted
    assert (await put(backend, tags=[RED])).accepted
    # The block's end invalidates whether or not its lease is still there.
    await backend.release([RED], "a")
    assert await value(backend) is Cause.INVALIDATED


async def test_pruning_settles_leases_that_nobody_touches(backend: RedisBackend, redis_server: Server) -> None:
    """A holder that died leaves nothing for ever."""
    await backend.lease([RED], "a", 30)
    redis_server.run("HSET", "{asynctag}lease:" + RED, "a", 1)
    await backend.invalidate([BLUE])
    assert redis_server.run("ZSCORE", JOURNAL, RED) < float("inf")
    assert redis_server.run("EXISTS", "{asynctag}lease:" + RED) == 0


@pytest.mark.parametrize("meet", ["store", "lease", "release", "lag"])
async def test_a_lease_whose_holder_is_lost_begins_a_new_epoch(
    backend: RedisBackend, redis_server: Server, meet: str
) -> None:
    """That part of the journal was evicted: nobody can tell what else was."""
    await put(backend, key=OTHER, tags=[BLUE])
    epoch = (await backend.read(OTHER)).stamp.epoch
    await backend.lease([RED], "a", 30)
    redis_server.run("DEL", "{asynctag}lease:" + RED)
    match meet:
        case "store":
            await put(backend, tags=[RED])
        case "lease":
            await backend.lease([RED], "b", 30)
        case "release":
            await backend.release([RED], "b")
        case "lag":
            await backend.release([RED], "b", lag=10)
    assert (await backend.read(OTHER)).stamp.epoch != epoch
    assert await value(backend, OTHER) is Cause.LOST


async def test_a_lease_is_not_said_to_be_held_where_the_journal_was_lost(
    backend: RedisBackend, redis_server: Server
) -> None:
    """Somebody may have stored meanwhile."""
    await backend.lease([RED], "me", 30)
    assert await backend.lease([RED], "me", 30) is True
    redis_server.run("DEL", JOURNAL)
    assert await backend.lease([RED], "me", 30) is False
    assert await backend.lease([RED], "me", 30) is True


@pytest.mark.parametrize("record", ["a text", "no number"])
async def test_what_is_no_record_of_a_lease_counts_as_lost(
    backend: RedisBackend, redis_server: Server, record: str
) -> None:
    """It stops nobody: a new epoch begins, and invalidations work as before."""
    place = "{asynctag}lease:" + RED
    await put(backend, key=OTHER)
    for use in (
        lambda: backend.invalidate([BLUE]),
        lambda: backend.lease([RED], "you", 30),
        lambda: backend.release([RED], "me"),
    ):
        await backend.lease([RED], "me", 30)
        epoch = (await backend.read(OTHER)).stamp.epoch
        redis_server.run("DEL", place)
        if record == "a text":
            redis_server.run("SET", place, "something")
        else:
            redis_server.run("HSET", place, "me", "soon")
        await use()
        assert (await backend.read(OTHER)).stamp.epoch != epoch
        redis_server.run("DEL", place)
    await backend.release([RED], "you")
    assert (await put(backend, tags=[RED])).accepted


# --- tags of a key -------------------------------------------------------------------------------------


async def test_tags_of_a_key_and_more_of_them(backend: RedisBackend, redis_server: Server) -> None:
    """They are told without the body, and added ones count from then on."""
    assert await backend.tags(PAGE) is None
    assert await backend.add_tags(PAGE, [RED]) is False
    big = "x" * 100_000
    await put(backend, value=big, tags=[RED])
    assert await backend.tags(PAGE) == (PAGE, RED)
    ttl = redis_server.run("PTTL", PLACE)
    assert await backend.add_tags(PAGE, [BLUE, RED, *MANY]) is True
    assert abs(redis_server.run("PTTL", PLACE) - ttl) < 5_000
    assert await backend.tags(PAGE) == (PAGE, RED, BLUE, *MANY)
    assert await value(backend) == big
    await backend.invalidate([MANY[-1]])
    assert await value(backend) is Cause.INVALIDATED
    assert await backend.tags(PAGE) is None


async def test_a_tag_that_was_invalidated_since_the_data_was_read_drops_the_entry(backend: RedisBackend) -> None:
    """Late tags are safe here too."""
    await put(backend, tags=[RED])
    await backend.invalidate([BLUE])
    assert await backend.add_tags(PAGE, [BLUE]) is False
    assert (await backend.read(PAGE)).entry is None


async def test_a_sealed_entry_gets_no_more_tags(redis_server: Server) -> None:
    """The server cannot seal what it changes: it is said, instead of done in two steps between which others come."""
    backend = RedisBackend.from_url(redis_server.url, hmac_key=b"sixteen bytes or more")
    await put(backend)
    with pytest.raises(ConfigurationError, match="hmac_key"):
        await backend.add_tags(PAGE, [RED])
    assert await backend.tags(PAGE) == (PAGE,)
    await backend.aclose()


# --- what somebody else wrote ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"AT\1\0", b"AT\x02\0" + b"\0" * 60, b"\x80\x04\x95pickle", b"AT\1\0" + b"\xff" * 80]
)
async def test_what_is_no_entry_is_a_clean_miss(backend: RedisBackend, redis_server: Server, data: bytes) -> None:
    """On the way by script and on the quick one; and the next store replaces it."""
    redis_server.run("SET", PLACE, data)
    assert await value(backend) is Cause.CORRUPT
    assert (await backend.read_many([PAGE]))[0].entry is None
    assert await backend.tags(PAGE) is None
    assert (await put(backend)).accepted
    assert await value(backend) == "a value"
    redis_server.run("SET", PLACE, data)
    assert await value(backend) is Cause.CORRUPT
    await backend.delete(PAGE)
    assert redis_server.run("EXISTS", PLACE) == 0


async def test_another_type_under_our_name_is_a_clean_miss(backend: RedisBackend, redis_server: Server) -> None:
    """A list, say."""
    redis_server.run("RPUSH", PLACE, "a", "b")
    assert await value(backend) is Cause.CORRUPT
    assert (await put(backend)).accepted
    assert await value(backend) == "a value"


async def test_an_entry_of_another_key_is_a_clean_miss(backend: RedisBackend, redis_server: Server) -> None:
    """An entry carries its key: it cannot be moved under another."""
    await put(backend, key=OTHER, value="of another")
    redis_server.run("COPY", "{asynctag}entry:" + OTHER, PLACE)
    assert await value(backend) is Cause.CORRUPT


async def test_a_body_cut_short_is_never_half_a_value(backend: RedisBackend, redis_server: Server) -> None:
    """Whatever is missing at its end, the codec notices; compressed or sealed, the format does."""
    from asynctag import Cache

    cache = Cache(backend, default_ttl=60)
    await cache.get_or_set("k", _compute, returns=list[str])
    name = "{asynctag}entry:" + key_name("", "k")
    whole = redis_server.run("GET", name)
    for length in range(0, len(whole), 7):
        redis_server.run("SET", name, whole[:length])
        assert await cache.get("k", default="nothing", returns=list[str]) == "nothing"


async def _compute() -> list[str]:
    return ["a", "b"] * 100


async def test_an_entry_without_our_seal_is_a_clean_miss(redis_server: Server) -> None:
    """Those of a process without the key, or with another, are not taken."""
    plain = RedisBackend.from_url(redis_server.url)
    sealed = RedisBackend.from_url(redis_server.url, hmac_key=b"sixteen bytes or more")
    await put(plain)
    assert await value(sealed) is Cause.CORRUPT
    await put(sealed)
    assert await value(sealed) == "a value"
    await plain.aclose()
    await sealed.aclose()


async def test_something_else_under_the_journals_name(backend: RedisBackend, redis_server: Server) -> None:
    """It is said what to do; nothing is overwritten."""
    redis_server.run("SET", JOURNAL, "somebody's")
    with pytest.raises(BackendError, match="prefix="):
        await backend.read(PAGE)
    with pytest.raises(InvalidationError, match="prefix="):
        await backend.invalidate([RED])
    assert redis_server.run("GET", JOURNAL) == b"somebody's"


async def test_bodies_above_the_limit_are_not_stored(redis_server: Server) -> None:
    """It is said, and nothing is sent."""
    backend = RedisBackend.from_url(redis_server.url, max_body=1000)
    with watching(redis_server) as seen:
        stamp = (await backend.read(PAGE)).stamp
        written = await backend.write(entry(backend, stamp, value="x" * 1000))
    assert written == Written(False, miss=Miss(Cause.TOO_LARGE))
    assert "SET" not in seen.commands
    await backend.aclose()


# --- set-up --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["http://localhost", "localhost:6379", "redis://localhost:port", "redis://localhost:6379/one", "", "unix:"]
)
def test_a_wrong_url_is_refused_at_once(url: str) -> None:
    """The error shows it and says what one looks like."""
    with pytest.raises(ConfigurationError, match="redis://"):
        RedisBackend.from_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "rediss+x://me:s3cret@localhost",
        "redis://:s3/cret@localhost",
        "redis://:s3#cret@localhost/x",
        "redis://:s3?cret@localhost:port",
        "unix:///socket?db=zz&password=s3cret",
    ],
)
def test_a_password_is_shown_nowhere(url: str) -> None:
    """Not in the error of a URL that is wrong, wherever in it the password has come to stand."""
    with pytest.raises(ConfigurationError) as caught:
        RedisBackend.from_url(url)
    assert "s3" not in str(caught.value)
    assert "cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_what_is_printed_shows_no_password() -> None:
    """The server's address, and the prefix."""
    shown = repr(RedisBackend.from_url("redis://me:s3cret@localhost:1/2"))
    assert "s3cret" not in shown
    assert "localhost:1" in shown


@pytest.mark.parametrize(
    "options",
    [
        {"prefix": "a{b"},
        {"prefix": ""},
        {"timeout": 0},
        {"timeout": -1},
        {"connect_timeout": float("nan")},
        {"max_waiting": 0},
        {"max_tags": 1.5},
        {"max_body": True},
        {"compress_from": "1"},
        {"hmac_key": b"short"},
        {"hmac_key": "a text of more than sixteen"},
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any]) -> None:
    """As they are given, by name."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        RedisBackend.from_url("redis://localhost", **options)


def test_other_clients_are_refused() -> None:
    """The blocking one, a URL in its place, anything."""
    with SyncRedis() as blocking:
        for client in (blocking, "redis://localhost", None):
            with pytest.raises(ConfigurationError, match="from_url"):
                RedisBackend(client)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"redis_version": "6.2.14", "run_id": "x", "master_replid": "y"}, "Redis 6.2.14"),
        ({"redis_version": "7.2.4", "valkey_version": "7.0.1", "run_id": "x", "master_replid": "y"}, "Valkey 7.0.1"),
        ({"redis_version": "", "run_id": "x", "master_replid": "y"}, "no version"),
        ({"redis_version": "7.4.0"}, "Redis 7.4.0"),
        ({"redis_version": "7.4.0", "run_id": "x", "master_replid": "y", "cluster_enabled": "1"}, "Cluster"),
    ],
)
def test_a_server_that_lacks_what_is_needed_is_refused(facts: dict[str, str], named: str) -> None:
    """With its version named."""
    with pytest.raises(ConfigurationError, match=named):
        check_server(facts, [], "Redis at here")


@pytest.mark.parametrize("version", [{"redis_version": "7.0.0"}, {"redis_version": "7.2.4", "valkey_version": "8.1"}])
def test_newer_servers_are_welcome(version: dict[str, str]) -> None:
    check_server({**version, "run_id": "x", "master_replid": "y"}, [], "Redis at here")


async def test_a_node_of_a_cluster_is_refused(new_server: Callable[..., Server]) -> None:
    """At the first use, by name."""
    server = new_server(cluster_enabled="yes")
    backend = RedisBackend.from_url(server.url)
    with pytest.raises(ConfigurationError, match="Cluster"):
        await backend.read(PAGE)
    await backend.aclose()


async def test_a_server_without_scripts_is_refused(new_server: Callable[..., Server]) -> None:
    """What it lacks is said."""
    server = new_server(rename_command='EVALSHA ""')
    backend = RedisBackend.from_url(server.url)
    with pytest.raises(BackendError, match="EVALSHA"):
        await backend.read(PAGE)
    await backend.aclose()


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_client_of_ones_own(redis_server: Server, protocol: int) -> None:
    """With its own options, of which only the way to connect counts; two databases are two journals."""
    backends = []
    for database in (0, 1):
        client = Redis(
            port=redis_server.port, db=database, protocol=protocol, decode_responses=True, client_name="mine"
        )
        backends.append(RedisBackend(client))
    first, second = backends
    await put(first, tags=[RED], stale=30)
    for _ in range(2):
        assert await value(first) == "a value"
        assert await value(second) is Cause.ABSENT
    await second.invalidate([RED])
    assert await value(first) == "a value"
    await first.invalidate([RED], soft=True)
    assert (await first.read(PAGE)).stale
    assert b"name=mine" in redis_server.run("CLIENT", "LIST")
    for backend in backends:
        await backend.aclose()


async def test_prefixes_are_apart(redis_server: Server) -> None:
    """Two applications on one server."""
    first, second = (RedisBackend.from_url(redis_server.url, prefix=name) for name in ("one", "two"))
    await put(first, tags=[RED])
    assert await value(second) is Cause.ABSENT
    await second.invalidate([RED])
    await second.wipe()
    assert await value(first) == "a value"
    await first.aclose()
    await second.aclose()


async def test_what_is_remembered_of_keys_is_bounded(backend: RedisBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their number and by bytes; what is forgotten is found by script again."""
    from asynctag.backends.redis import link as module

    monkeypatch.setattr(module, "MAX_KNOWN", 5)
    keys = [key_name("", f"page {number}") for number in range(12)]
    for key in keys:
        await put(backend, key=key, tags=MANY[:20])
    link = await backend._client.link()
    assert list(link.known) == keys[-5:]
    monkeypatch.setattr(module, "MAX_KNOWN_BYTES", 2 * link.known[keys[-1]].size)
    for key in keys:
        assert await value(backend, key) == "a value"
        assert len(link.known) <= 5
    assert list(link.known) == keys[-2:]
    assert link._known_bytes == sum(known.size for known in link.known.values())


async def test_what_is_kept_of_replies_is_bounded(backend: RedisBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes, as they came and as they were read; the oldest goes first, and what is large is not kept at all."""
    from asynctag.backends.redis import link as module

    keys = [key_name("", f"page {number}") for number in range(6)]
    for key in keys:
        await put(backend, key=key, value="a" * 1000)
    link = await backend._client.link()

    async def kept() -> list[str]:
        for key in keys:
            assert await value(backend, key) == "a" * 1000
        assert link._kept_bytes == sum(link._kept.values())
        assert set(link._kept) == {known for known in link.known.values() if known.judged is not None}
        assert all(known.judged is not None for known in link.known.values() if known.last is not None)
        return [key for key in keys if link.known[key].judged is not None]

    for _ in range(3):
        assert await kept() == keys
    assert all(known.last is not None for known in link.known.values())
    assert link._kept_bytes > 6 * 4000
    monkeypatch.setattr(module, "MAX_KEPT_BYTES", 10_000)
    monkeypatch.setattr(module, "MAX_KNOWN", 6)
    await put(backend, key=keys[0], value="a" * 1000)
    assert await kept() == keys[-2:]
    monkeypatch.setattr(module, "MAX_ENTRY_KEPT", 1000)
    await put(backend, key=keys[0], value="a" * 1000)
    assert keys[0] not in await kept()


CHANGES: dict[str, tuple[Callable[[RedisBackend, SyncRedis], Awaitable[object] | None], Any]] = {
    "a tag invalidated": (lambda other, redis: other.invalidate([RED]), Cause.INVALIDATED),
    "its key invalidated": (lambda other, redis: other.invalidate([PAGE]), Cause.INVALIDATED),
    "a tag leased": (lambda other, redis: other.lease([RED], "me", 10), Cause.LEASED),
    "deleted": (lambda other, redis: other.delete(PAGE), Cause.ABSENT),
    "wiped": (lambda other, redis: other.wipe(), Cause.LOST),
    "evicted": (lambda other, redis: redis.delete(PLACE) and None, Cause.ABSENT),
    "the journal lost": (lambda other, redis: redis.delete(JOURNAL) and None, Cause.LOST),
    "all lost": (lambda other, redis: redis.flushall() and None, Cause.ABSENT),
    "another stored": (lambda other, redis: put(other, value="another", tags=[RED]), "another"),
    "another stored with other tags": (lambda other, redis: put(other, value="another", tags=[BLUE]), "another"),
    "another tag invalidated": (lambda other, redis: other.invalidate([BLUE]), "a value"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_replies_came_to_counts_for_the_same_replies_alone(
    change: str, backend: RedisBackend, other: RedisBackend, redis_server: Server
) -> None:
    """Whatever another process does after many hits here, the next read knows."""
    redis = SyncRedis.from_url(redis_server.url)
    await other.invalidate([BLUE])
    await put(backend, tags=[RED])
    for _ in range(3):
        assert await value(backend) == "a value"
    link = await backend._client.link()
    assert link.known[PAGE].last is not None
    act, expected = CHANGES[change]
    done = act(other, redis)
    if done is not None:
        await done
    for _ in range(2):
        assert await value(backend) == expected
    redis.close()


async def test_the_same_replies_come_to_something_else_in_time(backend: RedisBackend) -> None:
    """The bytes in Redis are the same; the entry has become stale, and then none at all."""
    await put(backend, stale=60)
    for _ in range(3):
        assert not (await backend.read(PAGE)).stale
    link = await backend._client.link()
    known = link.known[PAGE]
    assert known.last is not None
    now = monotonic()
    for later, stale, entry_there in ((0, False, True), (61, True, True), (121, False, False)):
        backend.clock = lambda later=later: now + later  # type: ignore[misc, assignment]
        reading = await backend.read(PAGE)
        assert (reading.stale, reading.entry is not None) == (stale, entry_there)


async def test_the_same_replies_come_to_other_times_by_another_clock(
    backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's clock was found to be ahead: the entry is fresh for less long, and its bytes are known as before."""
    monkeypatch.setattr("asynctag.backends.redis.connection.ASKED_AGE", 60)  # of the clock nothing else comes
    await put(backend)
    link = await backend._client.link()
    known = link.known[PAGE]
    ends = []
    for came, (ahead, is_known) in enumerate([(0, False), (0, False), (0, True), (30, True), (0, True)]):
        assert (known.last is not None) is is_known, came
        link.connection.clock_offset += ahead
        entry = (await backend.read(PAGE)).entry
        assert entry is not None
        ends.append(entry.fresh_until)
    assert ends[2] - ends[3] == pytest.approx(30, abs=0.5)
    assert ends[3] == ends[4]


async def test_what_comes_again_once_a_second_is_known_by_its_bytes_too(backend: RedisBackend) -> None:
    """Though it comes to other times whenever it comes."""
    await put(backend)
    link = await backend._client.link()
    for is_known in (False, False, True, True):
        assert (link.known[PAGE].last is not None) is is_known
        link.connection.clock_offset += 0.01
        assert await value(backend) == "a value"


async def test_what_comes_again_is_known_by_its_bytes(
    backend: RedisBackend, other: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are as the server sends them, whatever it says of the tags: nothing is parsed."""
    monkeypatch.setattr("asynctag.backends.redis.connection.ASKED_AGE", 60)  # of the clock nothing comes
    for before in ([], [BLUE], MANY):
        if before:
            await other.invalidate(before)
        await put(backend, tags=[RED, *MANY])
        for _ in range(3):
            assert await value(backend) == "a value"
        link = await backend._client.link()
        known = link.known[PAGE]
        assert known.last is not None
        assert await link.connection.send(known.request, 2, known.last) is known.last[1]
        parsed: list[bytes] = []
        with monkeypatch.context() as patch:
            patch.setattr(link.connection, "_parse", parsed.append)
            assert await value(backend) == "a value"
        assert parsed == []


@pytest.mark.parametrize(
    "info", [b"run_id:another\r\nmaster_replid:another\r\n", b"", None, 1, [b"run_id:a"], ReplyError()]
)
async def test_a_server_that_is_another_or_does_not_say_is_left(backend: RedisBackend, info: Any) -> None:
    """Once a second it is asked who it is. Where it refuses to say that now, it may be the one that it was."""
    await put(backend)
    link = await backend._client.link()
    link._see_who(info)
    refused = isinstance(info, ReplyError)
    assert (link.moved, link.connection.closed) == (not refused, not refused)
    assert await value(backend) == "a value"


async def test_only_what_nobody_can_change_is_decoded_once(backend: RedisBackend) -> None:
    """The same text for every hit; lists are everybody's own."""
    cache = Cache(backend, default_ttl=60)

    @cache.cached(name="text")
    async def text() -> str:
        return "a text"

    @cache.cached(name="rows")
    async def rows() -> list[int]:
        return [1, 2]

    for _ in range(5):
        assert await text() == "a text"
        found = await rows()
        assert found == [1, 2]
        found.append(3)
    assert await text() is await text()


async def test_a_disabled_cache_asks_for_nothing(backend: RedisBackend) -> None:
    """Hits of before neither: everything is computed."""
    cache = Cache(backend, default_ttl=60)
    numbers = count()

    @cache.cached(name="number")
    async def number() -> int:
        return next(numbers)

    assert [await number(), await number()] == [0, 0]
    with cache.disabled():
        assert [await number(), await number()] == [1, 2]
    assert await number() == 0


async def test_what_was_decoded_as_one_type_is_not_taken_for_another(backend: RedisBackend) -> None:
    """The bytes of a whole number are those of a float too, where a float is asked for."""
    cache = Cache(backend, default_ttl=60)
    await cache.set("n", 1, returns=int, since=await cache.lookup("n"))
    for returns in (int, int, int, float, int):
        hit = await cache.lookup("n", returns=returns)
        assert isinstance(hit, Hit)
        assert type(hit.value) is returns


@pytest.mark.parametrize("where", ["the reader", "as last time"])
@pytest.mark.parametrize(("waited", "heard", "lost"), [(6, 1, False), (6, 6, True), (49, 1, False), (56, 1, True)])
async def test_what_is_large_may_take_longer_than_a_timeout(
    redis_server: Server, where: str, waited: float, heard: float, lost: bool
) -> None:
    """As long as bytes come; but not for ever, and not where none do. (`heard`: seconds since the last; timeout: 5.)"""
    made = await connect(Redis(port=redis_server.port), connect_timeout=5, timeout=5)
    late = made.send(pack("BLPOP", "nothing", "0"), 1)
    made._flush()
    made._pending[0] = made._suspect = (late, 1, monotonic() - waited, None)  # looked at once, as it should have come
    made._heard = monotonic() - heard
    if where == "the reader":
        made._replies.append(b"its beginning")
    else:
        made._begun = b"its beginning"
    made._watch()
    assert made.closed is lost
    made.close()
    with pytest.raises(TimedOutError if lost else ConnectionLostError):
        await late


async def test_a_server_that_comes_back_is_not_trusted_by_who_knew_another(new_server: Callable[..., Server]) -> None:
    """An address that leads to one server, to another and back: the first has missed what was invalidated there."""
    first, second = new_server(), new_server()
    old = RedisBackend.from_url(first.url)
    await put(old, tags=[RED])
    await old.aclose()
    with Proxy(second.address) as proxy:
        backend = RedisBackend.from_url(proxy.url)  # of a process that began while the other server answered
        await put(backend, tags=[RED])
        await backend.invalidate([RED])
        proxy.turn_to(first.address)
        proxy.cut_now()
        assert await value(backend) is Cause.LOST
        await backend.aclose()


@pytest.mark.parametrize("member", ["epoch", "seq", "floor", "soft"])
@pytest.mark.parametrize("score", ["inf", "-inf", "1e308", "-0.5", "5"])
async def test_numbers_that_no_journal_gives_make_a_new_one(
    backend: RedisBackend, other: RedisBackend, redis_server: Server, member: str, score: str
) -> None:
    """Whatever somebody writes there: a new epoch, and no error from the depth of a script or a parser."""
    await put(backend, tags=[RED])
    await put(other, key=OTHER)
    redis_server.run("ZADD", JOURNAL, score, member)
    for client in (backend, other):
        await client.read(PAGE)
        await client.read_many([PAGE, OTHER])
        await client.invalidate([BLUE])
    assert (await put(backend, value="new", tags=[RED])).accepted
    for client in (backend, other):
        assert await value(client) == "new"
        await client.invalidate([RED])
        assert await value(client) in (Cause.INVALIDATED, Cause.LOST)
        await put(client, value="new", tags=[RED])


@pytest.mark.parametrize("tags", [b"\xa1x", b"\x91\x01", b"\x91\x90", b"\x91\xa1x", b"\x92\xc3\xa1x"])
async def test_tags_that_are_no_names_are_a_clean_miss(
    backend: RedisBackend, redis_server: Server, tags: bytes
) -> None:
    """Numbers, lists, texts without a kind: neither a script nor a caller stumbles over them."""
    await put(backend)
    whole = redis_server.run("GET", PLACE)
    length = int.from_bytes(whole[52:56], "little")
    forged = whole[:52] + len(tags).to_bytes(4, "little") + tags + whole[56 + length :]
    redis_server.run("SET", PLACE, forged)
    assert await value(backend) is Cause.CORRUPT
    assert await backend.tags(PAGE) is None
    assert (await backend.read_many([PAGE, OTHER]))[0].entry is None
    assert (await put(backend, value="new")).accepted
    assert await value(backend) == "new"
