"""One connection for many callers: what they get, what bounds them, and how it ends. On real servers, on both loops."""

import asyncio
import contextlib
import contextvars
import gc
import importlib.util
import math
import os
import random
import select
import ssl
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import anyio
import hiredis
import pytest
from anyio.lowlevel import checkpoint
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel as SentinelManager
from redis.backoff import ConstantBackoff

from asynctag.backends.redis import connection as module
from asynctag.backends.redis.connection import (
    MAX_COALESCED,
    Connection,
    ConnectionLostError,
    TimedOutError,
    connect,
    pack,
)
from asynctag.errors import BackendError, ConfigurationError
from tests.redis.servers import HOST, Sentinel, Server, eventually

NewServer = Callable[..., Server]

#: Seconds that nothing here takes; and as good as none, where it is a timeout that is tested.
PATIENCE, SOON = 20.0, 0.05

LOOPS = ["asyncio"]
if importlib.util.find_spec("uvloop"):
    LOOPS.append("uvloop")


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture(params=LOOPS)
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """For tests that end a loop themselves."""
    if request.param == "asyncio":
        return asyncio.new_event_loop
    import uvloop

    make: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return make


@pytest.fixture
def redis_server(redis_server: Server) -> Iterator[Server]:
    """It goes on after each test, also after one that failed while it was paused."""
    yield redis_server
    redis_server.resume()


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    """What is warned of while garbage is collected fails the test, and not the one after it."""
    with no_complaints():
        yield


@contextmanager
def no_complaints() -> Iterator[None]:
    said: list[object] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda unraisable: said.append(unraisable.exc_value)
    try:
        yield
        gc.collect()
    finally:
        sys.unraisablehook = before
    assert not said


async def opened(client: "Redis | str", **options: Any) -> Connection:
    async with asyncio.timeout(PATIENCE):
        redis = Redis.from_url(client) if isinstance(client, str) else client
        return await connect(redis, **({"connect_timeout": PATIENCE, "timeout": PATIENCE} | options))


@asynccontextmanager
async def connected(client: "Redis | str", **options: Any) -> AsyncIterator[Connection]:
    connection = await opened(client, **options)
    try:
        async with asyncio.timeout(PATIENCE):
            yield connection
    finally:
        connection.close()


async def run(connection: Connection, *parts: str | bytes | int) -> Any:
    (reply,) = await connection.send(pack(*parts), 1)
    return reply


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await checkpoint()


async def flushed() -> None:
    """Until what was sent in the turn before this is on its way."""
    for _ in range(3):
        await checkpoint()


def clients(server: Server) -> list[str]:
    """The ids of the connections that the server has, but for the one that asks."""
    lines: list[str] = server.run("CLIENT", "LIST").decode().splitlines()
    mine = f"id={server.run('CLIENT', 'ID')} "
    return [line for line in lines if not line.startswith(mine)]


def calls(server: Server, command: str) -> int:
    return int(server.info("commandstats").get(f"cmdstat_{command}", "calls=0,").removeprefix("calls=").split(",")[0])


# --- servers that are none ----------------------------------------------------------------------


