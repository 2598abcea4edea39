"""Event loops, threads and processes that come and go: each has a connection of its own, and leaves nothing open.

What a connection does as its loop ends is in `test_connection.py`; here, that a backend and a cache outlive it.
"""

import asyncio
import gc
import importlib.util
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asynctag import Cache, InvalidationError, add_tags
from asynctag.backends.redis import RedisBackend
from asynctag.http import CacheMiddleware
from tests.redis.proxy import Proxy
from tests.redis.servers import PATIENCE, Server, eventually

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it would rather have httpx2
    from starlette.testclient import TestClient

NewLoop = Callable[[], asyncio.AbstractEventLoop]

LOOPS = ["asyncio"]
if importlib.util.find_spec("uvloop"):
    LOOPS.append("uvloop")


@pytest.fixture(params=LOOPS)
def use_uvloop(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "uvloop")


@pytest.fixture
def new_loop(use_uvloop: bool) -> NewLoop:
    if not use_uvloop:
        return asyncio.new_event_loop
    import uvloop

    make: NewLoop = uvloop.new_event_loop
    return make


def of(server: Server) -> RedisBackend:
    return RedisBackend.from_url(f"{server.url}?client_name=ours")


def connections(server: Server) -> int:
    """How many of ours there are."""
    return int(server.run("CLIENT", "LIST").count(b"name=ours "))


def all_closed(server: Server) -> None:
    gc.collect()
    eventually("the end of all connections", lambda: connections(server) == 0)


class Rows:
    """What is cached: `computed` tells hits from misses."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.version = 0
        self.computed = 0

    async def compute(self) -> int:
        self.computed += 1
        return self.version

    async def read(self) -> int:
        return await self.cache.get_or_set("row", self.compute, tags=["row"])

    async def write(self) -> None:
        self.version += 1
        await self.cache.invalidate("row")


@pytest.fixture
def rows(redis_server: Server) -> Rows:
    return Rows(Cache(of(redis_server), default_ttl=60))


# --- loops ---------------------------------------------------------------------------------------------


def test_a_test_client_with_a_loop_for_each_request(rows: Rows, redis_server: Server, use_uvloop: bool) -> None:
    """Starlette's, used without `with`: hits go across the loops, and each connection ends with its own."""

    async def page(request: Request) -> PlainTextResponse:
        add_tags("row")
        return PlainTextResponse(f"{rows.version} {await rows.read()}", headers={"cache-control": "public, max-age=60"})

    async def edit(request: Request) -> PlainTextResponse:
        await rows.write()
        return PlainTextResponse("")

    app = Starlette(routes=[Route("/", page), Route("/edit", edit, methods=["POST"])])
    client = TestClient(CacheMiddleware(app, cache=rows.cache), backend_options={"use_uvloop": use_uvloop})
    for version in range(5):
        texts, hits = [], []
        for _ in range(4):
            response = client.get("/")
            texts.append(response.text)
            hits.append("hit" in response.headers["cache-status"].split("; ")[1])
        assert texts == [f"{version} {version}"] * 4
        assert hits == [False, True, True, True]
        client.post("/edit")
    assert rows.computed == 5
    assert connections(redis_server) <= 1  # that of the last one may still be on its way out
    all_closed(redis_server)


@pytest.mark.parametrize("end", ["run", "close"])
def test_a_backend_outlives_its_loops(rows: Rows, redis_server: Server, new_loop: NewLoop, end: str) -> None:
    """Loops that end as `asyncio.run` ends them, or are just closed under the connection."""
    for version in range(5):
        loop = new_loop()
        assert loop.run_until_complete(rows.read()) == version
        assert loop.run_until_complete(rows.read()) == version
        assert rows.computed == version + 1
        loop.run_until_complete(rows.write())
        if end == "run":
            loop.run_until_complete(loop.shutdown_asyncgens())
        with warnings.catch_warnings():
            if end == "close" and "uvloop" in type(loop).__module__:
                warnings.simplefilter("ignore")  # it closes what is open, and warns of it: no fault of ours
            loop.close()
        assert connections(redis_server) <= 1
    if end == "close":
        # Nobody is told of a loop that is closed so: the next one to connect, or `aclose`, cleans up behind it.
        asyncio.run(rows.cache.aclose())
    all_closed(redis_server)


def test_a_loop_that_ends_in_the_middle_of_commands(rows: Rows, redis_server: Server, new_loop: NewLoop) -> None:
    """Its callers are cancelled with it; the next loop finds everything as it was."""

    async def leave() -> None:
        for _ in range(20):
            asyncio.ensure_future(rows.read())  # noqa: RUF006 - left to be cancelled
            asyncio.ensure_future(rows.write())  # noqa: RUF006
        await asyncio.sleep(0)

    for _ in range(3):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(leave())

    async def go_on() -> None:
        await rows.write()
        assert await rows.read() == rows.version
        computed = rows.computed
        assert await rows.read() == rows.version
        assert rows.computed == computed
        await rows.cache.aclose()

    asyncio.run(go_on())
    all_closed(redis_server)


