"""One connection to Redis, shared by every caller of one event loop.

Commands that are handed over in one turn of the loop leave in one write, or in a few; replies come back in order, so a
deque of futures says whose they are. redis-py makes the connection (TLS, passwords, Sentinel, Unix sockets, HELLO);
then its transport gets a protocol of ours. On the path of a command there is no task, no lock and no timer.
"""

import asyncio
import copy
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from contextvars import Context
from time import monotonic
from types import SimpleNamespace
from typing import Any, TypeAlias, cast
from weakref import WeakSet

import hiredis
from redis import exceptions as refusals
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff

from asynctag.errors import BackendError, ConfigurationError

#: The age, in seconds, at which what is known of the server is asked for again: its clock, and the `inquiry`.
ASKED_AGE = 1.0

#: How many timeouts a reply may take while bytes of it, or of what is sent, are on their way.
LONGEST = 10

#: How many requests go out in one write. With all at once, the server would have nothing to do while callers prepare
#: them; with fewer, writing takes longer than all else.
MAX_COALESCED = 32

#: Above this size hiredis takes longer to pack a part than a join of bytes does: at 64 KiB and more, 25 times as long.
LARGE = 16_384

#: How refusals begin that no retry changes: of a server too old for `HELLO`, and of a database that it has not.
LASTING = ("unknown command", "NOPROTO", "DB index is out of range")

#: What the reader answers when it needs more bytes. Not `False` or `None`: those are replies.
_MORE = object()

#: Stands in the place of a transport for the writer of a stream.
_GONE = SimpleNamespace(is_closing=lambda: True)