class Scripted:
    """What no Redis can be made to do: a server that answers the n-th command of a connection as it is told."""

    def __init__(self, answer: Callable[[list[bytes]], bytes]) -> None:
        self.answer = answer
        self.commands: list[list[bytes]] = []
        self.connections = 0
        self.open = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    async def __aenter__(self) -> "Scripted":
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.close()
        await until(lambda: not self.open)

    def say(self, data: bytes) -> None:
        """To everybody, unasked."""
        for writer in self._writers:
            writer.write(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self._writers.add(writer)
        requests = hiredis.Reader(notEnoughData=Scripted)
        try:
            while data := await reader.read(65_536):
                requests.feed(data)
                while (command := requests.gets()) is not Scripted:
                    self.commands.append(command)
                    writer.write(self.answer(command))
                    if HANG_UP in self.commands:
                        return
        except ConnectionError:
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._writers.discard(writer)
            self.open -= 1


HANG_UP = [b"hang up"]


def as_redis(command: list[bytes]) -> bytes:
    """The handshake, and ECHO."""
    match command:
        case [b"HELLO", *_]:
            return b"%2\r\n+server\r\n+redis\r\n+proto\r\n:3\r\n"
        case [b"TIME"]:
            return b"*2\r\n$10\r\n1700000000\r\n$1\r\n0\r\n"
        case [b"ECHO", word]:
            return b"$%d\r\n%b\r\n" % (len(word), word)
    return b"+OK\r\n"


# --- requests and replies ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, module.LARGE, module.LARGE + 1, 3_000_000])
@pytest.mark.anyio
async def test_values_of_any_size(redis_server: Server, size: int) -> None:
    """Packed by hiredis or, since that is slow for large ones, by hand."""
    value = random.Random(size).randbytes(size)
    async with connected(redis_server.url) as connection:
        assert await run(connection, "SET", "ключ", value, "PX", 60_000) == b"OK"
        assert await run(connection, "GET", "ключ".encode()) == value
        assert await run(connection, "INCRBY", "n", -(2**60)) == -(2**60)


def test_packed_the_same_in_both_ways() -> None:
    """Whatever the kinds of the parts."""
    parts = ("SET", "ключ", b"\r\n\x00\xff", 0, -5, 2**63, "")
    assert module._pack_large(parts) == pack(*parts)


@pytest.mark.anyio
async def test_everybody_gets_their_own_reply(redis_server: Server) -> None:
    """Many callers, one connection, replies in the order of the commands."""
    async with connected(redis_server.url) as connection:

        async def caller(number: int) -> None:
            for turn in range(10):
                assert await run(connection, "ECHO", f"{number}.{turn}") == f"{number}.{turn}".encode()

        await asyncio.gather(*[caller(number) for number in range(500)])
        assert len(clients(redis_server)) == 1


@pytest.mark.anyio
async def test_several_commands_in_one_request(redis_server: Server) -> None:
    """Their replies come as one list, and refusals are in it, nested ones too, instead of being raised."""
    async with connected(redis_server.url) as connection:
        request = [
            ("SET", "k", "v"),
            ("INCR", "k"),
            ("MULTI",),
            ("LPUSH", "k", 1),
            ("GET", "k"),
            ("EXEC",),
            ("GET", "-"),
        ]
        one, several = connection.send(pack("ECHO", "a"), 1), connection.send(b"".join(pack(*it) for it in request), 7)
        other = connection.send(pack("ECHO", "b"), 1)
        assert await one == [b"a"]
        ok, refused, *_, executed, nothing = await several
        assert (ok, nothing) == (b"OK", None)
        assert isinstance(refused, hiredis.ReplyError)
        assert isinstance(executed[0], hiredis.ReplyError)
        assert executed[1] == b"v"
        assert await other == [b"b"]


#: What came to some request last time, and the list that it was read as.
RAW, LAST = b"$1\r\na\r\n:1\r\n", [b"a", 1]


def leave_unsent(connection: Connection) -> list[bytes]:
    """Nothing goes to the server any more, `TIME` neither: the test hands over what comes from it, piece by piece.

    What would have gone there is listed.
    """
    written: list[bytes] = []
    transport: Any = connection._transport
    connection._asked_at = math.inf

    class Unsent:
        def write(self, data: bytes) -> None:
            written.append(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(transport, name)

    connection._transport = Unsent()  # type: ignore[assignment]
    return written


@pytest.mark.anyio
async def test_what_comes_again_is_not_parsed_again(redis_server: Server) -> None:
    """The list of last time is the result, for as long as its bytes come; what is read otherwise is another."""
    async with connected(redis_server.url, max_waiting=5) as connection:
        leave_unsent(connection)
        asked = [connection.send(b"", 2, (RAW, LAST)) for _ in range(2)] + [connection.send(b"", 1)]
        assert connection.is_full
        connection.data_received(RAW * 2)
        assert not connection.is_full
        connection.data_received(b"+OK\r\n")
        first, second, other = await asyncio.gather(*asked)
        assert first is second is LAST
        assert other == [b"OK"]
        in_pieces = connection.send(b"", 2, (RAW, LAST))
        for piece in (RAW[:1], RAW[1:-1], RAW[-1:]):
            connection.data_received(piece)
        assert await in_pieces is LAST
        parsed = connection.send(b"", 2)
        connection.data_received(RAW)
        assert await parsed == LAST
        assert await parsed is not LAST


@pytest.mark.anyio
async def test_what_comes_again_to_nobody_is_refused(redis_server: Server) -> None:
    """As every reply that nobody has asked for."""
    async with connected(redis_server.url) as connection:
        leave_unsent(connection)
        connection.send(b"", 2, (RAW, LAST))
        connection.data_received(RAW + RAW)
        assert connection.closed


@pytest.mark.anyio
async def test_who_waits_goes_on_as_replies_come(redis_server: Server) -> None:
    """In their order, each in its own context, before the loop calls another; what they send then is one write."""
    caller: contextvars.ContextVar[int] = contextvars.ContextVar("caller")
    went_on: list[int] = []
    seen: list[tuple[list[int], list[bytes]]] = []
    async with connected(redis_server.url) as connection:
        written = leave_unsent(connection)

        async def call(number: int) -> None:
            caller.set(number)
            assert await connection.send(b"a", 2, (RAW, LAST)) is LAST
            assert asyncio.current_task() is tasks[number]
            went_on.append(caller.get())
            assert await connection.send(b"b", 1) == [b"OK"]

        def receive(data: bytes) -> None:
            connection.data_received(data)
            seen.append((went_on[:], written[:]))

        tasks = [asyncio.create_task(call(number)) for number in range(3)]
        await flushed()
        for data in (RAW * 3, b"+OK\r\n" * 3):
            asyncio.get_running_loop().call_soon(receive, data)
        await asyncio.gather(*tasks)
        assert seen[0] == ([0, 1, 2], [b"aaa", b"bbb"])


async def one_reply(connection: Connection) -> Any:
    (reply,) = await connection.send(b"", 1)
    return reply


@pytest.mark.anyio
async def test_what_comes_while_a_task_runs_is_told_by_the_loop(redis_server: Server) -> None:
    """A task cannot run within another."""
    async with connected(redis_server.url) as connection:
        leave_unsent(connection)
        waiting = asyncio.create_task(one_reply(connection))
        await flushed()
        connection.data_received(b"+OK\r\n")
        assert not waiting.done()
        await flushed()
        assert waiting.done()
        assert waiting.result() == b"OK"


@pytest.mark.anyio
async def test_one_that_goes_on_may_close_the_connection_or_cancel_another(redis_server: Server) -> None:
    """Who was answered with it has its reply, unless it was cancelled; who was not hears that it is closed."""
    async with connected(redis_server.url) as connection:
        leave_unsent(connection)

        async def close() -> None:
            await one_reply(connection)
            connection.close()
            tasks[2].cancel()

        tasks = [asyncio.create_task(one) for one in (close(), *(one_reply(connection) for _ in range(3)))]
        await flushed()
        asyncio.get_running_loop().call_soon(connection.data_received, b"+OK\r\n" * 3)
        _, answered, cancelled, late = await asyncio.gather(*tasks, return_exceptions=True)
        assert answered == b"OK"
        assert isinstance(cancelled, asyncio.CancelledError)
        assert isinstance(late, ConnectionLostError)


@pytest.mark.anyio
async def test_what_the_connection_asks_itself_is_told_in_its_place(redis_server: Server) -> None:
    """Where that closes it, nobody has a reply who asked later, though it has come too."""
    async with connected(redis_server.url) as connection:
        leave_unsent(connection)
        before = asyncio.create_task(one_reply(connection))
        await flushed()
        connection._pending.append((lambda _: connection.close(), 0, 0.0, None))
        later = asyncio.create_task(one_reply(connection))
        await flushed()
        asyncio.get_running_loop().call_soon(connection.data_received, b"+OK\r\n" * 3)
        with pytest.raises(ConnectionLostError):
            await later
        assert await before == b"OK"


@pytest.mark.parametrize("ends", [SystemExit, KeyboardInterrupt])
def test_one_that_goes_on_may_end_the_loop(
    ends: type[BaseException], redis_server: Server, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """It ends as it does wherever else a task raises that, and who was answered too has its reply."""
    loop = new_loop()
    made: list[Connection] = []
    others: list[asyncio.Task[Any]] = []

    async def end() -> None:
        made.append(connection := await opened(redis_server.url))
        others.append(loop.create_task(run(connection, "ECHO", "x")))
        await checkpoint()
        sent = connection.send(pack("ECHO", "y"), 1)
        others.append(loop.create_task(run(connection, "ECHO", "z")))
        await sent
        raise ends

    loop.call_later(PATIENCE, loop.stop)  # where it does not end
    with pytest.raises(ends):
        loop.run_until_complete(end())
    assert [loop.run_until_complete(one) for one in others] == [b"x", b"z"]
    made[0].close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def as_bytes(reply: bytes | int) -> bytes:
    return b":%d\r\n" % reply if isinstance(reply, int) else b"$%d\r\n%b\r\n" % (len(reply), reply)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.anyio
async def test_replies_in_pieces_some_of_them_as_last_time(redis_server: Server, seed: int) -> None:
    """Wherever the pieces begin, and though values look like replies: everybody gets their own."""
    chance = random.Random(seed)
    async with connected(redis_server.url) as connection:
        leave_unsent(connection)
        for _ in range(100):
            came: list[list[bytes | int]] = [chance.choices((b"a", 1, RAW), (4, 4, 1), k=2) for _ in range(8)]
            asked = [connection.send(b"", 2, chance.choice(((RAW, LAST), None))) for _ in came]
            gone = chance.sample(range(8), 2)
            for number in gone:
                asked[number].cancel()
            data = b"".join(as_bytes(reply) for replies in came for reply in replies)
            cuts = sorted(chance.choices(range(len(data)), k=chance.randrange(6)))
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                connection.data_received(data[start:end])
            assert [one.cancelled() or one.result() for one in asked] == [
                number in gone or replies for number, replies in enumerate(came)
            ]
            assert connection._waiting == 0


@pytest.mark.anyio
async def test_one_turn_is_one_write(redis_server: Server) -> None:
    """What is handed over in one turn of the loop reaches the server in one piece."""
    async with connected(redis_server.url) as connection:
        before = int(redis_server.info("stats")["total_reads_processed"])
        await asyncio.gather(*[connection.send(pack("ECHO", number), 1) for number in range(MAX_COALESCED - 1)])
        assert calls(redis_server, "echo") == MAX_COALESCED - 1
        after = int(redis_server.info("stats")["total_reads_processed"])
        assert after - before == 3  # with those for INFO


@pytest.mark.anyio
async def test_many_in_one_turn_are_several_writes(redis_server: Server) -> None:
    """The server begins with the first while callers prepare the others; in order all the same, and none left over."""
    number = 3 * MAX_COALESCED + 5
    async with connected(redis_server.url) as connection:
        written: list[int] = []
        transport: Any = connection._transport

        class Counting:
            def write(self, data: bytes) -> None:
                written.append(data.count(b"ECHO"))
                transport.write(data)

            def __getattr__(self, name: str) -> Any:
                return getattr(transport, name)

        connection._transport = Counting()  # type: ignore[assignment]
        asked = [connection.send(pack("ECHO", one), 1) for one in range(number)]
        assert written == [MAX_COALESCED] * 3
        assert [int(reply) for (reply,) in await asyncio.gather(*asked)] == list(range(number))
        assert written == [*[MAX_COALESCED] * 3, 5]
        connection._transport = transport


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode_responses", [False, True])
@pytest.mark.anyio
async def test_replies_are_as_the_protocol_has_them(
    redis_server: Server, protocol: int, decode_responses: bool
) -> None:
    """Bytes, and with RESP3 its own types, whatever else the client's settings are. `False` is a reply, too."""
    client = Redis.from_url(
        redis_server.url,
        protocol=protocol,
        decode_responses=decode_responses,
        db=3,
        client_name="me",
        health_check_interval=1,
        retry=Retry(ConstantBackoff(0), 10),
        socket_timeout=SOON,
        single_connection_client=True,
    )
    async with connected(client) as connection:
        assert await run(connection, "HSET", "h", "field", "value") == 1
        assert await run(connection, "ZADD", "z", 1, "m") == 1
        assert await run(connection, "GET", "none") is None
        assert await run(connection, "CLIENT", "GETNAME") == b"me"
        assert b"db=3" in await run(connection, "CLIENT", "INFO")
        no = await run(connection, "EVAL", "redis.setresp(3); return false", 0)
        fields, score = await run(connection, "HGETALL", "h"), await run(connection, "ZSCORE", "z", "m")
    if protocol == 3:
        assert (fields, score, no) == ({b"field": b"value"}, 1.0, False)
        assert type(score) is float
        assert no is False
    else:
        assert (fields, score) == ([b"field", b"value"], b"1")
        assert no is None or no == 0


@pytest.mark.anyio
async def test_pushes_answer_nobody(redis_server: Server) -> None:
    """What the server sends unasked stands between replies, and is skipped."""
    async with connected(redis_server.url) as connection:
        assert await run(connection, "CLIENT", "TRACKING", "ON", "BCAST") == b"OK"
        for turn in range(20):
            redis_server.run("SET", f"other:{turn}", turn)
            sent = [connection.send(pack("SET", f"k{turn}", turn) + pack("ECHO", turn), 2) for _ in range(20)]
            for future in sent:
                assert await future == [b"OK", str(turn).encode()]
        assert await run(connection, "CLIENT", "TRACKING", "OFF") == b"OK"


# --- callers that are cancelled ------------------------------------------------------------------


@pytest.mark.anyio
async def test_callers_cancelled_at_each_step(redis_server: Server) -> None:
    """Before the write, before the reply, and after it: the connection stays, and nobody gets another's reply."""
    async with connected(redis_server.url) as connection:

        async def caller(number: int) -> bytes:
            reply: bytes = await run(connection, "ECHO", number)
            if number == 2:  # Many replies come at once: others have theirs, and have not been resumed yet.
                for task in callers[6::4]:
                    task.cancel()
            return reply

        redis_server.pause()
        callers = [asyncio.create_task(caller(number)) for number in range(4_000)]
        await until(lambda: connection._waiting == len(callers))
        for task in callers[::4]:
            task.cancel()  # not written yet
        await flushed()
        assert not connection._unsent
        for task in callers[1::4]:
            task.cancel()  # written
        redis_server.resume()
        await asyncio.wait(callers)
        for number, task in enumerate(callers):
            if number % 4 < 2:
                assert task.cancelled()
            elif not task.cancelled():
                assert task.result() == str(number).encode()
        assert sum(task.cancelled() for task in callers) > 2_000
        assert not any(task.cancelled() for task in callers[3::4])
        assert await run(connection, "ECHO", "x") == b"x"
        assert connection._waiting == 0
        assert len(clients(redis_server)) == 1


@pytest.mark.anyio
async def test_a_storm_of_cancellations(redis_server: Server) -> None:
    """Tens of thousands, at any moment, one reply or several."""
    chance = random.Random(1)
    async with connected(redis_server.url, max_waiting=200) as connection:
        checked = 0

        async def caller(number: int) -> None:
            nonlocal checked
            for turn in range(50):
                if connection.is_full:
                    await connection.room()
                words = [f"{number}.{turn}.{word}" for word in range(chance.randrange(1, 4))]
                replies = await connection.send(b"".join(pack("ECHO", word) for word in words), len(words))
                assert replies == [word.encode() for word in words]
                checked += 1

        storm = {asyncio.create_task(caller(number)) for number in range(300)}
        cancelled = 0
        while storm:
            for task in chance.sample(list(storm), len(storm) // 10):
                cancelled += task.cancel()
            for _ in range(chance.randrange(6)):
                await checkpoint()
            done = {task for task in storm if task.done()}
            storm -= done
            for task in done:
                assert task.cancelled() or task.result() is None
            storm |= {
                asyncio.create_task(caller(-cancelled - number)) for number in range(len(done)) if cancelled < 5_000
            }
        assert cancelled >= 5_000
        assert checked > 1_000
        assert await run(connection, "ECHO", "x") == b"x"
        assert (connection._waiting, connection.is_full, not connection._queue) == (0, False, True)


# --- time ------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_server_that_does_not_reply(redis_server: Server) -> None:
    """After the timeout the connection is broken, and all who wait are told."""
    async with connected(redis_server.url) as connection:
        redis_server.pause()
        restart_watchdog(connection, SOON)
        waiting = [connection.send(pack("PING"), 1) for _ in range(3)]
        await flushed()
        waiting.append(connection.send(pack("PING"), 1))
        began = time.monotonic()
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, TimedOutError)
            assert f"{HOST}:{redis_server.port} did not reply within {SOON} s" in str(error)
        assert time.monotonic() - began > SOON / 2
        assert connection.closed
        with pytest.raises(ConnectionLostError) as closed:
            connection.send(pack("PING"), 1)
        assert not closed.value.sent


@pytest.mark.anyio
async def test_what_the_watchdog_looks_at(redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long the oldest command has waited, however busy the connection is; without a command there is no timer."""
    clock = time.monotonic()
    monkeypatch.setattr(module, "monotonic", lambda: clock)
    async with connected(redis_server.url, timeout=60) as connection:
        restart_watchdog(connection, 60)
        for _ in range(3):
            sent = connection.send(pack("PING"), 1)
            await flushed()
            assert connection._watchdog is not None
            assert await sent == [b"PONG"]
            clock += 45
        connection._watch()
        assert connection._watchdog is None

        redis_server.pause()
        first = connection.send(pack("PING"), 1)
        await flushed()
        clock += 59
        second = connection.send(pack("PING"), 1)
        await flushed()
        for looks in (1, 2):
            connection._watch()
            assert not connection.closed, looks
        clock += 2
        connection._watch()
        assert not connection.closed  # see below
        connection._watch()
        assert connection.closed
        for error in await asyncio.gather(first, second, return_exceptions=True):
            assert isinstance(error, TimedOutError)


@pytest.mark.anyio
async def test_a_large_reply_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """While bytes of it come; but not for ever."""
    clock = time.monotonic()
    monkeypatch.setattr(module, "monotonic", lambda: clock)
    async with Scripted(lambda said: b"$1000\r\n" if said == [b"PING"] else as_redis(said)) as server:
        async with connected(server.url, timeout=60) as connection:
            reply = connection.send(pack("PING"), 1)
            await until(lambda: [b"PING"] in server.commands)
            for part in range(module.LONGEST + 1):
                clock += 59
                heard = connection._heard
                server.say(b"x" * part)
                if part:
                    await until(lambda heard=heard: connection._heard > heard)
                for _ in range(2):
                    connection._watch()
                    assert not connection.closed
            clock += 59
            server.say(b"x")
            for _ in range(2):
                connection._watch()
            assert connection.closed
            with pytest.raises(TimedOutError):
                await reply


@pytest.mark.anyio
async def test_a_large_request_may_take_longer(redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the server takes of it."""
    clock = time.monotonic()
    monkeypatch.setattr(module, "monotonic", lambda: clock)
    async with connected(redis_server.url, timeout=60) as connection:
        transport = connection._transport
        assert transport is not None
        blocked = connection.send(pack("BLPOP", "no such list", 0), 1)
        await until(lambda: "cmd=blpop" in clients(redis_server)[0])
        redis_server.pause()
        large = connection.send(pack("SET", "k", b"x" * 20_000_000), 1)
        await flushed()
        connection._watch()
        redis_server.resume()
        await until(lambda: not transport.get_write_buffer_size())
        clock += 59
        connection._watch()  # It sees that it was taken, and counts from now on.
        clock += 59
        for _ in range(2):
            connection._watch()
            assert not connection.closed
        clock += 2
        for _ in range(2):
            connection._watch()
        assert connection.closed
        for error in await asyncio.gather(blocked, large, return_exceptions=True):
            assert isinstance(error, TimedOutError)


@pytest.mark.anyio
async def test_a_loop_that_stood_still(redis_server: Server) -> None:
    """A reply that came in time, and was not read because the loop was busy, is no reason to break the connection."""
    async with connected(redis_server.url) as connection:
        redis_server.pause()
        restart_watchdog(connection, SOON)
        reply = connection.send(pack("ECHO", "x"), 1)
        await flushed()
        redis_server.resume()
        assert connection._transport is not None
        select.select([connection._transport.get_extra_info("socket")], [], [], PATIENCE)
        time.sleep(2 * SOON)  # noqa: ASYNC251 - this is the loop standing still
        assert await reply == [b"x"]
        assert not connection.closed


def restart_watchdog(connection: Connection, timeout: float) -> None:
    """Have it as it is after a while without commands, with another timeout than that of connecting."""
    if connection._watchdog is not None:
        connection._watchdog.cancel()
    connection._watchdog = None
    connection._timeout = timeout


@pytest.mark.anyio
async def test_the_watchdog_keeps_no_context(redis_server: Server) -> None:
    """What the first caller has in its context variables is not kept alive by those that come after it."""
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")

    class Held:
        pass

    async def caller() -> "weakref.ref[Held]":
        held = Held()
        variable.set(held)
        await run(connection, "PING")
        return weakref.ref(held)

    async with connected(redis_server.url) as connection:
        restart_watchdog(connection, PATIENCE)
        held = await asyncio.create_task(caller())
        await flushed()
        assert connection._watchdog is not None
        gc.collect()
        assert held() is None


def ahead_by(seconds: float) -> Callable[[], float]:
    return lambda: time.monotonic() + seconds


@pytest.mark.anyio
async def test_the_offset_of_the_servers_clock(redis_server: Server) -> None:
    """With it, this process's clock is never behind the server's; here they are the same."""
    async with connected(redis_server.url) as connection:
        offset = time.time() - time.monotonic()
        assert offset - 0.001 <= connection.clock_offset <= offset + 1


@pytest.mark.anyio
async def test_the_offset_is_a_second_old_at_most(redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is asked for again with the first command after that, and known when its reply is handled."""
    async with connected(redis_server.url) as connection:
        for ahead in (10.0, 10.5, 20.0):
            first, asked = connection.clock_offset, calls(redis_server, "time")
            monkeypatch.setattr(module, "monotonic", ahead_by(ahead))
            known: list[float] = []
            requests = [connection.send(pack("ECHO", "x") * 2, 2), connection.send(pack("ECHO", "y"), 1)]
            requests[0].add_done_callback(lambda _, known=known: known.append(connection.clock_offset))
            assert await asyncio.gather(*requests) == [[b"x", b"x"], [b"y"]]
            if ahead == 10.5:
                assert (calls(redis_server, "time"), known) == (asked, [first])
            else:
                assert calls(redis_server, "time") == asked + 1
                assert known[0] == pytest.approx(time.time() - time.monotonic() - ahead, abs=1)
                assert known[0] == connection.clock_offset


@pytest.mark.anyio
async def test_an_inquiry_goes_out_once_a_second(redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the next commands after that, and who asks is told before their replies are handled."""
    async with connected(redis_server.url) as connection:
        told: list[Any] = []
        connection.inquiry = pack("ECHO", "who"), told.append
        for ahead, times in ((10.0, 1), (10.5, 1), (20.0, 2)):
            monkeypatch.setattr(module, "monotonic", ahead_by(ahead))
            known: list[int] = []
            requests = [connection.send(pack("ECHO", "x") * 2, 2), connection.send(pack("ECHO", "y"), 1)]
            requests[0].add_done_callback(lambda _, known=known: known.append(len(told)))
            assert await asyncio.gather(*requests) == [[b"x", b"x"], [b"y"]]
            assert (told, known) == ([b"who"] * times, [times])
        assert connection._waiting == 0


@pytest.mark.anyio
async def test_the_offset_counts_from_when_it_was_asked_for(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the time was asked for again before the first answer came."""
    async with connected(redis_server.url) as connection:
        redis_server.pause()
        offsets: list[float] = []
        waiting = []
        for ahead in (10.0, 20.0):
            monkeypatch.setattr(module, "monotonic", ahead_by(ahead))
            waiting.append(connection.send(pack("PING"), 1))
            await flushed()
        monkeypatch.setattr(connection, "_set_clock", lambda reply, asked: offsets.append(asked))
        redis_server.resume()
        await asyncio.gather(*waiting)
        assert offsets[1] - offsets[0] == pytest.approx(10, abs=5)


# --- bounds ----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_first_come_first_served(redis_server: Server) -> None:
    """Past the bound callers wait for room, in their order, and those cancelled there are left out."""
    async with connected(redis_server.url, max_waiting=4) as connection:
        redis_server.pause()
        sent = [connection.send(pack("PING"), 1), connection.send(pack("PING"), 1)]
        assert not connection.is_full
        sent.append(connection.send(pack("PING") * 2, 2))
        assert connection.is_full
        order: list[int] = []

        async def caller(number: int) -> None:
            await connection.room()
            order.append(number)
            assert connection._waiting < 4
            assert await run(connection, "ECHO", number) == str(number).encode()

        callers = [asyncio.create_task(caller(number)) for number in range(20)]
        await flushed()
        for task in callers[::3]:
            task.cancel()
        await flushed()
        assert order == []
        redis_server.resume()
        await asyncio.gather(*sent)
        await asyncio.wait(callers)
        assert order == [number for number in range(20) if number % 3]
        assert (connection._waiting, connection.is_full) == (0, False)
        await connection.room()


@pytest.mark.parametrize("how", ["cancelled", "without a command"])
@pytest.mark.anyio
async def test_a_place_that_is_not_taken(redis_server: Server, how: str) -> None:
    """Who is called, and is cancelled before it is resumed, or sends nothing after all, leaves it to the next."""
    async with connected(redis_server.url, max_waiting=1) as connection:
        redis_server.pause()

        async def first() -> None:
            await run(connection, "PING")  # Resumed before the one who gets its place, which came after it.
            assert connection._waiting == 1
            if how == "cancelled":
                called.cancel()

        async def next_one() -> None:
            await connection.room()
            await run(connection, "PING")

        sent = asyncio.create_task(first())
        await until(lambda: connection.is_full)
        called = asyncio.create_task(connection.room())
        next_one_too = asyncio.create_task(next_one())
        await flushed()
        redis_server.resume()
        await asyncio.gather(sent, next_one_too)
        await asyncio.wait([called])
        assert called.cancelled() is (how == "cancelled")
        assert (connection._waiting, connection.is_full) == (0, False)


@pytest.mark.anyio
async def test_a_queue_that_is_destroyed(redis_server: Server) -> None:
    """A caller that is not cancelled but destroyed keeps no place either."""
    async with connected(redis_server.url, max_waiting=1) as connection:
        redis_server.pause()
        sent = connection.send(pack("PING"), 1)
        waiting = connection.room()
        waiting.send(None)
        waiting.close()
        redis_server.resume()
        await sent
        assert (connection._waiting, connection.is_full) == (0, False)


@pytest.mark.anyio
async def test_no_room_in_time(redis_server: Server) -> None:
    """The wait for room is bounded, and the connection is not blamed for it."""
    async with connected(redis_server.url, max_waiting=1) as connection:
        redis_server.pause()
        sent = connection.send(pack("PING"), 1)
        connection._timeout = SOON
        with pytest.raises(TimedOutError, match="no room"):
            await connection.room()
        assert not connection.closed
        redis_server.resume()
        assert await sent == [b"PONG"]
        await connection.room()
        assert await run(connection, "PING") == b"PONG"


@pytest.mark.anyio
async def test_no_room_on_a_closed_connection(redis_server: Server) -> None:
    """Those who wait for room learn that it is closed, and that nothing of theirs was sent."""
    async with connected(redis_server.url, max_waiting=1) as connection:
        redis_server.pause()
        sent = connection.send(pack("PING"), 1)
        waiting = [asyncio.create_task(connection.room()) for _ in range(3)]
        await flushed()
        connection.close()
        errors = await asyncio.gather(sent, *waiting, connection.room(), return_exceptions=True)
        redis_server.resume()
        assert [isinstance(error, ConnectionLostError) and error.sent for error in errors] == [True, *[False] * 4]


@pytest.mark.anyio
async def test_a_socket_that_takes_no_more_is_full(redis_server: Server) -> None:
    """What cannot be written is bounded, too."""
    async with connected(redis_server.url) as connection:
        blocked = connection.send(pack("BLPOP", "list", 0), 1)
        await until(lambda: "cmd=blpop" in clients(redis_server)[0])
        redis_server.pause()
        value, sent = b"x" * 1_000_000, []
        while not connection.is_full:
            sent.append(connection.send(pack("SET", "k", value), 1))
            await flushed()
            assert len(sent) < 100
        room = asyncio.create_task(connection.room())
        await flushed()
        assert not room.done()
        redis_server.resume()
        await room  # The server takes what comes, and replies to nothing: it waits for the list.
        assert not blocked.done()
        redis_server.run("LPUSH", "list", "x")
        assert await blocked == [[b"list", b"x"]]
        assert await asyncio.gather(*sent) == [[b"OK"]] * len(sent)
        assert not connection.is_full


# --- loss --------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_killed_by_the_server(redis_server: Server) -> None:
    """Whether a command ran is not known if it was written; what was handed over later was not."""
    async with connected(redis_server.url) as connection:
        me = await run(connection, "CLIENT", "ID")
        waiting = [connection.send(pack("BLPOP", "no such list", 0), 1), connection.send(pack("PING"), 1)]
        await until(lambda: "cmd=blpop" in clients(redis_server)[0])
        assert redis_server.run("CLIENT", "KILL", "ID", me) == 1
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, ConnectionLostError)
            assert error.sent
            assert f"{HOST}:{redis_server.port}" in str(error)
        assert connection.closed
        with pytest.raises(ConnectionLostError):
            connection.send(pack("PING"), 1)


@pytest.mark.anyio
async def test_a_server_that_crashes(new_server: NewServer) -> None:
    """All who wait are told."""
    server = new_server()
    async with connected(server.url) as connection:
        waiting = [connection.send(pack("BLPOP", "no such list", 0), 1) for _ in range(100)]
        await flushed()
        server.kill()
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(error) for error in errors} == {ConnectionLostError}


@pytest.mark.anyio
async def test_closed_by_us(redis_server: Server) -> None:
    """At once, any number of times. What was handed over in this turn was not sent, and is not."""
    async with connected(redis_server.url) as connection:
        redis_server.pause()
        sent = connection.send(pack("SET", "k", "sent"), 1)
        await flushed()
        unsent = connection.send(pack("SET", "k", "unsent"), 1)
        connection.close()
        connection.close()
        redis_server.resume()
        errors = await asyncio.gather(sent, unsent, return_exceptions=True)
        assert [isinstance(error, ConnectionLostError) and error.sent for error in errors] == [True, False]
        await until(lambda: not clients(redis_server))
        assert redis_server.run("GET", "k") in (b"sent", None)


@pytest.mark.parametrize("cut", [b"$10\r\nhalf", b"*2\r\n$1\r\na\r\n", b"$", b""])
@pytest.mark.anyio
async def test_a_reply_that_breaks_off(cut: bytes) -> None:
    """It is no reply."""

    def answer(command: list[bytes]) -> bytes:
        if command == [b"PING"]:
            server.commands.append(HANG_UP)
            return as_redis([b"ECHO", b"whole"]) + cut
        return as_redis(command)

    async with Scripted(answer) as server, connected(server.url) as connection:
        whole, half = connection.send(pack("PING"), 1), connection.send(pack("ECHO", "x"), 1)
        assert await whole == [b"whole"]
        with pytest.raises(ConnectionLostError) as lost:
            await half
        assert lost.value.sent


@pytest.mark.parametrize("wrong", [b"HTTP/1.1 200 OK\r\n", b"+PONG\r\n+to nothing\r\n", b"\x15\x03\x01\x00\x02"])
@pytest.mark.anyio
async def test_a_reply_that_is_none(wrong: bytes) -> None:
    """Whoever waits gets an error that says what came, and the connection is closed."""
    async with Scripted(lambda command: wrong if command == [b"PING"] else as_redis(command)) as server:
        async with connected(server.url) as connection:
            replies = asyncio.gather(connection.send(pack("PING"), 1), return_exceptions=True)
            await until(lambda: connection.closed)
            [reply] = await replies
            if wrong.startswith(b"+PONG"):
                assert reply == [b"PONG"]
            else:
                assert isinstance(reply, BackendError)
                assert not isinstance(reply, ConnectionLostError)
                assert "answered wrongly: Protocol error" in str(reply)


@pytest.mark.parametrize("answer", [b"+OK\r\n", b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", b":1\r\n"])
@pytest.mark.anyio
async def test_a_clock_that_goes_wrong(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be something else that answers now: nothing of it is believed."""
    asked: list[bytes] = []

    def answers(command: list[bytes]) -> bytes:
        asked.extend(command)
        return answer if asked.count(b"TIME") > 1 and command == [b"TIME"] else as_redis(command)

    async with Scripted(answers) as server, connected(server.url) as connection:
        before = connection.clock_offset
        monkeypatch.setattr(module, "monotonic", ahead_by(10))
        with pytest.raises(BackendError, match="answered wrongly: the reply to TIME"):
            await run(connection, "ECHO", "x")
        assert connection.clock_offset == before


@pytest.mark.anyio
async def test_a_clock_that_is_refused_later(redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the time nothing is served: the commands beside it fail, and say why."""
    redis_server.run("ACL", "SETUSER", "narrow", "on", "nopass", "+@all", "~*")
    async with connected(Redis(host=HOST, port=redis_server.port, username="narrow", password="x")) as connection:
        redis_server.run("ACL", "SETUSER", "narrow", "-time")
        assert await run(connection, "PING") == b"PONG"
        monkeypatch.setattr(module, "monotonic", ahead_by(10))
        with pytest.raises(BackendError, match=r"TIME.*NOPERM"):
            await run(connection, "PING")
        assert connection.closed
    redis_server.run("ACL", "DELUSER", "narrow")


# --- connecting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decode_responses", [False, True])
@pytest.mark.anyio
async def test_a_handshake_and_nothing_else(decode_responses: bool) -> None:
    """redis-py's retries, health checks and notifications of maintenance are left out, and so is its pool."""
    client = Redis(host=HOST, protocol=3, health_check_interval=1, max_connections=1, decode_responses=decode_responses)
    async with Scripted(as_redis) as server:
        client.connection_pool.connection_kwargs["port"] = server.port
        async with connected(client) as connection, connected(client) as another:
            assert await run(connection, "ECHO", "x") == await run(another, "ECHO", "x") == b"x"
            assert server.connections == 2
            handshake = [b"HELLO", b"CLIENT", b"CLIENT", b"TIME"]
            assert sorted(command[0] for command in server.commands) == sorted([*handshake * 2, b"ECHO", b"ECHO"])
            assert connection.clock_offset == pytest.approx(1_700_000_000 - time.monotonic(), abs=10)
    await client.aclose()


@pytest.mark.anyio
async def test_a_closed_port() -> None:
    """Said at once, with the address and the cause."""
    async with Scripted(as_redis) as server:
        url = server.url
    with pytest.raises(
        BackendError, match=rf"no connection to Redis at {url.removeprefix('redis://')}: .*(?i:refused|connect)"
    ):
        await opened(url)


@pytest.mark.anyio
async def test_one_attempt() -> None:
    """The client's own policy for retries counts for its own commands."""

    def hang_up(command: list[bytes]) -> bytes:
        server.commands.append(HANG_UP)
        return b""

    async with Scripted(hang_up) as server:
        client = Redis.from_url(server.url, retry=Retry(ConstantBackoff(0), 10))
        with pytest.raises(BackendError, match="no connection to Redis at"):
            await opened(client)
        assert server.connections == 1
        assert client.connection_pool.connection_kwargs["retry"]._retries == 10


NOT_REDIS = {
    "HTTP": lambda command: b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    "POP3": lambda command: b"+OK\r\n",
    "TLS": lambda command: b"\x15\x03\x01\x00\x02\x02\x46",
    "anything": lambda command: b"*1\r\n*1\r\n:1\r\n",
}


@pytest.mark.parametrize("options", [{}, {"protocol": 2, "driver_info": None}, {"password": "secret"}], ids=str)
@pytest.mark.parametrize("answer", NOT_REDIS.values(), ids=NOT_REDIS)
@pytest.mark.anyio
async def test_not_redis(answer: Callable[[list[bytes]], bytes], options: dict[str, Any]) -> None:
    """Said as what it is, whether it shows in the handshake or only after it."""
    async with Scripted(answer) as server:
        client = Redis(host=HOST, port=server.port, **({"protocol": 3} | options))
        with pytest.raises(
            ConfigurationError, match=f"Redis at {HOST}:{server.port} does not answer as Redis"
        ) as error:
            await opened(client)
        assert "secret" not in str(error.value)
        await until(lambda: not server.open)


@pytest.mark.anyio
async def test_what_no_retry_changes(redis_server: Server) -> None:
    """Is the configuration's fault."""
    with pytest.raises(ConfigurationError, match="DB index is out of range"):
        await opened(f"{redis_server.url}/9999")
    with pytest.raises(ConfigurationError, match="no_such_option"):
        await opened(f"{redis_server.url}/0?no_such_option=1")
    async with Scripted(lambda command: b"-ERR unknown command 'HELLO'\r\n") as old:
        with pytest.raises(ConfigurationError, match="unknown command"):
            await opened(old.url)


@pytest.mark.anyio
async def test_what_an_operator_may_change(new_server: NewServer) -> None:
    """Passwords and rights are the server's: they may be others in a minute."""
    server = new_server(requirepass="right")
    for url in (f"redis://:wrong@{HOST}:{server.port}", f"redis://{HOST}:{server.port}"):
        for protocol in (2, 3):
            with pytest.raises(BackendError, match=f"no connection to Redis at {HOST}:{server.port}: .") as error:
                await opened(Redis.from_url(url, protocol=protocol))
            assert "wrong" not in str(error.value)
    server.run("ACL", "SETUSER", "narrow", "on", ">right", "+@all", "-time")
    with pytest.raises(BackendError, match="NOPERM"):
        await opened(f"redis://narrow:right@{HOST}:{server.port}")
    async with connected(server.url) as connection:
        assert await run(connection, "PING") == b"PONG"


@pytest.mark.anyio
async def test_no_connection_in_time(redis_server: Server) -> None:
    """The whole of it is bounded, whatever the client's own timeouts are."""
    redis_server.pause()
    client = Redis.from_url(redis_server.url, socket_timeout=100, socket_connect_timeout=100)
    with pytest.raises(TimedOutError, match=f"no connection to Redis at {HOST}:{redis_server.port} within {SOON} s"):
        await opened(client, connect_timeout=SOON)
    redis_server.resume()
    await until(lambda: not clients(redis_server))


@pytest.mark.parametrize("command", [b"HELLO", b"CLIENT", b"TIME"])
@pytest.mark.anyio
async def test_a_cancelled_connect(command: bytes) -> None:
    """Leaves no socket open, at whatever step it is cancelled."""
    async with Scripted(lambda said: b"" if said[0] == command else as_redis(said)) as server:
        connecting = asyncio.create_task(opened(f"{server.url}?protocol=3"))
        await until(lambda: command in [said[0] for said in server.commands])
        await flushed()
        connecting.cancel()
        await asyncio.wait([connecting])
        assert connecting.cancelled()
        await until(lambda: not server.open)


@pytest.mark.anyio
async def test_bytes_that_came_too_early() -> None:
    """What redis-py has read from the socket, and not parsed, is not lost: here the half of a push."""

    def answer(command: list[bytes]) -> bytes:
        match command:
            case [b"SELECT", _]:
                return b"+OK\r\n>2\r\n+a\r\n"
            case [b"TIME"]:
                return b"+b\r\n" + as_redis(command)
        return as_redis(command)

    async with Scripted(answer) as server:
        client = Redis(host=HOST, port=server.port, db=1, protocol=2, driver_info=None, socket_read_size=5)
        async with connected(client) as connection:
            assert await run(connection, "ECHO", "x") == b"x"
        # In the buffer of its parser they are lost, and that is noticed.
        client.connection_pool.connection_kwargs["socket_read_size"] = 100
        with pytest.raises(BackendError, match="nobody had asked for"):
            await opened(client)


@pytest.mark.parametrize("before", ["we have its transport", "we know of it"])
@pytest.mark.anyio
async def test_hung_up_after_the_handshake(before: str) -> None:
    """Noticed at once, not when the time is over."""

    def answer(command: list[bytes]) -> bytes:
        if command == [b"SELECT", b"1"]:
            server.commands.append(HANG_UP)
        return as_redis(command)

    async def dawdle(connection: Any) -> None:
        await connection.on_connect()
        if before == "we have its transport":
            await until(connection._reader.at_eof)

    async with Scripted(answer) as server:
        with pytest.raises(BackendError, match="no connection to Redis") as error:
            await opened(Redis(host=HOST, port=server.port, db=1, redis_connect_func=dawdle))
        assert not isinstance(error.value, TimedOutError)


@pytest.mark.anyio
async def test_nothing_stays(redis_server: Server) -> None:
    """An application finds no task of a connection among its own; of a closed one, nothing at all."""
    before = asyncio.all_tasks()
    connection = await opened(redis_server.url)
    assert await run(connection, "PING") == b"PONG"
    assert asyncio.all_tasks() == before
    closed = weakref.ref(connection)
    connection.close()
    del connection
    await flushed()
    gc.collect()
    assert closed() is None
    for _ in range(5):
        await checkpoint()
        assert asyncio.all_tasks() == before


@pytest.mark.anyio
async def test_a_unix_socket(unix_server: Server) -> None:
    """With a password, and its path in the errors."""
    async with connected(unix_server.url) as connection:
        assert await run(connection, "ECHO", "x") == b"x"
    unix_server.kill()
    with pytest.raises(BackendError, match=f"no connection to Redis at {unix_server.socket}"):
        await opened(unix_server.url)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for localhost in one file, by the `openssl` program."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem -out cert.pem"
    command += " -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    try:
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no openssl here")
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return both


@contextmanager
def with_tls(server: Server, certificate: Path) -> Iterator[str]:
    """The URL of a server by TLS, which pip's cannot do itself. In a thread, so that any loop may use it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    urls: SimpleQueue[str] = SimpleQueue()
    over = threading.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(HOST, server.port)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    async def main() -> None:
        listening = await asyncio.start_server(serve, HOST, 0, ssl=context)
        port = listening.sockets[0].getsockname()[1]
        urls.put(f"rediss://localhost:{port}?ssl_ca_certs={certificate}")
        await asyncio.to_thread(over.wait, PATIENCE)
        listening.close()
        await until(lambda: len(asyncio.all_tasks()) == 1)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        yield urls.get(timeout=PATIENCE)
    finally:
        over.set()
        thread.join(PATIENCE)


@pytest.mark.anyio
async def test_tls(redis_server: Server, certificate: Path) -> None:
    """And what is said where it is not."""
    with with_tls(redis_server, certificate) as url:
        async with connected(url) as connection:
            value = b"x" * 1_000_000
            assert await run(connection, "SET", "k", value) == b"OK"
            replies = [connection.send(pack("ECHO", number) + pack("GET", "k"), 2) for number in range(20)]
            assert await asyncio.gather(*replies) == [[str(number).encode(), value] for number in range(20)]
        await until(lambda: not clients(redis_server))
        url = url.partition("?")[0]
        with pytest.raises(BackendError, match="CERTIFICATE_VERIFY_FAILED"):
            await opened(url)
        with pytest.raises((BackendError, ConfigurationError), match="Redis at localhost:"):
            await opened(url.replace("rediss", "redis"))


@pytest.fixture(params=["TCP", "TLS", "Unix"])
def any_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of `redis_server`, by each kind of transport."""
    if request.param == "TCP":
        yield request.getfixturevalue("redis_server").url
    elif request.param == "TLS":
        with with_tls(request.getfixturevalue("redis_server"), request.getfixturevalue("certificate")) as url:
            yield url
    else:
        yield request.getfixturevalue("unix_server").url


# --- Sentinel ------------------------------------------------------------------------------------------


def test_by_sentinel(
    new_server: NewServer, new_sentinel: Callable[..., Sentinel], new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """The master it names, in one loop after the other; what it is asked with leaves nothing in the user's clients."""
    master = new_server()
    sentinel = new_sentinel(master)
    master.run("SET", "k", "v")
    # The first to be asked is one that does not answer.
    silent = new_sentinel(master)
    silent.pause()
    manager = SentinelManager([silent.address, sentinel.address])
    client = manager.master_for(sentinel.name)

    async def use() -> None:
        async with connected(client, connect_timeout=2) as connection:
            assert await run(connection, "GET", "k") == b"v"
        with pytest.raises(BackendError, match="no connection to the master 'other' of Sentinel: No master found"):
            await opened(manager.master_for("other"), connect_timeout=2)
        for one in manager.sentinels:
            assert not one.connection_pool._available_connections

    for _ in range(2):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(use())
    eventually("no connections of ours", lambda: b"cmd=sentinel" not in sentinel.run("CLIENT", "LIST"))
    silent.resume()


# --- the end of the loop, other threads, forks -----------------------------------------------------------


def anyio_run(work: Callable[[], Coroutine[Any, Any, Any]], new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    anyio.run(work, backend_options={"loop_factory": new_loop})


def asyncio_run(
    work: Callable[[], Coroutine[Any, Any, Any]], new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(work())


@pytest.mark.parametrize("runs", [asyncio_run, anyio_run])
def test_it_ends_with_its_loop(
    any_url: str, redis_server: Server, new_loop: Callable[[], asyncio.AbstractEventLoop], runs: Callable[..., None]
) -> None:
    """Nobody has to close it: the loop's end does, and nothing is warned of."""
    left: list[Connection] = []

    async def use() -> None:
        connection = await opened(any_url)
        left.append(connection)
        assert await run(connection, "PING") == b"PONG"
        await leave_waiting(connection)

    with no_complaints():
        runs(use, new_loop)
        connection = left.pop()
        assert connection.closed
        connection.close()
        del connection
    eventually("no connection of ours", lambda: not clients(redis_server))


@pytest.mark.parametrize("where", ["here", "thread", "loop"])
def test_a_loop_that_was_just_closed(
    any_url: str, redis_server: Server, new_loop: Callable[[], asyncio.AbstractEventLoop], where: str
) -> None:
    """It can be closed afterwards, from anywhere: no error, no warning, no socket left."""
    loop = new_loop()
    connection = loop.run_until_complete(opened(any_url))
    loop.run_until_complete(leave_waiting(connection))
    with warnings.catch_warnings():
        # uvloop closes what is open, and warns of it: nothing that comes after can prevent that.
        warnings.simplefilter("ignore" if "uvloop" in type(loop).__module__ else "error")
        loop.close()
    with no_complaints():
        assert not connection.closed
        if where == "here":
            connection.close()
        elif where == "thread":
            in_thread(connection.close)
        else:
            asyncio.run(in_loop(connection.close))
        assert connection.closed
        connection.close()
        with pytest.raises(ConnectionLostError):
            connection.send(pack("PING"), 1)
        del connection, loop
    eventually("no connection of ours", lambda: not clients(redis_server))


def test_closed_while_its_loop_stands_still(
    any_url: str, redis_server: Server, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """And that loop is never run again: a second call, after the loop's end, does what the first could not."""
    loop = new_loop()
    connection = loop.run_until_complete(opened(any_url))
    connection.close()
    assert connection.closed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if "uvloop" in type(loop).__module__ else "error")
        loop.close()
    with no_complaints():
        connection.close()
        del connection, loop
    eventually("no connection of ours", lambda: not clients(redis_server))


async def leave_waiting(connection: Connection) -> None:
    """For a reply, and for being written. Somebody waits for both."""
    connection.send(pack("BLPOP", "no such list", 0), 1).add_done_callback(asyncio.Future.exception)
    await flushed()
    connection.send(pack("PING"), 1).add_done_callback(asyncio.Future.exception)


def in_thread(work: Callable[[], Any]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENCE)


async def in_loop(work: Callable[[], Any]) -> None:
    work()


@pytest.mark.anyio
async def test_closed_by_another_thread(redis_server: Server) -> None:
    """While its own runs: whoever waits is told there."""
    async with connected(redis_server.url) as connection:
        waiting = connection.send(pack("BLPOP", "no such list", 0), 1)
        await flushed()
        asyncio.get_running_loop().set_debug(True)  # It notices what is done in the wrong thread.
        await asyncio.to_thread(connection.close)
        with pytest.raises(ConnectionLostError):
            await waiting
        await until(lambda: connection.closed)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
# From 3.12 on, where there are threads. The child calls nothing that would wait for them.
ignore_fork_warning = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def in_child(work: Callable[[], Any]) -> None:
    """Run `work` in a fork, which ends without any cleaning up; errors there are errors here."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@needs_fork
@ignore_fork_warning
@pytest.mark.anyio
async def test_a_fork_leaves_it_alone(redis_server: Server) -> None:
    """The child has no use for it, does it no harm, and can connect for itself; the parent goes on."""
    async with connected(redis_server.url) as connection:
        assert await run(connection, "PING") == b"PONG"
        redis_server.pause()
        before = connection.send(pack("ECHO", "before"), 1)
        await flushed()
        unsent = connection.send(pack("INCR", "unsent"), 1)

        def child() -> None:
            assert connection.closed
            with pytest.raises(ConnectionLostError):
                connection.send(pack("INCR", "child"), 1)
            connection.abandon()
            connection._flush()
            connection.close()
            gc.collect()

        in_child(child)
        redis_server.resume()
        assert not connection.closed
        assert await before == [b"before"]
        assert await unsent == [1]

        async def use() -> None:
            async with connected(redis_server.url) as own:
                assert await run(own, "INCR", "child") == 1

        in_child(lambda: asyncio.run(use()))
        assert await run(connection, "GET", "child") == b"1"
        assert await run(connection, "ECHO", "after") == b"after"


@needs_fork
@ignore_fork_warning
@pytest.mark.anyio
async def test_a_fork_while_it_connects(redis_server: Server) -> None:
    """What the child destroys of it is its own."""
    redis_server.pause()
    connecting = asyncio.create_task(opened(redis_server.url))
    await flushed()
    for _ in range(100):
        await checkpoint()
    waiting: Any = connecting.get_coro()
    in_child(waiting.close)
    redis_server.resume()
    connection = await connecting
    assert await run(connection, "PING") == b"PONG"
    connection.close()


@needs_fork
@ignore_fork_warning
def test_a_fork_that_keeps_nothing(redis_server: Server, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """What is garbage in the child is not closed there, and not warned of."""
    kept: list[Any] = [loop := new_loop()]
    kept.append(loop.run_until_complete(opened(redis_server.url)))
    del loop

    def child() -> None:
        with no_complaints():
            kept.clear()

    in_child(child)
    loop, connection = kept
    assert loop.run_until_complete(run(connection, "PING")) == b"PONG"
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(checkpoint())
