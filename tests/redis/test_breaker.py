"""A server that fails is left alone for a while, and then tried by one caller."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from asynctag import BackendError, Cache, InvalidationError
from asynctag.backends.redis import RedisBackend
from asynctag.backends.redis.breaker import Breaker
from asynctag.testing import FakeClock
from tests.redis.proxy import Proxy
from tests.redis.servers import PATIENCE, Server

FAILURES, WINDOW, PAUSE = 3, 10.0, 1.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def breaker(clock: FakeClock) -> Breaker:
    return Breaker(clock, failures=FAILURES, window=WINDOW, pause=PAUSE)


def lets_in(breaker: Breaker) -> bool:
    try:
        breaker.check()
    except BackendError:
        return False
    return True


def open_it(breaker: Breaker) -> None:
    for _ in range(FAILURES):
        breaker.failed("it is down")
    assert breaker.is_open


# --- its rules -----------------------------------------------------------------------------------------


def test_it_opens_after_so_many_failures(breaker: Breaker) -> None:
    """Not before; and it says why, and when the next try is."""
    for _ in range(FAILURES - 1):
        breaker.failed("it is down")
        assert not breaker.is_open
        breaker.check()
    breaker.failed("it is out of order")
    assert breaker.is_open
    with pytest.raises(BackendError, match=r"not tried: it is out of order; the next try is in 1\.0 s"):
        breaker.check()


def test_failures_long_ago_do_not_count(breaker: Breaker, clock: FakeClock) -> None:
    """Only those within the window do: once a minute is no outage."""
    for _ in range(10):
        breaker.failed("it is down")
        clock.advance(WINDOW / (FAILURES - 1) + 0.1)
    assert not breaker.is_open
    clock.advance(WINDOW)
    for _ in range(FAILURES):
        assert not breaker.is_open
        breaker.failed("it is down")
        clock.advance(WINDOW / FAILURES)
    assert breaker.is_open


def test_a_success_in_between_does_not_hide_failures(breaker: Breaker) -> None:
    """A server that takes connections and answers nothing: each connects, and each fails."""
    for _ in range(FAILURES):
        breaker.worked()
        breaker.failed("it does not answer")
    assert breaker.is_open


def test_half_open_lets_one_in(breaker: Breaker, clock: FakeClock) -> None:
    """After the pause, and not before; the others wait for what becomes of that one."""
    open_it(breaker)
    clock.advance(PAUSE - 0.01)
    assert not lets_in(breaker)
    clock.advance(0.01)
    assert [lets_in(breaker) for _ in range(5)] == [True] + [False] * 4
    assert breaker.is_open


def test_it_closes_when_the_probe_works(breaker: Breaker, clock: FakeClock) -> None:
    """For everybody, and it takes as many failures as before to open again."""
    open_it(breaker)
    clock.advance(PAUSE)
    breaker.check()
    breaker.worked()
    assert not breaker.is_open
    assert all(lets_in(breaker) for _ in range(5))
    for _ in range(FAILURES - 1):
        breaker.failed("it is down")
    assert not breaker.is_open
    breaker.failed("it is down")
    assert breaker.is_open


def test_it_stays_open_when_the_probe_fails(breaker: Breaker, clock: FakeClock) -> None:
    """For another pause, which begins at the failure."""
    open_it(breaker)
    clock.advance(PAUSE)
    for _ in range(3):
        breaker.check()
        clock.advance(PAUSE / 2)
        breaker.failed("it still is")
        clock.advance(PAUSE - 0.01)
        with pytest.raises(BackendError, match="it still is"):
            breaker.check()
        clock.advance(0.01)


def test_a_probe_of_which_nothing_is_heard(breaker: Breaker, clock: FakeClock) -> None:
    """Its loop has ended: after another pause somebody else may try."""
    open_it(breaker)
    clock.advance(PAUSE)
    breaker.check()
    clock.advance(PAUSE - 0.01)
    assert not lets_in(breaker)
    clock.advance(0.01)
    assert [lets_in(breaker) for _ in range(2)] == [True, False]


def test_one_probe_among_threads(breaker: Breaker, clock: FakeClock) -> None:
    """However many ask at the same moment."""
    for _ in range(20):
        open_it(breaker)
        clock.advance(PAUSE)
        let_in: list[bool] = []
        start = threading.Barrier(8)

        def ask(start: threading.Barrier = start, let_in: list[bool] = let_in) -> None:
            start.wait(PATIENCE)
            let_in.append(lets_in(breaker))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(let_in) == [False] * 7 + [True]


# --- with a backend ------------------------------------------------------------------------------------


@pytest.fixture
def proxy(redis_server: Server) -> Iterator[Proxy]:
    """Counts connections, and is a server that is down while it cuts each of them."""
    with Proxy(redis_server.address) as one:
        yield one


@pytest.fixture
def cache(proxy: Proxy, clock: FakeClock) -> Cache:
    backend = RedisBackend.from_url(proxy.url)
    backend._client._breaker = Breaker(clock, failures=FAILURES, window=WINDOW, pause=PAUSE)
    return Cache(backend, default_ttl=60)


async def one() -> int:
    return 1


async def read(cache: Cache, callers: int = 30) -> None:
    assert await asyncio.gather(*(cache.get_or_set(f"row {n}", one) for n in range(callers))) == [1] * callers


async def break_it(cache: Cache, proxy: Proxy) -> None:
    """Until nobody tries any more."""
    proxy.cut_each()
    proxy.cut_now()
    for _ in range(FAILURES):
        await read(cache, 1)


async def of_no_use(cache: Cache) -> None:
    """Callers are served, by computing; what invalidates raises."""
    await read(cache)
    with pytest.raises(InvalidationError, match=r"not tried: .* closed"):
        await cache.invalidate("row")


@pytest.mark.anyio
async def test_while_it_is_open_nobody_connects(cache: Cache, proxy: Proxy, clock: FakeClock) -> None:
    """It costs a server that is down, and its callers, three attempts, and then one each pause."""
    await break_it(cache, proxy)
    tried = proxy.connections
    assert tried <= FAILURES + 1
    for pauses in range(3):
        for _ in range(5):
            await of_no_use(cache)
        assert proxy.connections == tried + pauses
        clock.advance(PAUSE)
        await read(cache)  # thirty at once: one of them tries
        assert proxy.connections == tried + pauses + 1


@pytest.mark.anyio
async def test_after_the_probe_everybody_is_served_again(cache: Cache, proxy: Proxy, clock: FakeClock) -> None:
    """The pause has to be over; then there is one connection, and hits, at the latest for those who come next."""
    await break_it(cache, proxy)
    proxy.mend()
    tried = proxy.connections
    await of_no_use(cache)
    assert proxy.connections == tried
    clock.advance(PAUSE)
    await read(cache)
    assert proxy.connections == tried + 1
    await cache.invalidate("row")
    await read(cache)

    async def fails() -> int:
        raise AssertionError("it is not served")

    assert await asyncio.gather(*(cache.get_or_set(f"row {n}", fails) for n in range(30))) == [1] * 30
    assert proxy.connections == tried + 1
    await cache.aclose()


@pytest.mark.anyio
async def test_who_comes_while_it_is_being_tried_does_not_wait(cache: Cache, proxy: Proxy, clock: FakeClock) -> None:
    """An attempt may take the whole timeout: that is for one caller, the others compute meanwhile."""
    await break_it(cache, proxy)
    proxy.mend()
    proxy.hold()
    clock.advance(PAUSE)
    probe = asyncio.create_task(cache.get_or_set("row 0", one))
    await asyncio.to_thread(proxy.held.wait, PATIENCE)
    with pytest.raises(InvalidationError, match="is being tried by somebody else"):
        await cache.invalidate("row")
    await asyncio.gather(*(cache.get_or_set(f"row {n}", one) for n in range(1, 30)))
    assert not probe.done()
    proxy.mend()
    assert await probe == 1
    assert await cache.invalidate("row")
    await cache.aclose()


@pytest.mark.anyio
async def test_a_server_that_takes_connections_and_then_drops_them(cache: Cache, proxy: Proxy) -> None:
    """It is down too: it answers no command."""
    for _ in range(2):
        proxy.replied = 0
        await cache.invalidate("row")
        await cache.aclose()
    proxy.cut_each(after=proxy.replied - 10)  # in the middle of the first reply
    for _ in range(2 * FAILURES):
        await read(cache, 1)
    connections = proxy.connections
    await of_no_use(cache)
    assert proxy.connections == connections


@pytest.mark.anyio
async def test_lost_stores_are_no_outage(cache: Cache, proxy: Proxy) -> None:
    """Connections are closed now and then, and new ones work at once: that a store is lost with one is no failure."""
    for number in range(3 * FAILURES):
        found = await cache.lookup(f"key {number}")
        proxy.cut()
        assert not await cache.set(f"key {number}", number, since=found)
        assert await cache.invalidate("row")
    await cache.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["hit", "miss", "get_many", "store", "invalidate"])
async def test_a_server_that_hangs_costs_each_caller_one_timeout(proxy: Proxy, clock: FakeClock, way: str) -> None:
    """Commands that get no answer count as failures, once for all who wait on the same connection."""
    backend = RedisBackend.from_url(proxy.url, timeout=0.1)
    backend._client._breaker = breaker = Breaker(clock, failures=FAILURES, window=WINDOW, pause=PAUSE)
    cache = Cache(backend, default_ttl=60)

    async def ask() -> object:
        match way:
            case "hit" | "miss":
                return await cache.get(way)
            case "get_many":
                return await cache.get_many(["hit", "miss"])
            case "store":
                return await cache.set("stored", 1, since=found)
        with pytest.raises(InvalidationError):
            return await cache.invalidate("row")

    for fails in range(1, FAILURES + 1):
        assert await cache.get_or_set("hit", one) == await cache.get("hit") == 1
        found = await cache.lookup("stored")
        proxy.hold()
        assert not any(await asyncio.gather(*(ask() for _ in range(30))))
        assert breaker.is_open is (fails == FAILURES)
        proxy.mend()
    connections = proxy.connections
    with pytest.raises(InvalidationError, match=r"not tried: .* did not reply within 0\.1 s"):
        await cache.invalidate("row")
    assert proxy.connections == connections
    clock.advance(PAUSE)
    assert await cache.invalidate("row")
    assert not breaker.is_open
    await cache.aclose()


def test_one_probe_for_all_loops(cache: Cache, proxy: Proxy, clock: FakeClock) -> None:
    """Each thread has a connection of its own, and none of them tries while another does."""
    asyncio.run(break_it(cache, proxy))
    proxy.mend()
    proxy.hold()
    clock.advance(PAUSE)
    tried = proxy.connections
    served = threading.Barrier(4)
    go_on = threading.Event()

    async def work(first: bool) -> None:
        if not first:
            await asyncio.to_thread(proxy.held.wait, PATIENCE)
            await read(cache)
            await asyncio.to_thread(served.wait, PATIENCE)
            await asyncio.to_thread(go_on.wait, PATIENCE)
        await read(cache)
        await read(cache)
        await cache.aclose()

    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            asyncio.run(work(number == 0))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    served.wait(PATIENCE)  # the three others have, while the first one waits for its connection
    assert proxy.connections == tried + 1
    proxy.mend()
    threads[0].join(PATIENCE)
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert not errors
    assert proxy.connections == tried + 4


def test_a_probe_whose_loop_ends_is_followed_by_another(cache: Cache, proxy: Proxy, clock: FakeClock) -> None:
    """A process is not cut off for ever because of a caller that went away."""
    asyncio.run(break_it(cache, proxy))
    proxy.mend()
    proxy.hold()
    clock.advance(PAUSE)

    async def leave() -> None:
        task = asyncio.ensure_future(read(cache, 1))
        await asyncio.to_thread(proxy.held.wait, PATIENCE)
        assert not task.done()

    asyncio.run(leave())
    proxy.mend()
    clock.advance(PAUSE)

    async def go_on() -> None:
        assert await cache.invalidate("row")
        await cache.aclose()

    asyncio.run(go_on())