class ConnectionLostError(BackendError):
    """The connection broke, or was closed, before the reply came.

    `sent` is whether the command may have reached the server. If so, nobody knows whether it ran.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class TimedOutError(BackendError):
    """No reply, no connection or no room within the time. Whether a command ran is not known."""


class NotRedisError(BackendError):
    """What came is no reply of Redis."""


#: What a handshake ends with where the server speaks something else: redis-py looks into replies unseen.
NOT_REDIS = (
    refusals.InvalidResponse,
    hiredis.ProtocolError,
    NotRedisError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


def pack(*parts: str | bytes | int) -> bytes:
    """A command as it is sent: its name and its arguments."""
    for part in parts:
        if type(part) is bytes and len(part) > LARGE:
            return _pack_large(parts)
    return cast(bytes, hiredis.pack_command(cast(Any, parts)))


def _pack_large(parts: tuple[str | bytes | int, ...]) -> bytes:
    packed = [b"*%d\r\n" % len(parts)]
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        packed += (b"$%d\r\n" % len(raw), raw, b"\r\n")
    return b"".join(packed)


#: What came to a request last time: the bytes, and the replies that they are.
Last: TypeAlias = tuple[bytes, list[Any]]

#: Who waits for replies, for how many, since when, and what came last time (`Last | None`) or, once they are answered,
#: came now. Of what the connection asks itself, a function of the reply stands in the place of the future, and 0 in
#: that of the number.
Waiting: TypeAlias = tuple[Any, int, float, Any]

_TIME = pack("TIME")

#: Whether a future tells who waits for it. It is not documented; where it does not, the loop calls them.
_SHOWS_CALLBACKS = hasattr(asyncio.Future, "_callbacks")


class Connection(asyncio.Protocol):
    """A connection that `connect` has made. For the event loop that it was made in, and that one's thread."""

    def __init__(self, transport: asyncio.Transport, address: str, timeout: float, max_waiting: int) -> None:
        self.address = address
        #: Nothing can be sent any more: make another connection.
        self.closed = False
        #: Too much waits for replies, or for the socket: wait in `room()` before sending.
        self.is_full = False
        #: The server's Unix time less `time.monotonic()` as it was when that time was asked for: with this offset the
        #: server's clock is at most `monotonic() + clock_offset`. It is no older than a second at any reply.
        self.clock_offset = 0.0
        #: A command with one reply that goes out once a second, before others, and who is told that reply.
        self.inquiry: tuple[bytes, Callable[[Any], object]] | None = None
        #: Told, once, where the connection is given up because a reply did not come in time.
        self.on_timeout: Callable[[str], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = transport
        self._timeout = timeout
        self._max_waiting = max_waiting
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        # Those at the end belong to `_unsent`, what is to be written in this turn.
        self._pending: deque[Waiting] = deque()
        self._unsent: list[bytes] = []
        self._will_flush = False
        self._turn = 0.0
        #: The replies so far to a request that gets several.
        self._replies: list[Any] = []
        #: What has come of replies that are as last time so far.
        self._begun = b""
        #: How many replies are to come, with places kept for those called from `_queue`.
        self._waiting = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._paused = False
        self._asked_at = -ASKED_AGE
        self._watchdog: asyncio.TimerHandle | None = None
        # Of its own, so that what a caller has in its context is not kept alive.
        self._context = Context()
        self._suspect: object = None
        self._heard = self._wrote = 0.0
        self._unwritten = 0
        self._guard: Any = self._until_the_loop_ends()
        _connections.add(self)

    def send(self, request: bytes, replies: int, last: Last | None = None) -> "asyncio.Future[list[Any]]":
        """Hand over packed commands that get so many `replies` (one at least): the result is the list of those.

        Where they are what came `last` time, byte for byte, the result is that time's list: nothing is parsed.
        A refusal is a `hiredis.ReplyError` in the list. Raises `ConnectionLostError` if the connection is closed.
        """
        if self.closed:
            raise ConnectionLostError(f"the connection to {self.address} is closed", sent=False)
        unsent = self._unsent
        if not unsent:
            self._begin_turn()
        unsent.append(request)
        # Without `loop=`, which takes longer to tell than to find out.
        future: asyncio.Future[list[Any]] = asyncio.Future()
        self._pending.append((future, replies, self._turn, last))
        self._waiting += replies
        if self._waiting >= self._max_waiting:
            self.is_full = True
        if len(unsent) == MAX_COALESCED:
            self._flush()
        return future

    def _begin_turn(self) -> None:
        self._turn = monotonic()
        if not self._will_flush:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        unsent, transport = self._unsent, self._transport
        if not unsent or transport is None:
            return  # It was closed after the last `send`.
        now = monotonic()
        if now - self._asked_at >= ASKED_AGE:
            self._ask_about_the_server(now)
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(self._timeout, self._watch, context=self._context)
        data = unsent[0] if len(unsent) == 1 else b"".join(unsent)
        unsent.clear()
        transport.write(data)

    def _ask_about_the_server(self, now: float) -> None:
        """Before what is unsent, so that the answer has come when the replies to that are handled."""
        self._asked_at = now
        asked, at = [_TIME], len(self._pending) - len(self._unsent)
        self._pending.insert(at, (lambda reply: self._set_clock(reply, now), 0, now, None))
        if self.inquiry is not None:
            request, tell = self.inquiry
            asked.append(request)
            self._pending.insert(at + 1, (tell, 0, now, None))
        self._unsent[:0] = asked

    def data_received(self, data: bytes) -> None:
        self._heard = monotonic()
        answered: list[Waiting] = []
        try:
            rest = data if self._is_within_a_reply() else self._take_as_last(self._begun + data, answered)
            if rest:
                self._parse(rest, answered)
        finally:
            if self.is_full:
                self._make_room()
            self._answer(answered)

    def _is_within_a_reply(self) -> bool:
        """Whether the reader has the beginning of what a request gets."""
        return bool(self._replies) or self._reader.has_data()

    def _take_as_last(self, data: bytes, answered: list[Waiting]) -> bytes:
        """Find those, in their order, to whom the same comes as last time. What is left for the reader."""
        pending, at, taken, length = self._pending, 0, 0, len(data)
        expected: list[bytes] = []
        for one in pending:
            last = one[3]
            if last is None:
                break
            raw = last[0]
            if (end := at + len(raw)) > length:
                break
            at = end
            taken += one[1]
            expected.append(raw)
            answered.append(one)
        # All at once: to compare each by itself takes longer than all else that is done for it here.
        if not data.startswith(b"".join(expected)):
            at = _cut(expected, data)
            del answered[len(expected) :]
            taken = sum(one[1] for one in answered)
        for _ in expected:
            pending.popleft()
        self._waiting -= taken
        rest = data[at:]
        last = pending[0][3] if pending else None
        if last is not None and last[0].startswith(rest):
            self._begun = rest
            return b""
        self._begun = b""
        return rest

    def _parse(self, data: bytes, answered: list[Waiting]) -> None:
        pending, gets = self._pending, self._reader.gets
        self._reader.feed(data)
        try:
            while (reply := gets()) is not _MORE and not self.closed:
                if type(reply) is hiredis.PushNotification:
                    continue  # Nobody here has asked for it.
                if not pending:
                    raise hiredis.ProtocolError(f"a reply to nothing, {reply!r}")
                who, replies, handed_over, _ = pending[0]
                if replies == 1:
                    reply = [reply]
                elif replies:
                    self._replies.append(reply)
                    if len(self._replies) < replies:
                        continue
                    reply, self._replies = self._replies, []
                pending.popleft()
                if replies:
                    self._waiting -= replies
                    answered.append((who, replies, handed_over, (b"", reply)))
                else:
                    who(reply)
        except hiredis.ProtocolError as error:
            self._lose(NotRedisError, f"{self.address} answered wrongly: {error}")

    def _answer(self, answered: list[Waiting]) -> None:
        """Tell them what came. Tasks that wait for it go on here: the loop takes longer to call one than a hit does.

        What they send then is written at the end.
        """
        at_once = _SHOWS_CALLBACKS and asyncio.current_task(self._loop) is None
        self._will_flush = True
        try:
            for future, _, _, (_, replies) in answered:
                waiting = future._callbacks if at_once else None
                if waiting is not None and len(waiting) == 1:  # the step of a task
                    ((go_on, context),) = waiting
                    future.remove_done_callback(go_on)
                    future.set_result(replies)
                    try:
                        context.run(go_on, future)
                    except BaseException as error:  # A task may end the loop, but not by ways of the transport.
                        self._loop.call_soon(_raise, error)
                elif not future.done():  # Its caller may have been cancelled.
                    future.set_result(replies)
        finally:
            self._will_flush = False
            self._flush()

    def _set_clock(self, reply: Any, asked: float) -> None:
        match reply:
            case [bytes(seconds), bytes(microseconds)] if seconds.isdigit() and microseconds.isdigit():
                self.clock_offset = int(seconds) + int(microseconds) / 1e6 - asked
            case _:
                raise hiredis.ProtocolError(f"the reply to TIME is {reply!r}")

    # --- bounds: how much waits, and for how long --------------------------------------------------

    async def room(self) -> None:
        """Wait until there is room, first come, first served. Call `send` next, with no `await` between.

        Raises `TimedOutError` after the timeout, `ConnectionLostError` when the connection is closed.
        """
        if self.closed:
            raise ConnectionLostError(f"the connection to {self.address} is closed", sent=False)
        if not self.is_full:
            return
        place: asyncio.Future[None] = self._loop.create_future()
        self._queue.append(place)
        expiry = self._loop.call_later(self._timeout, self._expire, place)
        try:
            await place
        except BaseException:
            if not place.cancel() and not place.cancelled() and place.exception() is None:
                self._waiting -= 1  # It was called, and then cancelled: the place goes to the next one.
                self._make_room()
            raise
        finally:
            expiry.cancel()
        # The place kept for it is free for its `send`; whatever that leaves is given away after it.
        self._waiting -= 1
        self._loop.call_soon(self._make_room)

    def _expire(self, place: "asyncio.Future[None]") -> None:
        if not place.done():
            place.set_exception(TimedOutError(f"no room on the connection to {self.address} in {self._timeout} s"))

    def _make_room(self) -> None:
        """Call as many from the queue as there are places, and keep those for them."""
        while not self._paused and self._queue and self._waiting < self._max_waiting:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                self._waiting += 1
        self.is_full = self._paused or self._waiting >= self._max_waiting

    def pause_writing(self) -> None:
        self._paused = self.is_full = True

    def resume_writing(self) -> None:
        self._paused = False
        self._make_room()

    def _watch(self) -> None:
        """Break the connection if the oldest command has waited too long for its reply."""
        self._watchdog = None
        if not self._pending:
            return
        oldest, now = self._pending[0], monotonic()
        unwritten = self._transport.get_write_buffer_size() if self._transport is not None else 0
        if unwritten < self._unwritten:
            self._wrote = now
        self._unwritten = unwritten
        # What is large may take longer, while its own bytes go one way or the other.
        begun = self._begun or self._is_within_a_reply()
        moved = max(oldest[2], self._wrote, self._heard if begun else 0.0)
        moved = min(moved, oldest[2] + LONGEST * self._timeout)
        left = moved + self._timeout - now
        if left > 0:
            self._suspect = None
        elif self._suspect is not oldest:
            # If it was the loop that stood still, the reply may be there to be read: one more look.
            self._suspect, left = oldest, self._timeout / 16
        else:
            why = f"{self.address} did not reply within {self._timeout} s"
            if self.on_timeout is not None:
                self.on_timeout(why)
            self._lose(TimedOutError, why)
            return
        self._watchdog = self._loop.call_later(left, self._watch)

    # --- the end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Give it up at once: callers that wait get `ConnectionLostError`. In any thread, also after its loop's end."""
        if self._loop.is_running() and not self._runs_here():
            with suppress(RuntimeError):  # It has ended just now.
                self._loop.call_soon_threadsafe(self.close)
                return
        self._lose(_lost, f"the connection to {self.address} was closed")

    def _runs_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lose(_lost, f"{self.address} closed the connection, or it broke", exc)

    def _lose(self, error: Callable[[str], BackendError], message: str, cause: Exception | None = None) -> None:
        if not self.closed:
            self.closed = True
            self._end_guard()
            if self._watchdog is not None:
                self._watchdog.cancel()
            if not self._loop.is_closed():  # Otherwise nobody is left who could be told.
                self._fail_all(error, message, cause)
        transport = self._transport
        if transport is not None and self._loop.is_closed():
            self._transport = None
            _abort_without_loop(transport)
        elif transport is not None:
            transport.abort()

    def _fail_all(self, error: Callable[[str], BackendError], message: str, cause: Exception | None) -> None:
        futures = [future for future, replies, _, _ in self._pending if replies]
        sent = len(futures) - len(self._unsent)
        never: list[asyncio.Future[Any]] = [*futures[sent:], *self._queue]
        failed = [(one, error(message)) for one in futures[:sent]]
        failed += [(one, ConnectionLostError(message, sent=False)) for one in never]
        for future, why in failed:
            if not future.done():
                why.__cause__ = cause
                future.set_exception(why)
        self._pending.clear()
        self._unsent.clear()
        self._queue.clear()

    def abandon(self) -> None:
        """Forget it, in a forked child. Socket and selector are shared with the parent: they are left alone."""
        if self._transport is not None:
            # For ever, so that nothing of it is finalized.
            _abandoned.append((self, self._transport))
            self.closed = True
            self._transport = None
            self._end_guard()

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        """Started, and left at its `yield`: `loop.shutdown_asyncgens()` runs the rest as the loop ends."""
        try:
            yield
        finally:
            self.close()

    def _end_guard(self) -> None:
        # By hand: left to the garbage collector, it would take a task of the loop.
        if not self._guard.ag_running:
            with suppress(StopIteration):
                self._guard.aclose().send(None)

    # --- the beginning -----------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Ask for the time: the first sample of the clock, and the proof that it is Redis that answers."""
        await anext(self._guard)
        self._asked_at = monotonic()
        (reply,) = await self.send(_TIME, 1)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        self._set_clock(reply, self._asked_at)


def _cut(expected: list[bytes], data: bytes) -> int:
    """Leave those with which `data` begins, one after the other. How long they are."""
    at = 0
    for number, one in enumerate(expected):
        if not data.startswith(one, at):
            del expected[number:]
            break
        at += len(one)
    return at


def _raise(error: BaseException) -> None:
    raise error


def _lost(message: str) -> ConnectionLostError:
    return ConnectionLostError(message, sent=True)


# Sockets of a parent, in a forked child; and those that a child would have to leave alone.
_abandoned: list[object] = []
_connections: "WeakSet[Connection]" = WeakSet()


def _abandon_all() -> None:
    for connection in list(_connections):
        connection.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)


