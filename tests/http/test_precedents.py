"""What is stored by precedent is what the general path would have made of it, to the client and in the backend.

The general path is the authority: `general_path` turns the short one off, and the same requests are played both ways.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route as StarletteRoute

from asynctag import Cache, add_tags, no_store
from asynctag.backends.base import Entry, Stamp
from asynctag.backends.memory import MemoryBackend
from asynctag.http import CacheMiddleware, cache_response
from asynctag.http.request import cache_of
from asynctag.http.precedents import Precedents
from asynctag.http.silence import Silence
from asynctag.testing import FakeClock
from tests.http.driver import Call, Route, all_blocked, ask, begin, request

EPOCH = 1_700_000_000.0
BOTH_WAYS = pytest.mark.parametrize("short", [True, False], ids=["short", "general"])


@contextmanager
def general_path() -> Iterator[None]:
    """Nothing has a precedent here, and every endpoint leads by an exchange."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Precedents, "find", lambda *args: None)
        patched.setattr(Silence, "lead", lambda *args: False)
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
    "set other", "explain",
)  # fmt: skip
acts = st.builds(Act, st.sampled_from(["endpoint"] * 3 + ["start", "start", "end"]), st.sampled_from(WHATS))
odd = mostly((), *((one,) for one in ODD), *zip(ODD, ODD[1:], strict=False), times=180)


def plans_of(usual: Sequence[Headers]) -> st.SearchStrategy[Plan]:
    return st.builds(
        Plan,
        headers=st.builds(lambda one, more: (*one, *more), st.sampled_from(usual), odd),
        body=mostly("bytes", "empty", "other", "bytearray", "memoryview", "chunks", "held", "large", "no key", times=24),
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
wishes: dict[str, st.SearchStrategy[Any]] = dict(
    again=mostly(None, 0, 0, 1, 2, times=12),
    method=mostly("GET", "HEAD", "POST", times=20),
    headers=mostly(
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
    query=mostly("", "x=1", "b=2&a=1", times=6),
    host=mostly("shop", "SHOP", "shop:80", "odd host", times=12),
    root=mostly("", "/root", times=12),
    raw=mostly(True, False, times=12),
    chunk=mostly(b"", b"body", times=20),
    around=mostly("", "disabled", "override", times=20),
)
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


class Failure(Exception):
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
        self._before: list[Call] = []

        @self.cache.cached(ttl=4, stale_while_revalidate=10, tags=["part"], name="part")
        async def part() -> int:
            return 1

        self.part = part
        options: dict[str, Any] = {"store": how.store, "target": how.target, "buffer_tags": how.buffer_tags}
        app = Starlette(routes=list(self._routes()))
        self.app: Any = app
        if how.around:
            self.app = CacheMiddleware(app, cache=self.cache, max_body=50, **options)
        else:
            app.add_middleware(CacheMiddleware, cache=self.cache, max_body=50, **options)

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
            self.started: list[asyncio.Task[Any]] = []
            await asyncio.wait_for(self.run(call), 10)
            for task in self.started:
                await asyncio.wait_for(task, 10)
        flights = self.cache._filling().flights
        for _ in range(300):  # renewals in the background
            if not flights._open:
                break
            await anyio.lowlevel.checkpoint()
        await self.backend.release(["|t|a"], "another")
        assert not flights._open

    def call(self, url: str, step: Ask) -> Call:
        more: dict[str, Any] = {} if step.raw else {"raw_path": None}
        call = request(
            url, method=step.method, headers=step.headers, host=step.host, root_path=step.root, chunks=[step.chunk], **more
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
        self.plan = self.step.plan

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = self._body()
        await send({"type": "http.response.start", "status": self.plan.status, "headers": self._headers(len(body))})
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
                return b"x" * 51
            case "other":
                return b"another"
            case "bytearray":
                return bytearray(b"text")
            case "memoryview":
                return memoryview(b"text")
        return b"text"

    def _headers(self, size: int) -> list[Any]:
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
                raise Failure
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


def test_what_is_stored_by_precedent_is_what_the_general_path_stores() -> None:
    """And the short way is taken in a good share of what is stored."""
    counts: Counter[str] = Counter()

    @settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=120,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(settings_of, sequences)
    def played(how: Setting, told: list[Step]) -> None:
        counts.update(play(how, told))

    played()
    print(counts)
    assert counts["at once"] > counts["stored"] / 4, counts
