"""The server as the backend sees it: a connection for each event loop, and what becomes of those that fail."""

import asyncio
import contextvars
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol
from weakref import WeakSet

from hiredis import ReplyError
from redis.asyncio import Redis

from asynctag.backends.base import Stamp
from asynctag.backends.redis.breaker import Breaker
from asynctag.backends.redis.connection import ConnectionLostError, TimedOutError, address_of, pack
from asynctag.backends.redis.link import Link, open_link
from asynctag.backends.redis.replies import Outcome, outcome, refusal
from asynctag.backends.redis.scripts import EPOCH, OPEN, Script
from asynctag.errors import BackendError, ConfigurationError


class MovedError(BackendError):
    """The server is not the one to talk to any more."""


class WentBackError(Exception):
    """The journal has lost numbers that it had given."""

    def __init__(self, epoch: int) -> None:
        super().__init__(epoch)
        self.epoch = epoch


class Closable(Protocol):
    def close(self) -> None: ...


class Reached(Protocol):
    """A connection, of whatever kind, and who is behind it. See `Link`."""

    run: str
    failed: bool
    ended: bool

    @property
    def connection(self) -> Closable: ...


_clients: "WeakSet[Client]" = WeakSet()


def _in_forked_child() -> None:
    for client in list(_clients):
        client.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