def _abort_without_loop(transport: asyncio.Transport) -> None:
    """Close a transport whose loop is closed. What `abort()` has the loop do is done here (uvloop does it itself)."""
    with suppress(RuntimeError):  # "Event loop is closed"
        transport.abort()
    carrier = getattr(getattr(transport, "_ssl_protocol", None), "_transport", transport)
    if finish := getattr(carrier, "_call_connection_lost", None):
        with suppress(RuntimeError):
            finish(None)


async def connect(client: Redis, *, connect_timeout: float, timeout: float, max_waiting: int = 10_000) -> Connection:
    """A connection to the server of `client`, with its settings but none of its retries. Times are in seconds.

    Raises `BackendError`, and `ConfigurationError` for what no retry would change.
    """
    address = address_of(client)
    try:
        handshake = _Handshake(client, connect_timeout)
    except (TypeError, ValueError, refusals.RedisError) as error:
        raise ConfigurationError(f"the client for {address} cannot make connections: {error}") from error
    connection = None
    try:
        async with asyncio.timeout(connect_timeout):
            transport, early = await handshake.run()
            connection = Connection(transport, address, timeout, max_waiting)
            transport.set_protocol(connection)
            connection.data_received(early)
            await connection._begin()
            return connection
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, Exception):
            raise explained(error, address, connect_timeout) from None
        raise
    finally:
        handshake.end()


