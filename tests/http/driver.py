"""A raw ASGI client: it sends one request, holds it where a test wants it held, and records every message."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskGroup

from asynctag import Cache
from asynctag.backends.base import Entry, Written
from asynctag.backends.memory import MemoryBackend
from asynctag.errors import BackendError
from asynctag.testing import FakeClock

Message = dict[str, Any]
Fields = Mapping[str, str] | Iterable[tuple[str, str]]


class Headed(ABC):
    """Something with headers, as tests read them. `all` gives every value of one."""

    @abstractmethod
    def all(self, name: str) -> list[str]: ...

    def header(self, name: str) -> str | None:
        """The one value of a header; the same header twice fails the test."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} was sent {len(values)} times"
        return values[0] if values else None

    @property
    def cache_status(self) -> str:
        return self.header("cache-status") or ""

    @property
    def hit(self) -> bool:
        return "; hit" in self.cache_status


class Call(Headed):
    """One request on its way, and what came back so far."""

    def __init__(self, scope: dict[str, Any], chunks: Iterable[bytes] = (b"",)) -> None:
        self.scope = scope
        self.messages: list[Message] = []
        self.error: BaseException | None = None
        self.ended = anyio.Event()
        #: Called with each message, before it is recorded: to look at the world at that very moment.
        self.on_message: Callable[[Message], Any] | None = None
        #: Sending raises, as a server does whose client is gone.
        self.sending_fails = False
        self._chunks = list(chunks)
        self._gone = anyio.Event()

    async def receive(self) -> Message:
        if self._chunks:
            return {"type": "http.request", "body": self._chunks.pop(0), "more_body": bool(self._chunks)}
        if not self._gone.is_set():
            await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.sending_fails:
            raise OSError("the client is gone")
        if self.on_message is not None:
            self.on_message(message)
        self.messages.append(dict(message))
        await anyio.lowlevel.checkpoint()

    def disconnect(self) -> None:
        self._gone.set()

    async def run(self, app: Any) -> "Call":
        try:
            await app(self.scope, self.receive, self.send)
        except Exception as error:  # as a server does: log it and go on
            self.error = error
        finally:
            self.ended.set()
        return self

    # --- what came back ------------------------------------------------------------------------------

    @property
    def start(self) -> Message:
        return next(one for one in self.messages if one["type"] == "http.response.start")

    @property
    def status(self) -> int:
        return int(self.start["status"])

    @property
    def chunks(self) -> list[bytes]:
        return [one.get("body", b"") for one in self.messages if one["type"] == "http.response.body"]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def text(self) -> str:
        return self.body.decode()

    def all(self, name: str) -> list[str]:
        wanted = name.lower().encode()
        return [value.decode("latin-1") for found, value in self.start["headers"] if found.lower() == wanted]


def request(
    path: str,
    *,
    method: str = "GET",
    headers: Fields = (),
    host: str = "shop",
    chunks: Iterable[bytes] = (b"",),
    **more: Any,
) -> Call:
    """A request to be sent. `more` goes into the ASGI scope."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    plain, _, query = path.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": plain,
        "raw_path": plain.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", host.encode()), *((n.lower().encode(), v.encode("latin-1")) for n, v in pairs)],
        "client": ("127.0.0.1", 1),
        "server": (host, 80),
        "state": {},
    }
    return Call(scope | more, chunks)


async def ask(app: Any, path: str = "/", **more: Any) -> Call:
    """Send a request and wait for its end."""
    with anyio.fail_after(10):
        return await request(path, **more).run(app)


async def all_blocked() -> None:
    """Let every other task go on until it waits for something."""
    for _ in range(5):
        await anyio.wait_all_tasks_blocked()


def begin(tasks: TaskGroup, app: Any, path: str = "/", **more: Any) -> Call:
    """Send a request, without waiting for it."""
    call = request(path, **more)
    tasks.start_soon(call.run, app)
    return call


@asynccontextmanager
async def running(app: Any, state: dict[str, Any] | None = None) -> AsyncIterator[list[Message]]:
    """The application between its lifespan's startup and shutdown; gives what it said so far."""
    said: list[Message] = []
    shutdown, started = anyio.Event(), anyio.Event()
    waiting: list[Message] = [{"type": "lifespan.startup"}]

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await shutdown.wait()
        return {"type": "lifespan.shutdown"}

    async def send(message: Message) -> None:
        said.append(message)
        if message["type"].startswith("lifespan.startup"):
            started.set()

    async def live() -> None:
        scope: dict[str, Any] = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
        await app(scope | {"state": state if state is not None else {}}, receive, send)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(live)
            await started.wait()
            yield said
            shutdown.set()


def watched(clock: FakeClock, **more: Any) -> Iterator[Cache]:
    """The body of a fixture: a cache in memory, of which no flight may be left open when the test is over."""
    cache = Cache(MemoryBackend(clock=clock), **more)
    yield cache
    flights = cache._filling().flights
    assert flights._open == {}, f"flights that nobody landed: {list(flights._open)}"


class BrokenBackend(MemoryBackend):
    """A backend that does not answer."""

    async def read(self, key: str) -> Any:
        raise BackendError("no answer")

    async def write(self, entry: Entry) -> Written:
        raise BackendError("no answer")

    async def write_many(self, entries: Sequence[Entry]) -> list[Written]:
        raise BackendError("no answer")


class SlowBackend(MemoryBackend):
    """A backend whose writes of responses wait until they are let through."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.writing = anyio.Event()
        self.let_through = anyio.Event()

    async def write(self, entry: Entry) -> Written:
        (written,) = await self.write_many([entry])
        return written

    async def write_many(self, entries: Sequence[Entry]) -> list[Written]:
        if not all("|k|http record" in entry.key for entry in entries):
            self.writing.set()
            await self.let_through.wait()
        return await super().write_many(entries)


class Route:
    """A counting page whose answer can be held back: an async function for whatever framework."""

    def __init__(self) -> None:
        self.runs = 0
        self.entered = anyio.Event()
        self.go = anyio.Event()

    async def pause(self) -> int:
        """Count this run, and wait to be let go."""
        self.runs += 1
        mine = self.runs
        self.entered.set()
        await self.go.wait()
        return mine