def test_a_loop_that_ends_while_it_connects(redis_server: Server, new_loop: NewLoop) -> None:
    """Nobody else waits for that connection."""
    with Proxy(redis_server.address) as proxy:
        rows = Rows(Cache(RedisBackend.from_url(proxy.url), default_ttl=60))
        proxy.hold()

        async def leave() -> None:
            asyncio.ensure_future(rows.read())  # noqa: RUF006
            await asyncio.to_thread(proxy.held.wait, PATIENCE)

        for _ in range(4):  # that is no failure of the server: it takes three of those not to try any more
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(leave())
        proxy.mend()

        async def go_on() -> None:
            await rows.write()
            assert await rows.read() == 1
            await rows.cache.aclose()

        asyncio.run(go_on())
    all_closed(redis_server)


# --- threads -------------------------------------------------------------------------------------------


def in_threads(*runs: Callable[[], Any]) -> None:
    """Run each in a thread of its own, all at once; the first error is raised here."""
    errors: list[BaseException] = []

    def catch(run: Callable[[], Any]) -> None:
        try:
            run()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=catch, args=[run]) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "it hangs"
    if errors:
        raise errors[0]


def test_two_threads_with_a_loop_each(rows: Rows, redis_server: Server, new_loop: NewLoop) -> None:
    """They share the entries, the journal and the backend, and have a connection each; one may end before the other."""
    turn = threading.Barrier(2)

    def run(number: int) -> None:
        async def main() -> None:
            for round_of in range(20):
                if round_of % 2 == number:  # this one writes
                    await rows.write()
                turn.wait(PATIENCE)
                assert await rows.read() == rows.version == round_of + 1
                turn.wait(PATIENCE)
            assert connections(redis_server) == 2
            turn.wait(PATIENCE)
            if number:
                return
            turn.wait(PATIENCE)  # the other one has closed its connection
            assert await rows.read() == 20
            await rows.cache.aclose()

        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main())
            if number:
                runner.run(rows.cache.aclose())
                turn.wait(PATIENCE)

    in_threads(lambda: run(0), lambda: run(1))
    assert rows.computed <= 40  # both at once, at worst
    all_closed(redis_server)


def test_many_threads_that_come_and_go(rows: Rows, redis_server: Server) -> None:
    """As workers do that make a loop for each piece of work."""

    async def work() -> None:
        for _ in range(5):
            await rows.read()
            await rows.cache.invalidate("row")

    def run() -> None:
        for _ in range(5):
            asyncio.run(work())

    in_threads(*[run] * 6)
    all_closed(redis_server)
    asyncio.run(work())  # which forgets those that are gone
    backend: Any = rows.cache._filling().backend
    assert len(backend._client._links) == 1


# --- processes -----------------------------------------------------------------------------------------

FORKING = """
import asyncio, gc, os, sys, warnings

from asynctag import Cache
from asynctag.backends.redis import RedisBackend

url, fork_inside = sys.argv[1], sys.argv[2] == "inside"
cache = Cache(RedisBackend.from_url(url), default_ttl=60)
version = 0

async def compute():
    return version

async def read():
    return await cache.get_or_set("row", compute, tags=["row"])

async def child():
    global version
    asyncio.get_running_loop().slow_callback_duration = 60
    assert await read() == 0
    version = 1
    await cache.invalidate("row")
    assert await read() == 1
    await cache.aclose()

def fork():
    pid = os.fork()
    if not pid:
        try:
            asyncio.run(child())
            gc.collect()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid

async def parent():
    global version
    asyncio.get_running_loop().slow_callback_duration = 60
    for _ in range(3):
        version = 0
        await cache.invalidate("row")
        assert await asyncio.gather(*[read() for _ in range(5)]) == [0] * 5
        if fork_inside:
            reading = asyncio.ensure_future(read())  # its command is on its way, or about to be
            await asyncio.sleep(0)
            pid = fork()
            assert await reading in (0, 1)
        else:
            pid = fork()
        assert os.waitpid(pid, 0)[1] == 0, "the child failed"
        version = 1
        assert await read() == 1
    await cache.aclose()

asyncio.run(parent())
gc.collect()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("where", ["inside", "between"])
def test_a_forked_child_has_a_connection_of_its_own(redis_server: Server, where: str) -> None:
    """Parent and child go on, each with its own, and see what the other invalidates. Nothing is left open.

    The child has to make a loop of its own: its parent's reads from the parent's sockets, as asyncio does it.
    """
    ran = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", FORKING, redis_server.url, where],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=Path(__file__).parents[2],
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("done\n", "", 0)


# --- what is not possible ------------------------------------------------------------------------------


def test_after_all_loops_have_ended_an_invalidation_still_raises(rows: Rows, new_server: Callable[..., Server]) -> None:
    """With the server gone too: what could not be written is said in whichever loop it is asked for."""
    server = new_server()
    cache = Cache(of(server), default_ttl=60)
    asyncio.run(cache.invalidate("row"))
    server.kill()
    for _ in range(5):
        with pytest.raises(InvalidationError) as caught:
            asyncio.run(cache.invalidate("row"))
        assert caught.value.tags == ("row",)
