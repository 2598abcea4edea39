"""What is stored by precedent is what the general path would have made of it, to the client and in the backend.

The general path is the authority: `general_path` turns the short one off, and the same requests are played both ways.
"""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from email.utils import formatdate
from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route as StarletteRoute

from asynctag import BackendError, Cache, ConfigurationError, add_tags, no_store
from asynctag.backends.base import NOT_THERE, Cause, Entry, Miss, Stamp
from asynctag.backends.memory import MemoryBackend
from asynctag.http import CacheMiddleware, cache_response
from asynctag.http import middleware as middleware_module
from asynctag.http.precedents import Precedents
from asynctag.http.request import cache_of
from asynctag.http.silence import Silence
from asynctag.testing import FakeClock
from tests.http.driver import Call, Route, all_blocked, ask, begin, request

EPOCH = 1_700_000_000.0
#: The first has the backend agree to the cache, the second is seen once, the third sets the precedent.
WARM = ("/warm", "/warmer", "/warmest")

BOTH_WAYS = pytest.mark.parametrize("short", [True, False], ids=["short", "general"])


@contextmanager
def general_path() -> Iterator[None]:
    """Nothing has a precedent here, and every endpoint leads by an exchange."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Precedents, "find", lambda *args: None)
        patched.setattr(Silence, "lead", lambda *args: False)
        patched.setattr(CacheMiddleware, "_to_bring", lambda *args: None)
        yield


@pytest.fixture
def way(short: bool) -> Iterator[None]:
    with ExitStack() as stack:
        if not short:
            stack.enter_context(general_path())
        yield


class Counting(MemoryBackend):
    """Counts what was stored at once: only the short way does that."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.at_once = 0
        self.refuses = False

    async def invalidate(self, tags: Iterable[str], *, soft: bool = False) -> None:
        if self.refuses:
            raise BackendError("no answer")
        await super().invalidate(tags, soft=soft)

    def add(self, entries: Sequence[Entry]) -> bool:
        added = super().add(entries)
        self.at_once += added
        return added


# --- what happens -------------------------------------------------------------------------------------

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Act:
    """Something that happens in the endpoint, after the response's start, or after its end."""

    when: str
    what: str


@dataclass(frozen=True)
class Plan:
    """How the application answers one request."""

    headers: Headers = ()
    body: str = "bytes"
    length: str = "none"
    status: int = 200
    pairs: type = tuple
    acts: tuple[Act, ...] = ()


@dataclass(frozen=True)
class Ask:
    route: str
    #: Of the URLs that were asked for, the last but so many; None for a new one.
    again: int | None
    plan: Plan
    method: str = "GET"
    headers: Headers = ()
    query: str = ""
    host: str = "shop"
    root: str = ""
    raw: bool = True
    chunk: bytes = b""
    around: str = ""


