"""What may happen to bytes on their way: a TCP proxy in front of a real server, which cuts, holds and loses them.

It knows nothing of what it passes on: it counts bytes. It runs in a thread of its own, so that it serves tests that
have an event loop and tests that block alike. What it is told counts as soon as the call returns.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, cast

from tests.redis.servers import HOST, PATIENCE


class Proxy:
    """Passes on to `target` what comes to its own port, until it is told something else."""

    port: int

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        #: How many connections have come.
        self.connections = 0
        #: How many bytes of replies the server has sent, those included that were cut off or are held.
        self.replied = 0
        #: Set when there is a reply that is held: what was asked has been done.
        self.held = threading.Event()
        self._pairs: set[_Pair] = set()
        self._each: int | None = None
        self._holding = False
        self._parted = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")

    @property
    def address(self) -> tuple[str, int]:
        return HOST, self.port

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    @property
    def open_connections(self) -> int:
        return len(self._pairs)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    # --- what it is told ---------------------------------------------------------------------------

    def cut(self, *, after: int = 0) -> None:
        """Let so many bytes of replies through on each connection there is, and end it in place of the next one."""
        self._run(self._set(lambda pair: pair.allow(replies=after)))

    def cut_requests(self, *, after: int = 0) -> None:
        """The same on the way to the server."""
        self._run(self._set(lambda pair: pair.allow(requests=after)))

    def cut_each(self, *, after: int = 0) -> None:
        """As `cut`, and so for every connection that comes."""

        self._run(self._set(lambda pair: pair.allow(replies=after), _each=after))

    def cut_now(self) -> None:
        """End all connections that there are."""
        self._run(self._set(_Pair.end))

    def hold(self) -> None:
        """Keep replies back."""
        self.held.clear()
        self._run(self._set(lambda pair: None, _holding=True))

    def part(self) -> None:
        """Be a network that has fallen apart: nothing is passed on, not even that a side has gone."""
        self._run(self._set(lambda pair: None, _holding=True, _parted=True))

    def mend(self) -> None:
        """Pass on everything again, with what was held."""
        self._run(self._set(_Pair.mend, _each=None, _holding=False, _parted=False))

    def turn_to(self, target: tuple[str, int]) -> None:
        """Lead to another server from now on, and end what leads to this one."""
        self._run(self._set(_Pair.end, target=target))

    # --- how it is done ----------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def _set(self, tell: "Callable[[_Pair], None]", **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self, name, value)
        for pair in list(self._pairs):
            tell(pair)

    async def _listen(self) -> None:
        self._server = await self._loop.create_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def _accept(self) -> asyncio.Protocol:
        self.connections += 1
        pair = _Pair(self)
        self._pairs.add(pair)
        pair.allow(replies=self._each)
        return pair.client

    async def _end(self) -> None:
        self._server.close()
        for pair in list(self._pairs):
            pair.end(at_once=True)
        others = asyncio.all_tasks() - {cast("asyncio.Task[Any]", asyncio.current_task())}
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the turn after


class _Side(asyncio.Protocol):
    """One of the two connections of a pair. `allowed`: how many bytes that come from it may pass; None: all."""

    def __init__(self, pair: "_Pair", *, is_server: bool) -> None:
        self.pair = pair
        self.is_server = is_server
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None
        self.allowed: int | None = None
        self.kept = b""
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.pair.made(self)

    def data_received(self, data: bytes) -> None:
        proxy = self.pair.proxy
        if self.is_server:
            proxy.replied += len(data)
        self.kept += data
        if proxy._parted or (proxy._holding and self.is_server):
            if self.is_server:
                proxy.held.set()
            return
        self.pass_on()

    def pass_on(self) -> None:
        other = self.other.transport if self.other else None
        if not self.kept or other is None:  # the server is not there yet
            return
        data, self.kept = self.kept, b""
        allowed = self.allowed
        if allowed is None:
            other.write(data)
        elif len(data) <= allowed:
            self.allowed = allowed - len(data)
            other.write(data)
        else:
            other.write(data[:allowed])
            self.pair.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        if not self.pair.proxy._parted:
            self.pair.end()


class _Pair:
    """A client's connection, and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.client = _Side(self, is_server=False)
        self.server = _Side(self, is_server=True)
        self._ended = False

    def allow(self, *, replies: int | None = None, requests: int | None = None) -> None:
        self.server.allowed, self.client.allowed = replies, requests

    def made(self, side: _Side) -> None:
        if side is self.client:
            self._task = self.proxy._loop.create_task(self._connect())
            return
        self.client.other, self.server.other = self.server, self.client
        if self._ended:
            self.end()
        elif not self.proxy._parted:
            self.client.pass_on()

    async def _connect(self) -> None:
        try:
            await self.proxy._loop.create_connection(lambda: self.server, *self.proxy.target)
        except OSError:
            self.end()

    def mend(self) -> None:
        self.allow()
        for side in (self.client, self.server):
            side.pass_on()
        if self.client.gone or self.server.gone:
            self.end()

    def end(self, *, at_once: bool = False) -> None:
        """Close both sides, after what was written to them."""
        self._ended = True
        self.proxy._pairs.discard(self)
        for side in (self.client, self.server):
            if side.transport is not None and at_once:
                side.transport.abort()
            elif side.transport is not None:
                side.transport.close()
