"""The server as threads without an event loop see it: connections that block, for the same scripts.

As on the async side, redis-py makes a connection and we take its socket. What is known of the journal and of failures
is the async client's, so that each side is protected by what the other has seen.
"""

import os
import socket
import threading
from collections.abc import Sequence
from ssl import SSLWantReadError
from time import monotonic
from typing import Any, Final, cast
from weakref import WeakSet

import hiredis
from redis import Redis
from redis import connection as plain
from redis import sentinel as watched
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio import connection as awaited
from redis.asyncio import sentinel as awaited_watched
from redis.backoff import NoBackoff
from redis.retry import Retry

from asynctag.backends.base import Stamp
from asynctag.backends.redis.client import Client, MovedError
from asynctag.backends.redis.connection import ConnectionLostError, NotRedisError, TimedOutError, explained, pack
from asynctag.backends.redis.link import CHECK_AGE, WHO, check_server, read_info, who
from asynctag.backends.redis.replies import refusal
from asynctag.backends.redis.scripts import EPOCH, OPEN, Script
from asynctag.errors import BackendError, ConfigurationError

#: How many connections wait for threads that need one. What was made beyond that is closed after its use.
MAX_IDLE: Final = 16

#: How many bytes are taken from the socket at once, at most.
CHUNK: Final = 65_536

#: What the reader answers when it needs more bytes.
_MORE = object()

#: The kind of connection that blocks, for each that does not.
_KINDS: Final[dict[type, type]] = {
    awaited.Connection: plain.Connection,
    awaited.SSLConnection: plain.SSLConnection,
    awaited.UnixDomainSocketConnection: plain.UnixDomainSocketConnection,
    awaited_watched.SentinelManagedConnection: watched.SentinelManagedConnection,
    awaited_watched.SentinelManagedSSLConnection: watched.SentinelManagedSSLConnection,
}

#: Settings of redis-py that are of no use here: of its retries and timeouts, and of its own upkeep of connections.
_OURS: Final = frozenset(
    {
        "connection_pool",
        "encoder_class",
        "event_dispatcher",
        "health_check_interval",
        "himport_registry",
        "maint_notifications_config",
        "maint_notifications_pool_handler",
        "maintenance_notification_hash",
        "maintenance_state",
        "oss_cluster_maint_notifications_handler",
        "orig_host_address",
        "orig_socket_connect_timeout",
        "orig_socket_timeout",
        "parser_class",
        "redis_connect_func",
        "retry",
        "retry_on_error",
        "retry_on_timeout",
        "socket_connect_timeout",
        "socket_timeout",
    }
)


class Way:
    """How to connect: with the settings of a client, whether it blocks or not.

    Raises `ConfigurationError` where those of an async client say nothing of connections that block.
    """

    def __init__(self, client: "AsyncRedis | Redis", address: str) -> None:
        pool: Any = client.connection_pool  # redis-py's types do not tell enough
        kind, given = pool.connection_class, pool.connection_kwargs
        if isinstance(client, AsyncRedis):
            connect = given.get("redis_connect_func")
            if kind not in _KINDS or connect is not None:
                what = f"redis_connect_func={connect!r}" if connect is not None else f"{kind.__name__}"
                raise ConfigurationError(
                    f"the client for {address} connects by {what}, which is for asyncio: cache.sync cannot connect so. "
                    f"Give RedisBackend(..., sync_client=redis.Redis(...)) too"
                )
            kind = _KINDS[kind]
        self._kind: Any = kind
        self._settings = {name: value for name, value in given.items() if name not in _OURS}
        if not isinstance(client, AsyncRedis) and given.get("redis_connect_func") is not None:
            self._settings["redis_connect_func"] = given["redis_connect_func"]
        self._watched = pool if issubclass(kind, watched.SentinelManagedConnection) else None

    def connect(self, seconds: float) -> socket.socket:
        """A socket that is past the handshake. Whatever redis-py raises."""
        settings = self._settings | _impatient(seconds)
        if self._watched is None:
            return _connected(self._kind(**settings))
        pool = _pool_of_its_own(self._watched, self._kind, seconds)
        try:
            return _connected(self._kind(connection_pool=pool.proxy, **settings))
        finally:
            for one in pool.sentinel_manager.sentinels:
                one.close()