@dataclass(frozen=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class Invalidate:
    tag: str
    soft: bool = False


@dataclass(frozen=True)
class Clear:
    pass


Step = Ask | Wait | Invalidate | Clear


@dataclass(frozen=True)
class Setting:
    """How the cache and its middleware are made."""

    max_entries: int = 1000
    default_ttl: float | None = None
    max_ttl: float = 3600
    store: str = "declared"
    target: str | None = None
    buffer_tags: bool = False
    around: bool = False


def mostly(usual: Any, *others: Any, times: int) -> st.SearchStrategy[Any]:
    return st.sampled_from([usual] * times + list(others))


USUAL: tuple[Headers, ...] = (
    (("content-type", "text/plain"), ("cache-control", "public, max-age=30")),
    (("content-type", "text/plain"),),
    (("cache-control", "s-maxage=20"), ("date", formatdate(EPOCH, usegmt=True))),
    (("content-type", "text/html"), ("cache-control", "public, max-age=10, stale-while-revalidate=20")),
)
ODD: tuple[tuple[str, str], ...] = (
    ("cache-control", "no-store"),
    ("cache-control", "private"),
    ("cache-control", "must-revalidate, stale-if-error=60"),
    ("cache-control", "max-age=5, stale-if-error=60"),
    ("cache-control", "public, max-age=86400"),
    ("cache-control", "public, max-age=2"),
    ("Cache-Control", "public, max-age=30"),
    ("age", "4"),
    ("age", "4, x"),
    ("Age", "4"),
    ("expires", formatdate(EPOCH + 60, usegmt=True)),
    ("expires", "0"),
    ("vary", "accept-language"),
    ("vary", "*"),
    ("etag", '"own"'),
    ("last-modified", formatdate(EPOCH - 100, usegmt=True)),
    ("set-cookie", "id=1"),
    ("cache-groups", '"a"'),
    ("cdn-cache-control", "max-age=15"),
    ("cdn-cache-control", "no-store"),
    ("x-target", "max-age=25"),
    ("connection", "x-hop, cache-control"),
    ("x-hop", "1"),
    ("X-Upper", "1"),
    ("x-bad", "a\nb"),
    ("content-range", "bytes 0-1/4"),
    ("content-encoding", "gzip"),
    ("transfer-encoding", "chunked"),
    ("cache-status", "origin; hit"),
    ("x-long", "x" * 5000),
)
WHATS = (
    "tag", "tag", "no_store", "invalidate", "invalidate", "invalidate other", "soften", "wait", "nested", "nested",
    "raise", "gone", "fail", "disabled and back", "override and back", "lease", "ask", "ask anew", "unsafe", "read",
    "set other", "explain", "window", "awaited window", "queue",
)  # fmt: skip
acts = st.builds(Act, st.sampled_from(["endpoint"] * 3 + ["start", "start", "end"]), st.sampled_from(WHATS))
odd = mostly((), *((one,) for one in ODD), *pairwise(ODD), times=180)


def plans_of(usual: Sequence[Headers]) -> st.SearchStrategy[Plan]:
    return st.builds(
        Plan,
        headers=st.builds(lambda one, more: (*one, *more), st.sampled_from(usual), odd),
        body=mostly(
            "bytes", "empty", "other", "bytearray", "memoryview", "chunks", "held", "large", "no key", times=24
        ),
        length=mostly("none", "right", "right", "right", "wrong", "twice", "twice wrong", "mixed case", "05", times=12),
        status=mostly(200, 404, 503, 204, times=24),
        pairs=mostly(tuple, list, times=8),
        acts=st.sampled_from([0, 0, 1, 2]).flatmap(lambda n: st.lists(acts, min_size=n, max_size=n)).map(tuple),
    )


ROUTES = (
    "free", "free", "free", "ttl", "ttl", "tags", "public", "public", "swr", "statuses", "default", "heuristic", "key",
    "vary", "cookies", "calls", "sie", "long",
)  # fmt: skip
#: Of a request, all but its route and the answer.
wishes: dict[str, st.SearchStrategy[Any]] = {
    "again": mostly(None, 0, 0, 1, 2, times=12),
    "method": mostly("GET", "HEAD", "POST", times=20),
    "headers": mostly(
        (),
        (("cookie", "a=1"),),
        (("authorization", "x"),),
        (("range", "bytes=0-1"),),
        (("if-none-match", '"x"'),),
        (("pragma", "no-cache"),),
        (("cache-control", "no-store"),),
        (("cache-control", "no-cache"),),
        (("cache-control", "only-if-cached"),),
        (("accept-language", "en"),),
        (("host", "second"),),
        times=30,
    ),
    "query": mostly("", "x=1", "b=2&a=1", times=6),
    "host": mostly("shop", "SHOP", "shop:80", "odd host", times=12),
    "root": mostly("", "/root", times=12),
    "raw": mostly(True, False, times=12),
    "chunk": mostly(b"", b"body", times=20),
    "around": mostly("", "disabled", "override", times=20),
}
waits = st.builds(Wait, st.sampled_from([0.5, 4.0, 11.0, 31.0]))
invalidations = st.builds(Invalidate, st.sampled_from(["a", "b", "part"]), st.booleans())


def steps_among(home: tuple[list[str], list[Headers]]) -> st.SearchStrategy[list[Step]]:
    """Most requests of a sequence are for a few routes, which mostly answer alike."""
    routes, usual = home
    asks = st.builds(Ask, route=st.sampled_from(routes), plan=plans_of(usual), **wishes)
    kinds = [asks] * 16 + [waits] * 3 + [invalidations, st.just(Clear())]
    return st.lists(st.sampled_from(kinds).flatmap(lambda kind: kind), min_size=25, max_size=40)


sequences = st.tuples(
    st.lists(st.sampled_from(ROUTES), min_size=1, max_size=3), st.lists(st.sampled_from(USUAL), min_size=1, max_size=2)
).flatmap(steps_among)
settings_of = st.builds(
    Setting,
    max_entries=mostly(1000, 3, 4, times=3),
    default_ttl=st.sampled_from([None, None, 20]),
    max_ttl=mostly(3600, 70, times=4),
    store=st.sampled_from(["declared", "declared", "rfc9111"]),
    target=mostly(None, "x-target", times=3),
    buffer_tags=mostly(False, True, times=4),
    around=st.booleans(),
)


# --- where it happens ---------------------------------------------------------------------------------


class FailureError(Exception):
    """Of the application."""


class World:
    """An application that answers as it is told, and a cache before it."""

    def __init__(self, how: Setting) -> None:
        self.clock = FakeClock()
        self._start = self.clock()
        self.backend = Counting(clock=self.clock, max_entries=how.max_entries)
        self.other = MemoryBackend(clock=self.clock)
        self.cache = Cache(self.backend, default_ttl=how.default_ttl, max_ttl=how.max_ttl)
        self.said: list[str] = []
        self.urls: list[str] = []
        self.calls: list[Call] = []
        self.started: list[asyncio.Task[Any]] = []
        self.leased = False

        @self.cache.cached(ttl=4, stale_while_revalidate=10, tags=["part"], name="part")
        async def part() -> int:
            return 1

        @self.cache.window(name="hour")
        async def hour() -> str:
            return "noon"

        self.part, self.hour = part, hour
        options: dict[str, Any] = {"store": how.store, "target": how.target, "buffer_tags": how.buffer_tags}
        app = Starlette(routes=list(self._routes()))
        self.app: Any = app
        if how.around:
            self.app = CacheMiddleware(app, cache=self.cache, max_body=300, **options)
        else:
            app.add_middleware(CacheMiddleware, cache=self.cache, max_body=300, **options)

    @property
    def now(self) -> float:
        return EPOCH + self.clock() - self._start

    def _routes(self) -> Iterator[StarletteRoute]:
        policies: dict[str, Any] = {
            "ttl": cache_response(60),
            "tags": cache_response(60, tags=["a", "n:{n}"]),
            "public": cache_response(40, public=True, tags=["b"]),
            "swr": cache_response(8, stale_while_revalidate=30),
            "sie": cache_response(8, public=True, stale_if_error=60),
            "statuses": cache_response(60, statuses=[200, 404]),
            "default": cache_response(),
            "heuristic": cache_response(heuristic=0.5),
            "key": cache_response(60, key=lambda request: request.headers.get("accept-language", "-")),
            "vary": cache_response(60, vary=["accept-language"]),
            "cookies": cache_response(60, cookies=()),
            "long": cache_response(300),
        }
        for name, policy in policies.items():

            async def page(request: Request) -> Response:
                return await self._page(request)

            yield StarletteRoute(f"/{name}/{{n}}", policy(page), methods=["GET", "POST"])

        async def free(request: Request) -> Response:
            return await self._page(request)

        @cache_response(30)
        async def inner(request: Request) -> Response:
            return await self._page(request)

        @cache_response(50, tags=["b"])
        async def calls(request: Request) -> Response:
            response: Response = await inner(request)
            return response

        async def outer(request: Request) -> Response:
            response: Response = await inner(request)
            return response

        yield StarletteRoute("/outer/{n}", outer)
        yield StarletteRoute("/free/{n}", free, methods=["GET", "POST"])
        yield StarletteRoute("/calls/{n}", calls)

    async def _page(self, request: Request) -> Response:
        answer = self._answer(request)
        await answer.act("endpoint", request.receive)
        return answer

    def _answer(self, request: Request) -> "Planned":
        add_tags("a")
        return Planned(self, request)

    # --- the clients

    async def play(self, step: Step) -> None:
        self.said, self.calls = [], []
        match step:
            case Wait(seconds):
                self.clock.advance(seconds)
            case Invalidate(tag, soft):
                await self.cache.invalidate(tag, soft=soft)
            case Clear():
                await self.cache.clear()
            case Ask():
                await self._ask(step)

    async def _ask(self, step: Ask) -> None:
        again = step.again if step.again is not None and step.again < len(self.urls) else None
        if again is None:
            self.urls.append(f"/{step.route}/{len(self.urls)}{'?' + step.query if step.query else ''}")
            again = 0
        call = self.call(self.urls[-1 - again], step)
        with ExitStack() as stack:
            if step.around == "disabled":
                stack.enter_context(self.cache.disabled())
            elif step.around == "override":
                stack.enter_context(self.cache.override(self.other))
            self.started = []
            await asyncio.wait_for(self.run(call), 10)
            for task in self.started:
                await asyncio.wait_for(task, 10)
        flights = self.cache._filling().flights
        for _ in range(300):  # renewals in the background
            if not flights._open:
                break
            await anyio.lowlevel.checkpoint()
        assert await self.cache.flush_invalidations()
        if self.leased:
            self.leased = False
            await self.backend.release(["|t|a"], "another")
        assert not flights._open

    def call(self, url: str, step: Ask) -> Call:
        more: dict[str, Any] = {} if step.raw else {"raw_path": None}
        call = request(
            url,
            method=step.method,
            headers=step.headers,
            host=step.host,
            root_path=step.root,
            chunks=[step.chunk],
            **more,
        )
        call.scope["step"], call.scope["call"] = step, call
        self.calls.append(call)
        return call

    async def run(self, call: Call) -> None:
        await asyncio.create_task(call.run(self.app), context=Context())

    def begin(self, url: str, step: Ask) -> None:
        """Another client's request, while one is under way."""
        call = self.call(url, step)
        self.started.append(asyncio.create_task(call.run(self.app), context=Context()))

    # --- what came of it

    def seen(self) -> dict[str, Any]:
        """All that a client, an operator or a later request can tell it by."""
        flights = self.cache._filling().flights
        return {
            "answers": [[plainly(one) for one in call.messages] for call in self.calls],
            "errors": [repr(call.error) for call in self.calls],
            "log": self.said,
            "entries": [self._entry(entry) for entry in self.backend._entries.values()],
            "overridden": list(self.other._entries),
            "side by side": dict(flights._side_by_side),
            "journal": self.backend.newest().seq,
        }

    def _entry(self, entry: Entry) -> tuple[Any, ...]:
        # The record of a URL is as of when the URL was looked up, or of later: it says nothing of data.
        stamp = "of a record" if "|k|http record" in entry.key else self._seq(entry.stamp)
        times = entry.renew_from, entry.fresh_until, entry.stale_until, entry.expires
        return entry.key, entry.tags, entry.codec, entry.body, stamp, *times

    def _seq(self, stamp: Stamp) -> int | None:
        return stamp.seq if stamp.epoch == self.backend.newest().epoch else None


def plainly(message: dict[str, Any]) -> dict[str, Any]:
    """A message as a server understands it."""
    if message["type"] == "http.response.start":
        return {**message, "headers": [tuple(pair) for pair in message["headers"]]}
    return {"body": b"", "more_body": False, **message}


@dataclass
class Planned(Response):
    """A response that begins, goes on and ends as it is told."""

    world: World
    request: Request
    background: Any = None
    stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.step: Ask = self.request.scope["step"]
        self.plan, self.text = self.step.plan, b"text"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = self._body()
        await send({"type": "http.response.start", "status": self.plan.status, "headers": self._fields(len(body))})
        await self.act("start", receive)
        if self.plan.body in ("chunks", "held"):
            await send({"type": "http.response.body", "body": body[:2], "more_body": True})
            body = body[2:]
        if self.plan.body == "no key":
            await send({"type": "http.response.body"})
        else:
            await send({"type": "http.response.body", "body": body})
        await self.act("end", receive)

    def _body(self) -> Any:
        match self.plan.body:
            case "empty" | "no key":
                return b""
            case "large":
                return b"x" * 301
            case "other":
                return b"another"
            case "bytearray":
                return bytearray(b"text")
            case "memoryview":
                return memoryview(b"text")
        return self.text

    def _fields(self, size: int) -> list[Any]:
        right, wrong = ("content-length", str(size)), ("content-length", str(size + 1))
        lengths: dict[str, list[tuple[str, str]]] = {
            "none": [],
            "right": [right],
            "wrong": [wrong],
            "twice": [right, right],
            "twice wrong": [right, wrong],
            "mixed case": [("Content-Length", str(size))],
            "05": [("content-length", f"0{size}")],
        }
        length = lengths[self.plan.length]
        if self.plan.body == "held" and not length:
            length = [("content-length", "2")]
        usual, *rest = self.plan.headers
        pairs = [usual, *length, *rest]
        return [self.plan.pairs([name.encode(), value.encode("latin-1")]) for name, value in pairs]

    async def act(self, when: str, receive: Any) -> None:
        for one in self.plan.acts:
            if one.when == when:
                await self._act(one.what, receive)

    async def _act(self, what: str, receive: Any) -> None:
        world, cache, url = self.world, self.world.cache, self.request.url.path
        others = Ask("free", None, Plan(USUAL[0]))
        match what:
            case "tag":
                add_tags("b")
            case "no_store":
                no_store()
            case "invalidate":
                await cache.invalidate("a")
            case "invalidate other":
                await cache.invalidate("z")
            case "soften":
                await cache.invalidate("a", soft=True)
            case "wait":
                world.clock.advance(3.5)
            case "nested":
                await world.part()
            case "raise":
                raise FailureError
            case "gone":
                self.request.scope["call"].disconnect()
                while (await receive())["type"] != "http.disconnect":
                    pass
            case "fail":
                self.request.scope["call"].sending_fails = True
            case "disabled and back":
                with cache.disabled():
                    await world.part()
            case "override and back":
                with cache.override(world.other):
                    await anyio.lowlevel.checkpoint()
            case "lease":
                world.leased = True
                await world.backend.lease(["|t|a"], "another", 30)
            case "ask" | "ask anew" | "unsafe":
                headers = (("cache-control", "no-cache"),) if what == "ask anew" else ()
                method = "POST" if what == "unsafe" else "GET"
                world.begin(url, Ask("free", None, Plan(self.plan.headers), method=method, headers=headers))
                for _ in range(40):
                    await anyio.lowlevel.checkpoint()
            case "read" if self.request.scope["call"]._chunks:
                await receive()
            case "set other":
                world.begin(f"{url}0", others)
                for _ in range(40):
                    await anyio.lowlevel.checkpoint()
            case "awaited window":
                self.text = (await world.hour()).encode()
            case "window":
                self.text = f"at {world.hour()}".encode()
            case "queue":
                world.backend.refuses = True
                await cache.invalidate("a", queue=True)
                world.backend.refuses = False
            case "explain":
                await cache_of(self.request).explain_response()


class Said(logging.Handler):
    """What is logged goes to the world that is being played."""

    world: World

    def emit(self, record: logging.LogRecord) -> None:
        self.world.said.append(f"{record.levelname} {record.getMessage()}")


def play(how: Setting, told: list[Step]) -> Counter[str]:
    """Play a sequence both ways, and compare after each step; how often the short way was taken."""
    short, general = World(how), World(how)
    handler, logger = Said(), logging.getLogger("asynctag")
    counts: Counter[str] = Counter()

    async def both() -> None:
        async with short.cache, general.cache:
            for step in told:
                handler.world = short
                patched.setattr("time.time", lambda: short.now)
                await short.play(step)
                with general_path():
                    handler.world = general
                    patched.setattr("time.time", lambda: general.now)
                    await general.play(step)
                one, other = short.seen(), general.seen()
                differ = {name: (one[name], other[name]) for name in one if one[name] != other[name]}
                assert not differ, f"{step}\n{differ}"
                counts["asked"] += isinstance(step, Ask)
                counts["stored"] += any(b"stored" in repr(call.messages).encode() for call in short.calls)
                for place, entry in short.backend._entries.items():
                    assert entry.stamp.seq <= general.backend._entries[place].stamp.seq

    with pytest.MonkeyPatch.context() as patched:
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        try:
            anyio.run(both)
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
    assert general.backend.at_once == 0
    counts["at once"] = short.backend.at_once
    return counts


# --- told step by step --------------------------------------------------------------------------------


def get(
    route: str, said: Headers, *acts: str, at: str = "endpoint", again: int | None = None, **more: Any
) -> list[Step]:
    """A request for a new URL, or once more for the last one, and what happens meanwhile."""
    made = {name: more.pop(name) for name in ("body", "length", "status", "pairs") if name in more}
    return [Ask(route, again, Plan(said, acts=tuple(Act(at, what) for what in acts), **made), **more)]


def like(route: str, said: Headers, *acts: str, **more: Any) -> list[Step]:
    """A request like one that went before, and then a hit, if there is one, and what is left of it."""
    found = get(route, said, again=0)
    return [*get(route, said), *get(route, said, *acts, **more), *found, Wait(7.0), *found]


def both(*acts: str, **more: Any) -> list[Step]:
    """Of a response by its own word, and of one under a policy."""
    return [*like("free", OPEN, *acts, **more), *like("tags", TEXT, *acts, **more)]


OPEN, TEXT, SHARED, STALE = USUAL
DATES = tuple(formatdate(EPOCH + seconds, usegmt=True) for seconds in (60, -100))
TOLD: dict[str, list[Step]] = {
    "nothing else": both(),
    **{f"a length that is {length}": both(length=length) for length in ("right", "wrong", "twice wrong", "05")},
    **{f"a body as {body}": both(body=body) for body in ("empty", "no key", "chunks", "held", "large", "bytearray")},
    **{
        f"{what} at the {at}": both(what, at=at)
        for what in ("no_store", "invalidate", "soften", "tag", "window", "queue", "lease", "gone", "raise", "wait")
        for at in ("endpoint", "start", "end")
        if (what, at) != ("window", "end")
    },
    **{
        what: both(what)
        for what in (
            "nested",
            "invalidate other",
            "disabled and back",
            "override and back",
            "explain",
            "awaited window",
        )
    },
    **{f"{what} meanwhile": both(what) for what in ("ask", "ask anew", "unsafe", "set other")},
    "a part that is stale": [
        *get("free", OPEN),
        *get("free", OPEN, "nested"),
        Invalidate("part", soft=True),
        *like("free", OPEN, "nested"),
        *get("tags", TEXT),
        *get("tags", TEXT, "nested"),
        Invalidate("part", soft=True),
        *like("tags", TEXT, "nested"),
    ],
    "a request with a body": both("read", chunk=b"body"),
    "a request with a cookie": both(headers=(("cookie", "a=1"),)),
    "a conditional request": both(headers=(("if-none-match", "*"),)),
    "a part of it": both(headers=(("range", "bytes=0-1"),)),
    "age": like("free", (*SHARED, ("age", "4")))
    + like("default", (*SHARED, ("age", "4")))
    + like("ttl", (("age", "4"),)),
    "a delay": like("free", SHARED, "wait") + like("default", SHARED, "wait"),
    "cookies that do not matter": [
        *like("cookies", TEXT),
        *get("cookies", TEXT, again=0, headers=(("cookie", "a=1"),)),
    ],
    "no word for errors": like("sie", (("cache-control", "must-revalidate"),)),
    "a long life": like("free", (("cache-control", "public, max-age=86400"),), "wait"),
    "a life by its policy": like("default", (("cache-control", "max-age=86400"),), "wait"),
    "a field for this cache": like("free", (("x-target", "max-age=25"),)) + like("ttl", (("x-target", "max-age=25"),)),
    "expires": [*like("free", (("expires", DATES[0]),)), *get("free", (("expires", DATES[0]),))],
    "a validator": like("free", (*OPEN, ("etag", '"own"'))) + like("ttl", (("etag", '"own"'),)),
    "a date of change": [
        *like("free", (*OPEN, ("last-modified", DATES[1]))),
        *like("ttl", (("last-modified", DATES[1]),)),
        *like("heuristic", (("last-modified", DATES[1]),)),
    ],
    "groups": [*like("free", (*OPEN, ("cache-groups", '"a", "c"'))), *like("ttl", (("cache-groups", '"c"'),))],
    "upper case": like("free", (("Cache-Control", "public, max-age=30"), ("Age", "4"), ("X-Upper", "1"))),
    "vary": like("free", (*OPEN, ("vary", "accept-language"))) + like("ttl", (("vary", "accept-language"),)),
    "another policy": [*like("ttl", TEXT), *like("tags", TEXT), *like("public", TEXT), *like("swr", TEXT)],
    "one that calls another": like("calls", TEXT) + like("outer", TEXT) + like("outer", OPEN),
    "not found": [*get("statuses", TEXT, status=404), *get("statuses", TEXT, status=404), *like("statuses", TEXT)],
    "a key function": like("key", TEXT, headers=(("accept-language", "en"),)) + like("vary", TEXT),
    "a field of one connection": like("free", (*OPEN, ("connection", "x-hop, cache-control"), ("x-hop", "1"))),
    "a URL by other servers": both(raw=False) + both(root="/root") + both(host="odd host", query="b=2&a=1"),
    "lists for pairs": both(pairs=list),
}


@pytest.mark.parametrize(("around", "store"), [(False, "declared"), (True, "rfc9111")])
@pytest.mark.parametrize("what", TOLD)
def test_what_a_precedent_does_not_tell_is_found_out(what: str, around: bool, store: str) -> None:
    """Each as the request after one that set the precedent."""
    play(Setting(max_ttl=350, target="x-target", around=around, store=store), TOLD[what])


def test_what_is_stored_by_precedent_is_what_the_general_path_stores() -> None:
    """And the short way is taken in a good share of what is stored."""
    counts: Counter[str] = Counter()

    @settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=85,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(settings_of, sequences)
    def played(how: Setting, told: list[Step]) -> None:
        counts.update(play(how, told))

    played()

    assert counts["at once"] > counts["stored"] / 8, counts


# --- requests that meet -------------------------------------------------------------------------------


class Site:
    """A page at every path, under a policy. What happens in the run of the number `on` is said by `what`."""

    def __init__(self, what: str = "", on: int = 2, backend: Counting | None = None, **policy: Any) -> None:
        self.clock = FakeClock()
        self.backend = Counting(clock=self.clock) if backend is None else backend
        self.cache = Cache(self.backend)
        self.route = Route()
        self.what, self.on = what, on
        self.block: Callable[[], Any] | None = None

        async def page(request: Request) -> Response:
            run = await self.route.pause()
            add_tags("page")
            answer = Run(self, run)
            if answer.what == "asks itself":
                answer.body += b" of " + (await ask(self.app, "/new")).body
                del answer.headers["content-length"]
            return answer

        endpoint = cache_response(60, **policy)(page)
        self.app = Starlette(routes=[StarletteRoute("/{path}", endpoint)])
        self.app.add_middleware(CacheMiddleware, cache=self.cache)

    async def warm(self) -> None:
        """Have some responses be stored, so that those like them have a precedent; they count as one run."""
        self.route.go.set()
        for path in WARM:
            self.route.runs = 0
            await ask(self.app, path)
        self.route.entered, self.route.go = anyio.Event(), anyio.Event()

    def open_flights(self) -> list[str]:
        return list(self.cache._filling().flights._open)


class Run(Response):
    """What a run of the page answers."""

    def __init__(self, site: Site, run: int) -> None:
        super().__init__(f"run {run}", media_type="text/plain")
        self.site, self.what = site, site.what if run == site.on else ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        what, headers, more = self.what, self.raw_headers, False
        if what == "raises":
            raise FailureError
        if what == "no_store":
            no_store()
        if what == "unknown start":
            headers = [*headers, (b"x-new", b"1")]
        if what == "private":
            headers = [*headers, (b"cache-control", b"private")]
        if what == "not found":
            self.status_code = 404
        if what == "wrong length":
            headers = [(name, b"9" if name == b"content-length" else value) for name, value in headers]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        if what == "raises after its start":
            raise FailureError
        if what == "invalidated after its start":
            await self.site.cache.invalidate("page")
        if what == "softened after its start":
            await self.site.cache.invalidate("page", soft=True)
        if what == "another tag invalidated":
            await self.site.cache.invalidate("another")
        if what == "leased":
            await self.site.backend.lease(["|t|page"], "another", 30)
        if what == "chunks":
            await send({"type": "http.response.body", "body": b"run", "more_body": True})
            self.body, more = bytes(self.body[3:]), True
        await send({"type": "http.response.body", "body": self.body, "more_body": False})
        if what == "raises after its body":
            raise FailureError
        assert not more or what == "chunks"


MEETINGS = {
    "": ("run 2", "run 2"),
    "raises": ("Internal Server Error", "run 3"),
    "raises after its start": ("Internal Server Error", "run 3"),
    "raises after its body": ("run 2", "run 2"),
    "cancelled": (None, "run 3"),
    "no_store": ("run 2", "run 3"),
    "chunks": ("run 2", "run 2"),
    "unknown start": ("run 2", "run 2"),
    "private": ("run 2", "run 3"),
    "not found": ("run 2", "run 3"),
    "wrong length": ("run 2", "run 3"),
    "invalidated after its start": ("run 2", "run 3"),
    "softened after its start": ("run 2", "run 3"),
    "another tag invalidated": ("run 2", "run 2"),
    "leased": ("run 2", "run 3"),
}
#: With those the leader's response is stored at once.
AT_ONCE = {"", "raises after its body", "another tag invalidated"}


async def meeting(site: Site) -> list[Any]:
    """Two requests for a new URL, the second while the first is under way; what came of them and of a third."""
    await site.warm()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as first:
                calls = [begin(first, site.app, "/new")]
                await site.route.entered.wait()
                calls.append(begin(tasks, site.app, "/new"))
                await all_blocked()
                assert site.route.runs == 2, "the second does not wait"
                if site.what == "cancelled":
                    first.cancel_scope.cancel()
                else:
                    site.route.go.set()
            site.route.go.set()
    if site.what == "leased":
        await site.backend.release(["|t|page"], "another")
    calls.append(await ask(site.app, "/new"))
    assert site.open_flights() == []
    said: list[Any] = [(repr(call.error), [plainly(one) for one in call.messages]) for call in calls]
    texts = tuple(call.text if call.messages else None for call in calls[:2])
    return [texts, [call.cache_status if call.messages else None for call in calls], site.route.runs, said]


@pytest.mark.anyio
@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("what", MEETINGS)
async def test_those_who_wait_get_what_they_would_get_of_an_exchange(what: str, public: bool) -> None:
    """Whatever becomes of the first."""
    short, general = Site(what, public=public), Site(what, public=public)
    met = await meeting(short)
    with general_path():
        assert met == await meeting(general)
    assert met[0] == MEETINGS[what]
    stored_before = 1 if what in AT_ONCE else 0
    assert short.backend.at_once >= stored_before
    assert short.backend.at_once == stored_before or what not in AT_ONCE
    assert general.backend.at_once == 0


@pytest.mark.anyio
async def test_the_second_of_two_is_collapsed() -> None:
    """It gets the first's response, with its age and validator."""
    site = Site()
    _, statuses, runs, _ = await meeting(site)
    assert statuses[0] == "asynctag; fwd=uri-miss; stored"
    assert statuses[1] == "asynctag; fwd=uri-miss; collapsed; ttl=60"
    assert statuses[2] == "asynctag; hit; ttl=60"
    assert (runs, site.backend.at_once) == (2, 1)


class Pausing:
    """Stands between the cache and the routes, and holds the requests that say so."""

    def __init__(self, app: Any, gate: Route) -> None:
        self.app, self.gate = app, gate

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if any(name == b"x-wait" for name, _ in scope.get("headers", ())):
            await self.gate.pause()
        await self.app(scope, receive, send)


@pytest.mark.anyio
@BOTH_WAYS
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("declared", [True, False])
async def test_what_another_has_stored_in_between_is_found(short: bool, declared: bool) -> None:
    """After the URL was looked up before routing: an endpoint with a policy serves it, another's replaces it."""
    site, gate = Site(), Route()
    site.route.go.set()
    if declared:
        inner: Any = Starlette(routes=site.app.routes)
    else:

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            text = f"run {await site.route.pause()}"
            await PlainTextResponse(text, headers={"cache-control": "s-maxage=60"})(scope, receive, send)

    app = CacheMiddleware(Pausing(inner, gate), cache=site.cache)
    for path in WARM:
        site.route.runs = 0
        await ask(app, path)
    before = site.backend.at_once
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            held = begin(tasks, app, "/new", headers={"x-wait": "1"})
            await gate.entered.wait()
            other = await ask(app, "/new")
            at_once = site.backend.at_once
            assert at_once == before + short
            gate.go.set()
    assert other.text == "run 2"
    assert (held.text, held.hit) == (("run 2", True) if declared else ("run 3", False))
    assert site.backend.at_once == at_once
    later = await ask(app, "/new")
    assert (later.text, later.hit) == (held.text, True)


class Interrupted(Counting):
    """Something happens in another thread after it was asked why nothing is there, and before it answers."""

    meanwhile: Callable[[], None] | None = None

    def why_absent(self, key: str) -> Miss | None:
        absent, meanwhile = super().why_absent(key), self.meanwhile
        if meanwhile is not None:
            self.meanwhile = None
            thread = threading.Thread(target=meanwhile)
            thread.start()
            thread.join()
        return absent


@pytest.mark.anyio
async def test_what_another_thread_has_brought_since_the_look_up_is_found(anyio_backend: str) -> None:
    """The number of landings is of before it: a flight that has landed since says to look again."""
    backend = Interrupted(clock=FakeClock())
    site = Site(backend=backend)
    await site.warm()
    site.route.go.set()
    backend.meanwhile = lambda: anyio.run(ask, site.app, "/new", backend=anyio_backend)
    call = await ask(site.app, "/new")
    assert (call.text, call.hit, site.route.runs) == ("run 2", True, 2)


@pytest.mark.anyio
@BOTH_WAYS
@pytest.mark.usefixtures("way")
async def test_a_computation_that_asks_for_a_page_depends_on_it() -> None:
    """On its tags, and on how long it is fresh."""
    site = Site()
    await site.warm()
    site.route.go.set()

    @site.cache.cached(ttl=300, name="around")
    async def around(path: str) -> str:
        return (await ask(site.app, path)).text

    assert [await around("/new"), await around("/new")] == ["run 2", "run 2"]
    site.clock.advance(61)
    assert await around("/new") == "run 3"
    assert await around("/other") == "run 4"
    await site.cache.invalidate("page")
    assert await around("/other") == "run 5"


@pytest.mark.anyio
@BOTH_WAYS
@pytest.mark.usefixtures("way")
async def test_a_page_that_asks_for_itself_does_not_wait_for_itself() -> None:
    """It would be for ever."""
    site = Site("asks itself")
    await site.warm()
    site.route.go.set()
    assert (await ask(site.app, "/new")).text == "run 2 of run 3"


@pytest.mark.anyio
@BOTH_WAYS
@pytest.mark.usefixtures("way")
async def test_a_page_of_a_sync_endpoint_is_stored_too(short: bool) -> None:
    """What is led in the event loop ends there; the endpoint runs in a thread."""
    site = Site()

    @cache_response(60, tags=["page:{path}"])
    def page(request: Request) -> Response:
        add_tags("page")
        return PlainTextResponse("x")

    app = Starlette(routes=[StarletteRoute("/{path}", page)])
    app.add_middleware(CacheMiddleware, cache=site.cache)
    for path in WARM:
        await ask(app, path)
    assert (await ask(app, "/2")).cache_status == "asynctag; fwd=uri-miss; stored"
    assert site.backend.at_once == short
    assert (await ask(app, "/2")).hit
    await site.cache.invalidate("page:2")
    assert not (await ask(app, "/2")).hit
    await site.cache.invalidate("page")
    assert not (await ask(app, "/2")).hit


# --- what stores it -----------------------------------------------------------------------------------


def entry_of(
    backend: MemoryBackend,
    key: str,
    *,
    tags: tuple[str, ...] = (),
    size: int = 10,
    ttl: float = 60,
    stale: float = 0,
    stamp: Stamp | None = None,
) -> Entry:
    fresh = backend.clock() + ttl
    stamp = backend.newest() if stamp is None else stamp
    return Entry(key, key, None, None, size, (key, *tags), stamp, fresh, fresh, fresh + stale, fresh + stale)


async def keys_of(backend: MemoryBackend, *keys: str) -> list[str]:
    return [key for key in keys if (await backend.inspect(key)).entry is not None]


@pytest.mark.anyio
async def test_all_are_added_or_none() -> None:
    """And what is added is there for every kind of reading."""
    backend = MemoryBackend(clock=FakeClock())
    assert backend.add([entry_of(backend, "a"), entry_of(backend, "b", tags=("t",))])
    assert not backend.add([entry_of(backend, "c"), entry_of(backend, "b")])
    assert await keys_of(backend, "a", "b", "c") == ["a", "b"]
    assert [backend.why_absent(key) for key in "abc"] == [None, None, NOT_THERE]
    for key in "ab":
        peeked, reading = backend.peek(key), await backend.read(key)
        assert peeked is not None
        assert (peeked.body, reading.entry, reading.stale) == (key, peeked, False)
    await backend.invalidate(["t"])
    assert backend.peek("b") is None
    assert (await backend.read("b")).entry is None


@pytest.mark.anyio
async def test_what_is_added_takes_the_place_of_what_cannot_be_served() -> None:
    """Invalid, expired, soft without a stale period: as a write does, and counted once."""
    clock = FakeClock()
    backend, writing = (MemoryBackend(clock=clock, max_entries=10) for _ in range(2))
    for one in (backend, writing):
        await one.write_many(
            [
                entry_of(one, "invalid", tags=("hard",), size=100),
                entry_of(one, "expired", ttl=5, size=200),
                entry_of(one, "softened", tags=("soft",), size=300),
                entry_of(one, "stale", ttl=5, stale=100),
                entry_of(one, "good"),
            ]
        )
        await one.invalidate(["hard"])
        await one.invalidate(["soft"], soft=True)
    clock.advance(6)
    gone = {
        "invalid": Miss(Cause.INVALIDATED, "hard"),
        "expired": Miss(Cause.EXPIRED),
        "softened": Miss(Cause.INVALIDATED, "soft"),
        "never": NOT_THERE,
        "stale": None,
        "good": None,
    }
    assert {key: backend.why_absent(key) for key in gone} == gone
    for key in ("stale", "good"):
        before = standing(backend)
        assert not backend.add([entry_of(backend, key)])
        assert not backend.add([entry_of(backend, "never"), entry_of(backend, key)])
        assert standing(backend) == before
    added = [key for key, miss in gone.items() if miss is not None]
    assert backend.add([entry_of(backend, key, size=50) for key in added])
    assert all(one.accepted for one in await writing.write_many([entry_of(writing, key, size=50) for key in added]))
    assert await keys_of(backend, *added) == added
    assert standing(backend) == standing(writing)


@pytest.mark.anyio
async def test_what_is_newer_is_not_replaced_though_it_is_gone() -> None:
    """By a tag that the older one lacks; once it has expired it is."""
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    before = backend.newest()
    await backend.invalidate(["other"])
    assert backend.add([entry_of(backend, "a", tags=("t",), ttl=5)])
    await backend.invalidate(["t"])
    assert backend.why_absent("a") == Miss(Cause.INVALIDATED, "t")
    assert not backend.add([entry_of(backend, "a", stamp=before)])
    clock.advance(6)
    assert backend.add([entry_of(backend, "a", stamp=before)])


@pytest.mark.anyio
async def test_a_lease_is_no_reason_to_bring_what_is_there() -> None:
    backend = MemoryBackend(clock=FakeClock())
    assert backend.add([entry_of(backend, "a", tags=("t",))])
    await backend.lease(["t"], "holder", 60)
    assert backend.why_absent("a") is None
    await backend.release(["t"], "holder")
    assert backend.why_absent("a") == Miss(Cause.INVALIDATED, "t")


@pytest.mark.anyio
async def test_room_is_made_before_what_is_added_takes_a_place() -> None:
    """The first of two drives out what the second was to replace: it is taken in as new."""
    backend = MemoryBackend(clock=FakeClock(), max_entries=2)
    assert backend.add([entry_of(backend, "b", tags=("t",)), entry_of(backend, "c")])
    await backend.invalidate(["t"])
    assert backend.add([entry_of(backend, "a"), entry_of(backend, "b")])
    assert len(backend) == 2
    assert await keys_of(backend, "a", "b", "c") == ["a", "b"]


REFUSED = (
    "invalidated",
    "softened",
    "softened, and may be stale",
    "expired",
    "fresh until now",
    "too large",
    "leased",
    "another tag leased",
    "lagging",
    "of another epoch",
    "of no epoch",
    "pruned",
)


@pytest.mark.anyio
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("why", REFUSED)
async def test_nothing_is_added_where_one_would_be_refused_or_stale(why: str, place: int) -> None:
    """Whichever of them it is."""
    clock = FakeClock()
    backend = MemoryBackend(clock=clock, max_bytes=10_000, max_tags=2 if why == "pruned" else 100)
    more: dict[str, Any] = {"tags": ("t",), "stamp": backend.newest()}
    match why:
        case "invalidated":
            await backend.invalidate(["t"])
        case "softened" | "softened, and may be stale":
            await backend.invalidate(["t"], soft=True)
            more["stale"] = 30 if why != "softened" else 0
        case "expired":
            more["ttl"] = -1
        case "fresh until now":
            more |= {"ttl": 0, "stale": 30}
        case "too large":
            more["size"] = 10_000
        case "leased":
            await backend.lease(["t"], "holder", 30)
            more["stamp"] = backend.newest()
        case "another tag leased":
            await backend.lease(["another"], "holder", 30)
        case "lagging":
            await backend.release(["t"], "holder", lag=30, serve=True)
            more["stamp"] = backend.newest()
        case "of another epoch":
            await backend.wipe()
        case "of no epoch":
            more["stamp"] = Stamp(-1, -1)
        case "pruned":
            await backend.invalidate(["x", "y", "z"])
    good, bad = entry_of(backend, "good"), entry_of(backend, "bad", **more)
    assert not backend.add([bad, good] if place == 0 else [good, bad])
    assert await keys_of(backend, "good", "bad") == []
    assert backend.why_absent("good") == NOT_THERE
    assert (len(backend), backend.size) == (0, 0)


@pytest.mark.anyio
async def test_a_journal_that_went_on_with_other_tags_is_no_hindrance() -> None:
    """What was invalidated since the stamp is none of the entry's, and counts from there on."""
    backend = MemoryBackend(clock=FakeClock())
    before = backend.newest()
    await backend.invalidate(["x"])
    await backend.invalidate(["y"], soft=True)
    await backend.lease(["z"], "holder", 30)
    await backend.release(["z"], "holder")
    assert backend.add([entry_of(backend, "a", tags=("t",), stamp=before)])
    entry = backend.peek("a")
    assert entry is not None
    assert entry.stamp == before
    await backend.invalidate(["t"])
    assert backend.peek("a") is None


Operation = tuple[str, int]
operations = st.lists(
    st.tuples(
        st.sampled_from(["add"] * 6 + ["peek", "peek", "invalidate", "soften", "delete", "wait", "lease", "release"]),
        st.integers(0, 5),
    ),
    min_size=10,
    max_size=60,
)


@settings(derandomize=True, database=None, deadline=None, max_examples=150)
@given(operations, st.sampled_from([2, 3, 5, 100]), st.sampled_from([1_500, 3_000, 100_000]))
def test_what_is_added_is_as_if_it_were_written(told: list[Operation], most: int, room: int) -> None:
    """The same entries stay, in the same order, of the same size: one backend is only written to."""

    async def play() -> None:
        clock = FakeClock()
        adding, writing = (MemoryBackend(clock=clock, max_entries=most, max_bytes=room) for _ in range(2))
        serial = 0
        stamps = [(adding.newest(), writing.newest())]
        for what, number in told:
            match what:
                case "add":
                    serial += 1
                    old = stamps[-1 - number % min(len(stamps), 2)]
                    keys = [f"k{number}", f"n{serial}"][: 1 + serial % 2]
                    batches = [
                        [
                            entry_of(
                                backend,
                                key,
                                tags=(f"t{number}",),
                                stamp=stamp,
                                size=number * 200,
                                ttl=number * 3,
                                stale=4,
                            )
                            for key in keys
                        ]
                        for backend, stamp in zip((adding, writing), old, strict=True)
                    ]
                    absent = all(map(adding.why_absent, keys))
                    before = standing(adding)
                    if adding.add(batches[0]):
                        written = await writing.write_many(batches[1])
                        assert absent
                        assert all(one.accepted and not one.stale for one in written)
                    else:
                        assert standing(adding) == before
                        await adding.write_many(batches[0])
                        await writing.write_many(batches[1])
                case "wait":
                    clock.advance(number)
                case _:
                    for backend in (adding, writing):
                        match what:
                            case "peek":
                                backend.peek(f"k{number}")
                            case "delete":
                                await backend.delete(f"k{number}")
                            case "lease":
                                await backend.lease([f"t{number}"], "holder", 5)
                            case "release":
                                await backend.release([f"t{number}"], "holder")
                            case _:
                                await backend.invalidate([f"t{number}"], soft=what == "soften")
            stamps.append((adding.newest(), writing.newest()))
            assert standing(adding) == standing(writing)

    anyio.run(play)


def standing(backend: MemoryBackend) -> tuple[Any, ...]:
    """What stands in it, in the order in which it is driven out, and how large it is."""
    found, node = [], backend._oldest
    while node is not None:
        found.append((node.key, node.stamp.seq, node.fresh_until, node.size, node.used))
        node = node.newer
    assert {one[0] for one in found} == backend._entries.keys()
    assert backend.size == sum(one[3] for one in found)
    return found, backend.size, len(backend), backend.newest().seq


# --- what was wrong once -------------------------------------------------------------------------------


@pytest.mark.anyio
@BOTH_WAYS
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("how", ["disabled", "override"])
async def test_no_flight_stays_open_where_the_cache_changes_hands_meanwhile(how: str) -> None:
    """Whoever asked for the URL next would wait for ever."""
    site = Site()
    await site.warm()
    with ExitStack() as stack, anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            begin(tasks, site.app, "/new")
            await site.route.entered.wait()
            changed = site.cache.disabled() if how == "disabled" else site.cache.override(MemoryBackend())
            stack.enter_context(changed)
            site.route.go.set()
    assert site.open_flights() == []


@pytest.mark.anyio
@BOTH_WAYS
@pytest.mark.usefixtures("way")
async def test_an_error_is_answered_with_what_another_has_stored_meanwhile() -> None:
    """One that asked for it anew, past the flight."""
    site = Site("raises")
    await site.warm()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            failing = begin(tasks, site.app, "/new")
            await site.route.entered.wait()
            go, site.route.go = site.route.go, anyio.Event()
            site.route.go.set()
            anew = await ask(site.app, "/new", headers={"cache-control": "no-cache"})
            go.set()
    assert anew.text == "run 3"
    assert (failing.status, failing.text) == (200, "run 3")


@pytest.mark.anyio
@BOTH_WAYS
@pytest.mark.usefixtures("way")
async def test_a_validator_that_connection_names_is_not_kept() -> None:
    """As every field that it names (RFC 9111 §3.1)."""
    hit = await _hit_of(_raw([(b"cache-control", b"s-maxage=60"), (b"connection", b"etag")]))
    assert hit.header("etag") is None


@pytest.mark.anyio
@BOTH_WAYS
@pytest.mark.usefixtures("way")
async def test_headers_that_can_be_gone_through_once_go_out() -> None:
    """They are any iterable, by the ASGI specification."""

    class Once(PlainTextResponse):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": iter(self.raw_headers)})
            await send({"type": "http.response.body", "body": self.body})

    @cache_response(60)
    async def page(request: Request) -> Response:
        return Once("x")

    app = Starlette(routes=[StarletteRoute("/", page)])
    app.add_middleware(CacheMiddleware, cache=Cache(MemoryBackend()))
    assert (await ask(app)).header("content-type") == "text/plain; charset=utf-8"


@pytest.mark.anyio
@BOTH_WAYS
@pytest.mark.usefixtures("way")
async def test_a_second_start_goes_out_for_the_server_to_refuse() -> None:
    """As it does after a body."""
    start = {"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"s-maxage=60")]}

    async def twice(scope: Any, receive: Any, send: Any) -> None:
        await send(start)
        if not scope["path"].startswith("/warm"):
            await send(start)
        await send({"type": "http.response.body", "body": b"x"})

    call = await _second_of(twice)
    assert [one["type"].rpartition(".")[2] for one in call.messages] == ["start", "start", "body"]


@pytest.mark.anyio
@BOTH_WAYS
@pytest.mark.usefixtures("way")
async def test_a_start_may_be_sent_by_a_task() -> None:
    """`send` is an async function to applications."""

    async def by_tasks(scope: Any, receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"s-maxage=60")]}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, start)
        await send({"type": "http.response.body", "body": b"x"})

    call = await _second_of(by_tasks)
    assert call.error is None