class _Handshake:
    """redis-py's part: it connects with the settings of a client, once, and does nothing else."""

    def __init__(self, client: Redis, seconds: float) -> None:
        self._process = os.getpid()
        self._sentinels: list[Redis] = []
        pool: Any = client.connection_pool  # redis-py's types do not tell enough
        if isinstance(pool, SentinelConnectionPool):
            pool = self._with_sentinels_of_its_own(pool, seconds)
        self._pool = pool  # The connection has no more than a proxy of it.
        self._connection: Any = pool.make_connection()
        connection = self._connection
        if isinstance(pool, SentinelConnectionPool):
            connection.connection_pool = pool
        connection.retry = Retry(NoBackoff(), 0)
        connection.health_check_interval = 0
        connection.maint_notifications_config = None
        connection.socket_timeout = connection.socket_connect_timeout = None
        connection.disconnect = self._disconnect

    def _with_sentinels_of_its_own(self, pool: SentinelConnectionPool, seconds: float) -> SentinelConnectionPool:
        """A copy that asks with clients of its own: what the user's have in their pools may be of another loop."""
        asked = copy.copy(pool.sentinel_manager)
        share = seconds / (len(asked.sentinels) + 1)
        settings = asked.sentinel_kwargs | {
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": share,
            "socket_timeout": share,
        }
        where = [one.connection_pool.connection_kwargs for one in asked.sentinels]
        asked.sentinels = self._sentinels = [Redis(host=one["host"], port=one["port"], **settings) for one in where]
        own = copy.copy(pool)
        own.sentinel_manager = asked
        own._available_connections, own._in_use_connections = [], set()
        return own

    async def run(self) -> tuple[asyncio.Transport, bytes]:
        """A transport that is past the handshake, and the bytes that have come since."""
        connection = self._connection
        await connection.connect()
        reader, writer, transport = connection._reader, connection._writer, connection._writer.transport
        early = bytes(reader._buffer)
        reader._buffer.clear()
        parsed = getattr(connection._parser, "_reader", None)
        if reader.at_eof() or reader.exception() or transport.is_closing() or (parsed and parsed.has_data()):
            raise BackendError("the server closed the connection, or sent what nobody had asked for")
        # Neither of them is to close the transport, or to warn, when it is garbage.
        connection._reader = connection._writer = None
        writer._transport = _GONE
        return transport, early

    async def _disconnect(self, *_: object, **__: object) -> None:
        """In the place of redis-py's own, which is polite: with TLS, it waits for the server's goodbye."""
        self._drop(self._connection)

    def end(self) -> None:
        """Leave nothing open but a transport that was given away."""
        self._drop(self._connection)
        for sentinel in self._sentinels:
            pool = sentinel.connection_pool
            for connection in (*pool._available_connections, *pool._in_use_connections):
                self._drop(connection)

    def _drop(self, connection: Any) -> None:
        writer = connection._writer
        connection._reader = connection._writer = None
        if writer is None:
            return
        if os.getpid() == self._process:
            writer.transport.abort()
        else:
            _abandoned.append(writer)


def address_of(client: Redis) -> str:
    """Where a client connects to, as it may be shown."""
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        return f"the master {pool.service_name!r} of Sentinel"
    options = pool.connection_kwargs
    where = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return f"Redis at {where}" + (f", database {options['db']}" if options.get("db") else "")


def explained(error: Exception, address: str, seconds: float) -> BackendError | ConfigurationError:
    """What to raise where this is why no connection could be made."""
    if isinstance(error, TimeoutError | refusals.TimeoutError):
        return TimedOutError(f"no connection to {address} within {seconds} s")
    said = (str(error) or repr(error)).partition(", with args")[0]  # it repeats what it was sent: a password
    if isinstance(error, NOT_REDIS):
        return ConfigurationError(
            f"{address} does not answer as Redis does. Is this the address of a Redis server, and TLS where there "
            f"should be TLS (rediss://)? {said}"
        )
    if isinstance(error, refusals.ResponseError | hiredis.ReplyError) and said.removeprefix("ERR ").startswith(LASTING):
        return ConfigurationError(f"{address} cannot be used: {said}")
    return BackendError(f"no connection to {address}: {said}")