def _connected(connection: Any) -> socket.socket:
    try:
        connection.connect()
        parsed = getattr(connection._parser, "_reader", None)
        if parsed is not None and parsed.has_data():
            raise BackendError("the server sent what nobody had asked for")
        sock: socket.socket = connection._sock
        connection._sock = None  # it is not to be closed with the connection
        return sock
    finally:
        connection.disconnect()  # also where it was interrupted


def _pool_of_its_own(pool: Any, kind: type, seconds: float) -> Any:
    """For a connection by way of Sentinel: it asks each of the sentinels once, with clients of its own."""
    theirs, kinds = pool.sentinel_manager, cast(Any, watched)
    where = [one.connection_pool.connection_kwargs for one in theirs.sentinels]
    asked = kinds.Sentinel(
        [(one["host"], one["port"]) for one in where],
        min_other_sentinels=theirs.min_other_sentinels,
        sentinel_kwargs=theirs.sentinel_kwargs | _impatient(seconds / (len(where) + 1)),
        force_master_ip=theirs._force_master_ip,
    )
    return kinds.SentinelConnectionPool(
        pool.service_name,
        asked,
        connection_class=kind,
        is_master=pool.is_master,
        check_connection=pool.check_connection,
    )


def _impatient(seconds: float) -> dict[str, Any]:
    return {"retry": Retry(NoBackoff(), 0), "socket_timeout": seconds, "socket_connect_timeout": seconds}


class BlockingConnection:
    """A connection for one thread at a time."""

    def __init__(self, sock: socket.socket, address: str, timeout: float) -> None:
        self._sock = sock
        self._address = address
        self._timeout = timeout
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self.closed = False

    def send(self, request: bytes, replies: int) -> list[Any]:
        """The `replies` to packed commands. A refusal is a `hiredis.ReplyError` in the list.

        Whatever interrupts it, what a signal raises too, closes it: the next reply would be another's.
        """
        try:
            return self._exchange(request, replies)
        except TimeoutError:
            self.close()
            raise TimedOutError(f"{self._address} did not reply within {self._timeout} s") from None
        except OSError as error:
            self.close()
            raise ConnectionLostError(f"{self._address} closed the connection, or it broke", sent=True) from error
        except hiredis.ProtocolError as error:
            self.close()
            raise NotRedisError(f"{self._address} answered wrongly: {error}") from error
        except BaseException:
            self.close()
            raise

    def _exchange(self, request: bytes, replies: int) -> list[Any]:
        ends = monotonic() + self._timeout
        self._sock.settimeout(self._timeout)
        self._sock.sendall(request)
        found: list[Any] = []
        while len(found) < replies:
            reply = self._reader.gets()
            if reply is _MORE:
                left = ends - monotonic()
                if left <= 0:
                    raise TimeoutError
                self._sock.settimeout(left)
                data = self._sock.recv(CHUNK)
                if not data:
                    raise ConnectionResetError("the other side has closed it")
                self._reader.feed(data)
            elif type(reply) is not hiredis.PushNotification:  # nobody here has asked for those
                found.append(reply)
        return found

    def is_quiet(self) -> bool:
        """Whether nothing has come that nobody asked for: the end of the connection, mostly."""
        if self._reader.has_data():
            return False
        try:
            self._sock.setblocking(False)
            self._sock.recv(1)
        except (BlockingIOError, SSLWantReadError):
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        self.closed = True
        self._sock.close()


class BlockingLink:
    """A connection that blocks, and who is behind it. As `Link`."""

    def __init__(self, connection: BlockingConnection, run: str) -> None:
        self.connection = connection
        self.run = run
        self.failed = False
        self.ended = False
        self._checked = monotonic()

    def ask(self, request: bytes) -> Any:
        """The reply to one command. Once a second it is asked before who the server is.

        Raises `MovedError` where that is another: nothing that came over this connection counts.
        """
        if monotonic() - self._checked < CHECK_AGE:
            (reply,) = self.connection.send(request, 1)
            return reply
        info, reply = self.connection.send(WHO + request, 2)
        self._checked = monotonic()
        if not isinstance(info, hiredis.ReplyError) and who(read_info(info)) != self.run:
            self.connection.close()
            raise MovedError("the server is not the one that it was")
        return reply