@pytest.mark.anyio
@BOTH_WAYS
@pytest.mark.usefixtures("way")
async def test_another_max_ttl_than_the_backends_is_told_before_the_endpoint_runs() -> None:
    """As at every look-up."""
    site, other = Site(), MemoryBackend()
    await other.agree(site.cache.max_ttl + 1)
    await site.warm()
    site.route.go.set()
    with site.cache.override(other):
        assert isinstance((await ask(site.app, "/new")).error, ConfigurationError)
    assert site.route.runs == 1


# --- what is kept of starts and routes ----------------------------------------------------------------


@pytest.mark.anyio
async def test_a_start_that_comes_once_is_not_kept() -> None:
    """Else a header of its own in each response would push out those that are alike."""
    wrapped = CacheMiddleware(_numbered, cache=Cache(MemoryBackend()))
    kept: list[int] = []
    for path in ("/1", "/2", "/3", "/1", "/1", "/3"):
        await wrapped.cache.clear()
        assert "stored" in (await ask(wrapped, path)).cache_status
        kept.append(len(wrapped.precedents._known))
    assert kept == [0, 0, 0, 1, 1, 2]


@pytest.mark.anyio
async def test_routes_that_are_made_anew_for_each_request_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of a route keeps it alive."""
    monkeypatch.setattr(middleware_module, "MAX_KNOWN", 3)

    async def page(request: Request) -> Response:
        return PlainTextResponse("x")

    async def anew(scope: Any, receive: Any, send: Any) -> None:
        routes = [StarletteRoute("/{name}", cache_response(60, public=True)(page))]
        await Starlette(routes=routes)(scope, receive, send)

    wrapped = CacheMiddleware(anew, cache=Cache(MemoryBackend()))
    for number in range(20):
        assert "stored" in (await ask(wrapped, f"/{number}")).cache_status
    for known in (wrapped._inputs, wrapped._plain, wrapped._public):
        assert 0 < len(known) <= 3


@pytest.mark.anyio
async def test_a_backend_that_does_not_take_what_is_added_is_asked_to_write_it() -> None:
    """And the response goes out either way."""

    class Refusing(MemoryBackend):
        refused = 0

        def add(self, entries: Sequence[Entry]) -> bool:
            self.refused += 1
            raise BackendError("not now")

    backend = Refusing()
    wrapped = CacheMiddleware(_raw([(b"cache-control", b"s-maxage=60")]), cache=Cache(backend))
    for path in (*WARM, "/new"):
        call = await ask(wrapped, path)
        assert call.body == b"x"
        assert "stored" in call.cache_status
        assert (await ask(wrapped, path)).hit
    assert backend.refused > 0


async def _numbered(scope: Any, receive: Any, send: Any) -> None:
    await _raw([(b"cache-control", b"s-maxage=60"), (b"x-number", scope["path"].encode())])(scope, receive, send)


def _raw(headers: list[tuple[bytes, bytes]]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x"})

    return app


async def _second_of(app: Any) -> Call:
    """The answer to a request for a new URL, after others like it."""
    wrapped = CacheMiddleware(app, cache=Cache(MemoryBackend()))
    for path in WARM:
        await ask(wrapped, path)
    return await ask(wrapped, "/new")


async def _hit_of(app: Any) -> Call:
    wrapped = CacheMiddleware(app, cache=Cache(MemoryBackend()))
    for path in WARM:
        await ask(wrapped, path)
    await ask(wrapped, "/new")
    hit = await ask(wrapped, "/new")
    assert hit.hit
    return hit