class Client:
    """Connections to a server, one for each event loop, and scripts on `journal`, the name of the journal.

    What it knows of the journal, and of failures, counts for connections of other kinds too (`blocking.py`): for any
    number of threads. `max_ttl` is what the journal is to be made with, in microseconds (0: not known yet); `newest` is
    the journal's stamp as far as this process has seen it.
    """

    def __init__(
        self, redis: Redis, journal: str, *, timeout: float, connect_timeout: float, max_waiting: int, max_tags: int
    ) -> None:
        self.address = address_of(redis)
        self.max_ttl = 0
        self.newest = Stamp(0, 0)
        self._left: deque[int] = deque(maxlen=1000)  # epochs that were followed by others
        self._run = ""  # who the server was when it was last connected to
        self._noting = threading.RLock()  # the garbage collector may end a transaction while it is held
        self._redis = redis
        self.journal = journal
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self._max_waiting = max_waiting
        self._max_tags = max_tags
        self._breaker = Breaker(time.monotonic)
        self._links: dict[asyncio.AbstractEventLoop, Link] = {}
        self._connecting: dict[asyncio.AbstractEventLoop, asyncio.Task[Link]] = {}
        _clients.add(self)

    # --- connections -------------------------------------------------------------------------------

    def ready(self) -> Link | None:
        """The connection of the event loop that runs here, if it is there with room for a command, as it mostly is."""
        try:
            link = self._links.get(asyncio.get_running_loop())
        except RuntimeError:
            return None
        if link is None or link.connection.closed or link.connection.is_full:
            return None
        link.check()
        return link

    async def link(self) -> Link:
        """The connection of the event loop that runs here, with room for a command."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(
                "RedisBackend runs on asyncio alone, as redis-py does: there is none here"
            ) from None
        link = self._links.get(loop)
        if link is None or link.connection.closed:
            link = await self._connected(loop)
        if link.connection.is_full:
            await link.connection.room()
        link.check()
        return link

    async def _connected(self, loop: asyncio.AbstractEventLoop) -> Link:
        """A new connection; those who come while it is made share it."""
        making = self._connecting.get(loop)
        if making is None:
            self._breaker.check()
            self._drop_closed_loops()
            # In a context of its own: who came first may be cancelled, or be somebody's request.
            making = loop.create_task(self._connect(loop), context=contextvars.Context())
            self._connecting[loop] = making
            making.add_done_callback(lambda task: self._made(loop, task))
        elif self._breaker.is_open:
            raise BackendError(f"{self.address} is being tried by somebody else, after it had failed")
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if making.cancelled() and not (task is not None and task.cancelling()):  # it was not this caller's
                raise BackendError(f"the connection to {self.address} was closed while it was made") from None
            raise

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> Link:
        with self.trying():
            try:
                async with asyncio.timeout(self.connect_timeout):
                    link = await self._open()
            except TimeoutError:
                raise TimedOutError(f"no connection to {self.address} within {self.connect_timeout} s") from None
        link.connection.on_timeout = partial(self.failing, link)
        self._links[loop] = link
        return link

    def may_try(self) -> None:
        """Raise `BackendError` where it has failed so often that it is left alone for a while."""
        self._breaker.check()

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Count whether a connection can be made."""
        try:
            yield
        except BackendError as error:
            self._breaker.failed(str(error))
            raise
        except ConfigurationError as error:
            if not self.newest.epoch:
                raise
            # It has worked in this process: what is wrong is not its set-up. Reads compute.
            self._breaker.failed(str(error))
            raise BackendError(str(error)) from error
        self._breaker.worked()

    async def _open(self) -> Link:
        """A connection that may be trusted: a server that did not write the journal begins a new epoch first."""
        link = await open_link(
            self._redis,
            self.address,
            connect_timeout=self.connect_timeout,
            timeout=self.timeout,
            max_waiting=self._max_waiting,
        )
        try:
            newest = self.newest
            epoch, seq, _ = await self._send(link, OPEN, [self.journal], [])
            if not self.meet(link, newest, Stamp(epoch, seq)):
                await self._begin_epoch(link, epoch)
            self.met(link)
        except BaseException:
            link.connection.close()
            raise
        return link

    def meet(self, link: Reached, newest: Stamp, stamp: Stamp) -> bool:
        """Whether the journal behind a new connection is to be trusted: else a new epoch begins before `met`.

        Another server may have missed what was invalidated where this process was.
        """
        return self.note(newest, stamp) and self._run in ("", link.run)

    def met(self, link: Reached) -> None:
        self._run = link.run

    def _made(self, loop: asyncio.AbstractEventLoop, task: "asyncio.Task[Link]") -> None:
        if self._connecting.get(loop) is task:
            del self._connecting[loop]
        if not task.cancelled():
            task.exception()  # all who waited for it may have gone

    def _drop_closed_loops(self) -> None:
        for loop in [loop for loop in list(self._links) if loop.is_closed()]:
            link = self._links.pop(loop, None)
            if link is not None:
                link.connection.close()
        for loop in [loop for loop in list(self._connecting) if loop.is_closed()]:
            self._connecting.pop(loop, None)

    def abandon(self) -> None:
        """Forget all connections, in a forked child: they are the parent's, and abandoned by themselves."""
        self._links = {}
        self._connecting = {}
        self._breaker = Breaker(time.monotonic)
        self._noting = threading.RLock()

    async def close(self) -> None:
        self._drop_closed_loops()
        loop = asyncio.get_running_loop()
        making = self._connecting.pop(loop, None)
        if making is not None:
            making.cancel()
        link = self._links.pop(loop, None)
        if link is not None:
            link.ended = True
            link.connection.close()

    def failing(self, link: Reached, why: str) -> None:
        """Count a connection that gave no answer, once for all who waited for one."""
        if not link.failed and not link.ended:
            link.failed = True
            self._breaker.failed(why)

    # --- commands ----------------------------------------------------------------------------------

    def _arguments(self, link: Reached, keys: Sequence[str], args: Sequence[str | int]) -> tuple[str | int, ...]:
        return (len(keys), *keys, link.run, secrets.randbits(52) + 1, self.max_ttl, self._max_tags, *args)

    def evalsha(self, link: Reached, script: Script, keys: Sequence[str], args: Sequence[str | int]) -> bytes:
        return pack("EVALSHA", script.sha, *self._arguments(link, keys, args))

    def eval(self, link: Reached, script: Script, keys: Sequence[str], args: Sequence[str | int]) -> bytes:
        """For a server that has forgotten the script: it knows it from then on."""
        return pack("EVAL", script.text, *self._arguments(link, keys, args))

    async def _send(self, link: Link, script: Script, keys: Sequence[str], args: Sequence[str | int]) -> list[Any]:
        """The reply to a script."""
        (answer,) = await link.connection.send(self.evalsha(link, script, keys, args), 1)
        if isinstance(answer, ReplyError) and str(answer).startswith("NOSCRIPT"):
            (answer,) = await link.connection.send(self.eval(link, script, keys, args), 1)
        if isinstance(answer, ReplyError):
            raise self.refused(link, answer)
        if link.moved:
            raise self.moved()
        found: list[Any] = answer
        return found

    def moved(self) -> MovedError:
        return MovedError(f"{self.address} is not the server that it was")

    def refused(self, link: Reached, reply: Exception) -> BackendError:
        """What to raise for an error reply, the connection left if the server is not the one to talk to."""
        what, error = outcome(reply), refusal(reply, self.address)
        if what is not Outcome.KEEP:
            if what is Outcome.PAUSE:
                self.failing(link, f"{self.address} said {reply}")
            link.connection.close()
        return MovedError(str(error)) if what is Outcome.MOVE else error

    async def run(
        self, script: Script, keys: Sequence[str], args: Sequence[str | int], *, takes_number: bool = False
    ) -> tuple[list[Any], bool]:
        """The reply to a script; asked once more, on a new connection, where the first was lost.

        With whether the script may have run twice. If the journal has gone back, a new epoch begins first.
        """
        for last in (False, True):
            link, newest = await self.link(), self.newest
            try:
                answer = await self._send(link, script, keys, args)
            except (ConnectionLostError, MovedError) as error:
                if last or link.ended:
                    self.failing(link, str(error))
                    raise
            else:
                epoch, seq = answer[:2]
                if not self.note(newest, Stamp(epoch, seq), takes_number):
                    await self.begin_epoch(epoch)
                return answer, last
        raise AssertionError("unreachable")

    def note(self, newest: Stamp, stamp: Stamp, takes_number: bool = False) -> bool:
        """Whether a reply's stamp is one that the journal can have that gave `newest` before the command was sent.

        It is not, where a number is gone that was known, or where the epoch is one that had been left: the server
        is one of before, which has missed what was invalidated since.
        """
        with self._noting:
            if stamp.epoch != newest.epoch:
                if stamp.epoch in self._left:
                    return False
                if newest.epoch == self.newest.epoch:  # nobody has found a newer one meanwhile
                    self._left.append(newest.epoch)
                    self.newest = stamp
            elif stamp.seq < newest.seq + takes_number:
                return False
            elif stamp.epoch == self.newest.epoch and stamp.seq > self.newest.seq:
                self.newest = stamp
            return True

    async def begin_epoch(self, seen: int) -> Stamp:
        """A new epoch, if it is still the one that was `seen`: the journal has lost what it had."""
        return await self._begin_epoch(await self.link(), seen)

    async def _begin_epoch(self, link: Link, seen: int) -> Stamp:
        return self.begun(Stamp(*await self._send(link, EPOCH, [self.journal], [seen])))

    def begun(self, stamp: Stamp) -> Stamp:
        """A new epoch has begun."""
        with self._noting:
            if stamp.epoch != self.newest.epoch:
                self._left.append(self.newest.epoch)
            self.newest = stamp
        return stamp