_clients: "WeakSet[BlockingClient]" = WeakSet()


def _in_forked_child() -> None:
    for client in list(_clients):
        client.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


class BlockingClient:
    """Connections for the threads of this process, beside those that `client` has for event loops.

    `way` is to be set before it is used.
    """

    way: Way

    def __init__(self, client: Client) -> None:
        self._client = client
        self._timeout = client.timeout
        self._connect_timeout = client.connect_timeout
        self._lock = threading.RLock()  # the garbage collector may end a transaction while it is held
        self._idle: list[BlockingLink] = []  # the last that was used is the next
        _clients.add(self)

    async def run(
        self, script: Script, keys: Sequence[str], args: Sequence[str | int], *, takes_number: bool = False
    ) -> tuple[list[Any], bool]:
        """As `Client.run`, by blocking."""
        client = self._client
        for last in (False, True):
            link = self._take()
            newest = client.newest
            try:
                answer = self._send(link, script, keys, args)
                epoch, seq = answer[:2]
                if not client.note(newest, Stamp(epoch, seq), takes_number):
                    self._begin_epoch(link, epoch)
            except (ConnectionLostError, MovedError) as error:
                self.close()  # the others are no better
                if last:
                    client.failing(link, str(error))
                    raise
            except TimedOutError as error:
                client.failing(link, str(error))
                raise
            else:
                return answer, last
            finally:
                self._give_back(link)
        raise AssertionError("unreachable")

    def _send(self, link: BlockingLink, script: Script, keys: Sequence[str], args: Sequence[str | int]) -> list[Any]:
        client = self._client
        answer = link.ask(client.evalsha(link, script, keys, args))
        if isinstance(answer, hiredis.ReplyError) and str(answer).startswith("NOSCRIPT"):
            answer = link.ask(client.eval(link, script, keys, args))
        if isinstance(answer, hiredis.ReplyError):
            raise client.refused(link, answer)
        found: list[Any] = answer
        return found

    def _begin_epoch(self, link: BlockingLink, seen: int) -> None:
        self._client.begun(Stamp(*self._send(link, EPOCH, [self._client.journal], [seen])))

    # --- connections -------------------------------------------------------------------------------

    def _take(self) -> BlockingLink:
        """A connection that no other thread has."""
        while True:
            with self._lock:
                link = self._idle.pop() if self._idle else None
            if link is None:
                self._client.may_try()
                with self._client.trying():
                    return self._connect()
            if link.connection.is_quiet():
                return link
            link.connection.close()

    def _give_back(self, link: BlockingLink) -> None:
        if link.connection.closed:
            return
        with self._lock:
            if len(self._idle) < MAX_IDLE:
                self._idle.append(link)
                return
        link.connection.close()

    def _connect(self) -> BlockingLink:
        """As `Client._open`: one that may be trusted."""
        client = self._client
        try:
            sock = self.way.connect(self._connect_timeout)
        except Exception as error:
            raise explained(error, client.address, self._connect_timeout) from None
        connection = BlockingConnection(sock, client.address, self._timeout)
        try:
            (info,) = connection.send(pack("INFO"), 1)
            if isinstance(info, hiredis.ReplyError):
                raise refusal(info, client.address)
            facts = read_info(info)
            check_server(facts, [], client.address)
            link = BlockingLink(connection, who(facts))
            newest = client.newest
            epoch, seq, _ = self._send(link, OPEN, [client.journal], [])
            if not client.meet(link, newest, Stamp(epoch, seq)):
                self._begin_epoch(link, epoch)
            client.met(link)
        except BaseException:
            connection.close()
            raise
        return link

    def close(self) -> None:
        """Close the connections that no thread uses now."""
        with self._lock:
            idle, self._idle = self._idle, []
        for link in idle:
            link.connection.close()

    def abandon(self) -> None:
        """Forget all connections, in a forked child: the parent goes on with them. Closed, a copy says no goodbye."""
        self._lock = threading.RLock()
        self.close()
